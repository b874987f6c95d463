"""The neck in docs/add_a_neck.md is what it says: one file, one decorator, and the builder takes it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import necks

DOC = Path(__file__).parents[2] / "docs" / "add_a_neck.md"
PACKAGE = Path(necks.__file__).parent

USE = """
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
import necks
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
print(necks.__file__, type(backbone.neck).__module__)
"""


@pytest.fixture
def example() -> str:
    return re.search(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL).group(1)


def run(program: Path, folder: Path) -> list[str]:
    """The words that the program prints in a process of its own, with the packages in `folder` before all others."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, str(program)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_the_example_is_short(example):
    body = example.split('"""')[2]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20


def test_the_example_works_as_a_file_of_the_package(example, tmp_path):
    package = tmp_path / "packages" / "necks"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    file, line = re.search(
        r"Save it as `necks/(\w+\.py)`, add `(.*?)` to `necks/__init__.py`", DOC.read_text()
    ).groups()
    (package / file).write_text(example, encoding="utf-8")
    init = package / "__init__.py"
    lines = init.read_text(encoding="utf-8").splitlines()
    # Where a formatter puts it, among the other imports in their order.
    lines.insert(next(i for i, other in enumerate(lines) if other.startswith("from .") and other > line), line)
    init.write_text("\n".join(lines), encoding="utf-8")
    program = tmp_path / "use.py"
    program.write_text(USE, encoding="utf-8")
    assert run(program, package.parent) == [str(init), f"necks.{file.removesuffix('.py')}"]


def test_the_example_works_in_a_script(example, tmp_path):
    program = tmp_path / "script.py"
    program.write_text(example + USE, encoding="utf-8")
    assert run(program, PACKAGE.parent) == [str(PACKAGE / "__init__.py"), "__main__"]
