"""The neck in docs/add_a_neck.md is what it says: one file, one decorator, and the builder takes it."""

import re
import subprocess
import sys
from pathlib import Path

DOC = Path(__file__).parents[2] / "docs" / "add_a_neck.md"

USE = """
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from necks import add_neck_config

cfg = get_cfg()
add_neck_config(cfg)
cfg.MODEL.BACKBONE.NAME = "build_neck_backbone"
cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
cfg.MODEL.NECK.NAME = "BalancedFPN"
cfg.MODEL.NECK.OUT_CHANNELS = 8
cfg.MODEL.NECK.NUM_LEVELS = 5
backbone = build_backbone(cfg).eval()
result = backbone(torch.randn(1, 3, 70, 101))
assert list(result) == ["p2", "p3", "p4", "p5", "p6"]
assert [tuple(x.shape[1:]) for x in result.values()] == [(8, 18, 26), (8, 9, 13), (8, 5, 7), (8, 3, 4), (8, 2, 2)]
plain = backbone.neck.fpn(backbone.bottom_up(torch.zeros(1, 3, 64, 64)))
balanced = backbone(torch.zeros(1, 3, 64, 64))
added = balanced["p4"] - plain["p4"]
assert torch.allclose(balanced["p5"] - plain["p5"], added[..., ::2, ::2], atol=1e-6)
print("built")
"""


def test_the_example_works_as_printed(tmp_path):
    example = re.search(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL).group(1)
    body = example.split('"""')[2]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20
    # In a process of its own, so that the example does not stay in the registry of this one.
    program = tmp_path / "balanced_fpn.py"
    program.write_text(example + USE, encoding="utf-8")
    result = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "built"
