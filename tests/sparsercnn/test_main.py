"""`python -m sparsercnn`: what the Python API does, with one line for each mistake."""

import json

import numpy as np
import pytest
from PIL import Image

from sparsercnn import Detector
from sparsercnn.__main__ import main
from tests.tiny_run import QUICKSTART


@pytest.fixture(scope="module")
def model(trained):
    return str(trained / "model_final.pth")


def test_predict_draws_and_writes_what_the_api_finds(model, tiny, tmp_path, capsys):
    pictures = [str(tiny / "1.png"), str(tiny / "2.png")]
    output = ["--output", str(tmp_path / "drawn"), "--json", str(tmp_path / "found.json")]
    assert main(["predict", model, *pictures, "--threshold", "0", *output]) == 0
    results = json.loads((tmp_path / "found.json").read_text())
    first = Detector.from_checkpoint(model).predict(pictures[0], threshold=0.0)
    assert results[: len(first)] == first.to_coco(image_id=pictures[0])
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {"1.png", "2.png"}
    assert f"{pictures[0]}: {len(first)} objects on a picture of 64×64 pixels" in capsys.readouterr().out


def test_evaluate_prints_the_metrics_of_the_configs_test_set(model, capsys):
    assert main(["evaluate", model]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]).keys() >= {"AP", "AP50"}


def test_mistakes_get_one_line(model, tmp_path, capsys):
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    for arguments, message in (
        (["export", model, "--output", str(tmp_path / "model.h5")], "the suffix must be one of .onnx, .pt2, .xml"),
        (["predict", model, str(tmp_path / "none.png")], "there is no file or folder"),
        (["predict", model, str(tmp_path / "x.png"), "--weights", "w.pth"], "--weights goes with a config"),
        (["predict", QUICKSTART, str(tmp_path / "x.png")], "the detector has no weights"),
        (["evaluate", model, "--data", "nowhere"], "data nowhere: there is no such file or data set"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1 and error[0].startswith("error: ") and message in error[0]
