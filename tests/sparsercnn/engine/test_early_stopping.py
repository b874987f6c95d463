"""A training whose score gets no better ends, with everything that a training leaves, and stays ended."""

import json

import pytest

from sparsercnn.engine import Trainer
from tests.tiny_run import error_of, run

pytestmark = pytest.mark.usefixtures("loggers")
OPTIONS = ["SOLVER.MAX_ITER", 9, "TEST.EVAL_PERIOD", 1, "SOLVER.EARLY_STOPPING", 2, "SEED", 1]


@pytest.fixture
def scores(monkeypatch):
    """What the evaluations of the next training say, one after the other."""
    given: list[float] = []
    monkeypatch.setattr(Trainer, "test", classmethod(lambda *_: {"bbox": {"AP": given.pop(0)}}))
    return given


def iterations(output):
    return max(json.loads(line)["iteration"] for line in (output / "metrics.json").read_text().splitlines())


def test_it_ends_after_evaluations_without_a_better_score(tiny, tmp_path, scores, caplog):
    scores += [1.0, 3.0, 2.0, 3.0, 3.0]  # the last one is that after training
    assert run(*OPTIONS, "OUTPUT_DIR", tmp_path) == 0
    assert not scores and iterations(tmp_path) == 4
    assert {"model_final.pth", "model_best.pth"} <= {path.name for path in tmp_path.iterdir()}
    assert "training ends after iteration 3, the best was iteration 1" in (tmp_path / "log.txt").read_text()
    # Resumed, the evaluation after its last iteration is done again, and it ends.
    scores += [3.0, 3.0]
    assert run(*OPTIONS, "OUTPUT_DIR", tmp_path, flags=["--resume"]) == 0
    assert not scores and iterations(tmp_path) == 4


def test_a_score_that_gets_better_goes_on(tiny, tmp_path, scores):
    scores += [float(i) for i in range(9)]
    assert run(*OPTIONS, "OUTPUT_DIR", tmp_path) == 0
    assert not scores


def test_it_needs_evaluations(tiny, tmp_path, capsys):
    message = error_of(capsys, "SOLVER.EARLY_STOPPING", 2, "OUTPUT_DIR", tmp_path)
    assert "SOLVER.EARLY_STOPPING is 2 and TEST.EVAL_PERIOD is 0" in message
