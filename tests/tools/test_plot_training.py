"""tools/plot_training.py: one run, several runs, and folders without one."""

import json

import pytest
from PIL import Image

from tools import plot_training


@pytest.fixture
def runs(tmp_path):
    for name, start in (("first", 3.0), ("second", 5.0)):
        rows = [{"iteration": i, "total_loss": start / (i + 1), "loss_ce": 1.0, "lr": 0.1} for i in range(5)]
        rows.append({"iteration": 5, "bbox/AP": 10 * start, "bbox/AP50": 15 * start})
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "first", tmp_path / "second"


def test_a_run_is_drawn_into_its_folder(runs, capsys):
    assert plot_training.main([str(runs[0])]) == 0
    assert capsys.readouterr().out.strip() == str(runs[0] / "training_curves.png")
    with Image.open(runs[0] / "training_curves.png") as picture:
        assert picture.width > picture.height


def test_several_runs_are_drawn_together(runs, tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr(plot_training, "_save", lambda figure, path: labels.extend(
        [line.get_label() for line in axes.lines] for axes in figure.axes) or path)  # fmt: skip
    assert plot_training.main([*map(str, runs), "--output", str(tmp_path / "both.png")]) == 0
    assert labels == [[str(run) for run in runs]] * 4


def test_a_folder_without_a_run_is_named(runs, tmp_path, capsys):
    assert plot_training.main([str(runs[0]), str(tmp_path / "none")]) == 2
    assert f"there is no {tmp_path / 'none' / 'metrics.json'}" in capsys.readouterr().err
