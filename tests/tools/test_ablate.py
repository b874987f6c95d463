"""The ablation: budgets, intervals, and that what is finished is not done again. Training itself is stood in for."""

import json
from pathlib import Path

import pytest

from tools import ablate, trainings

from ..sparsercnn.golden import GOLDEN

QUICKSTART = GOLDEN.parents[1] / "configs" / "quickstart.yaml"


@pytest.fixture
def trained(monkeypatch):
    """The configs that were trained. AP is the seed, plus 10 for the config as it is; dense proposals take longer."""
    done = []

    def train(cfg, running):
        done.append(cfg)
        folder = Path(cfg.OUTPUT_DIR)
        is_whole = cfg.SOLVER.EMA_DECAY > 0 and cfg.MODEL.SparseRCNN.PROPOSALS != "image"
        metrics = {"AP": cfg.SEED + 10.0 * is_whole, "AP50": 50.0}
        for dataset in cfg.DATASETS.TEST:
            (folder / "inference" / dataset).mkdir(parents=True)
            (folder / "inference" / dataset / "metrics.json").write_text(json.dumps({"bbox": metrics}))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.yaml").write_text(cfg.dump())
        (folder / "metrics.json").write_text('{"iteration": 3, "bbox/AP": 1.0}\n{"iteration": 4}\n')
        (folder / "model_final.pth").touch()

    def measured_once(configs, file):
        return {variant: 2.0 if variant == "+ dense" else 1.0 for variant in configs}

    monkeypatch.setattr(trainings, "_train", train)
    monkeypatch.setattr(ablate, "measured_once", measured_once)
    monkeypatch.setattr(ablate, "check_config", lambda cfg: None)
    return done


def run(output, *words):
    return ablate.main([str(QUICKSTART), "--output", str(output), "--iterations", "100", "--jobs", "1", *words])


def test_every_switch_alone_and_all_together_with_both_budgets(tmp_path, trained, capsys):
    assert run(tmp_path, "--seeds", "2") == 0
    # What takes the published detector's time needs one training for both budgets: all but "dense" here.
    assert len(trained) == 2 * (len(ablate.VARIANTS) + 1)
    assert f"{len(trained)} of {len(trained)} runs" in capsys.readouterr().out
    iterations = {Path(cfg.OUTPUT_DIR).relative_to(tmp_path).parts[1:3]: cfg.SOLVER.MAX_ITER for cfg in trained}
    assert iterations["iterations", "dense"] == 100 and iterations["time", "dense"] == 50
    table = (tmp_path / "ablation.md").read_text()
    # Seeds 1 and 2: 1.5, and 12.7 · 0.71 / √2 to either side.
    assert "| published | 1.00 | 1.5 ± 6.4 |  | 50.0 ± 0.0 | 1.5 ± 6.4 |  | 50.0 ± 0.0 |" in table
    # Both seeds gain ten.
    assert "| together | 1.00 | 11.5 ± 6.4 | 10.0 ± 0.0 | 50.0 ± 0.0 | 11.5 ± 6.4 | 10.0 ± 0.0 | 50.0 ± 0.0 |" in table
    assert "| + dense | 2.00 |" in table
    assert (tmp_path / "ablation.png").stat().st_size > 0
    assert not list(tmp_path.rglob("*.pth"))


def test_published_is_the_published_detector(tmp_path, trained):
    run(tmp_path, "--seeds", "1")
    (published,) = (cfg for cfg in trained if "/published/" in cfg.OUTPUT_DIR)
    node = published.MODEL.SparseRCNN
    assert (node.ASSIGNMENT, node.CLASS_LOSS, node.PROPOSALS) == ("one_to_one", "focal", "image")
    assert (node.DENOISING_QUERIES, node.SHARED_STAGES, published.SOLVER.EMA_DECAY) == (0, False, 0)
    assert node.DISTINCT_OVERLAP == 1


def test_finished_runs_are_kept_and_those_of_other_settings_refused(tmp_path, trained, capsys):
    run(tmp_path, "--seeds", "1")
    before = len(trained)
    assert run(tmp_path, "--seeds", "1") == 0 and len(trained) == before
    assert run(tmp_path, "--seeds", "1", "SOLVER.BASE_LR", "0.1") == 2
    assert "holds a training with other settings" in capsys.readouterr().err


def test_other_detectors_have_no_such_switches(tmp_path, trained, monkeypatch, capsys):
    monkeypatch.setattr(ablate, "check_test_set", lambda cfg: None)
    config = QUICKSTART.parent / "fasterrcnn" / "quickstart.yaml"
    assert ablate.main([str(config), "--output", str(tmp_path)]) == 2
    assert "is of GeneralizedRCNN; the switches are those of SparseRCNN" in capsys.readouterr().err
