"""The wheels, installed into an empty environment, do what a checkout does."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
PACKAGES = ("sparsercnn", "necks", "efficientdet")
PROGRAM = """
import sys, torch, detectron2, efficientdet, necks, sparsercnn
from detectron2.modeling import build_model

for package in (detectron2, efficientdet, necks, sparsercnn):
    assert package.__file__.startswith(sys.prefix), package.__file__
cfg = sparsercnn.load_config("configs/necks/panet.yaml")
assert (cfg.MODEL.NECK.NAME, cfg.MODEL.SparseRCNN.NUM_PROPOSALS) == ("PANet", 100)
assert sparsercnn.load_config("configs/efficientdet/d3.yaml").MODEL.NECK.OUT_CHANNELS == 160
cfg = sparsercnn.load_config("configs/quickstart.yaml", ["MODEL.DEVICE", "cpu"])
(result,) = build_model(cfg).eval()([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}])
assert result["instances"].image_size == (64, 64) and result["instances"].has("pred_boxes")
"""

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path) -> None:
    # What PYTHONPATH names would count as installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Folder of two wheels, the project's and the detectron2 subset's."""
    # Built in a copy: a build leaves a folder `build/` behind, and the next one packs what it finds there.
    source = tmp_path_factory.mktemp("source")
    for folder in (*PACKAGES, "configs", "detectron2_lite"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    folder = tmp_path_factory.mktemp("wheels")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, ".", "./detectron2_lite", cwd=source)
    return folder


def test_the_wheel_holds_every_module_and_every_config(wheels):
    (wheel,) = wheels.glob("sparsercnn-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(ROOT) for package in PACKAGES for path in ROOT.glob(f"{package}/**/*.py")}
    configs = {"sparsercnn" / path.relative_to(ROOT) for path in ROOT.glob("configs/**/*.yaml")}
    assert held == {path.as_posix() for path in modules | configs}


def test_an_installed_wheel_loads_its_configs_and_detects(wheels, tmp_path):
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", *wheels.glob("*.whl"), cwd=tmp_path)
    # Everything else, torch above all, is taken from the environment of this test instead of being installed again.
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(str(Path(torch.__file__).parents[1]))
    run(python, "-I", "-c", PROGRAM, cwd=tmp_path)
