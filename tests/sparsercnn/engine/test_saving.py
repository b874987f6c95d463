"""The score over which to show detections is in checkpoints of the weights that were evaluated, and in no others."""

import json
from types import SimpleNamespace

import pytest
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from sparsercnn.engine.saving import SaveThreshold
from sparsercnn.evaluation.results import RESULTS

BOX = [10.0, 10.0, 20.0, 20.0]


@pytest.fixture
def dataset():
    annotation = {"bbox": BOX, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    record = {"file_name": "1.png", "image_id": 1, "height": 64, "width": 64, "annotations": [annotation]}
    DatasetCatalog.register("one_box", lambda: [record])
    yield "one_box"
    DatasetCatalog.remove("one_box")


@pytest.fixture
def trainer():
    """A trainer of four iterations that notes which checkpoints were saved with which threshold."""
    checkpointer = SimpleNamespace(metadata={"score_threshold": None})
    trainer = SimpleNamespace(checkpointer=checkpointer, max_iter=4, saved=[])
    trainer.save = lambda name: trainer.saved.append((name, checkpointer.metadata["score_threshold"]))
    return trainer


def run(trainer, hook, evaluate):
    """Train as `TrainerBase` does, with an evaluation after every second iteration, before the hook."""
    hook.trainer = trainer
    for iteration in range(trainer.max_iter):
        trainer.iter = iteration
        hook.before_step()
        trainer.save(f"before_{trainer.iter}")
        if trainer.iter == 1:
            evaluate()
        hook.after_step()
        trainer.save(f"after_{trainer.iter}")
    trainer.iter = trainer.max_iter
    evaluate()
    hook.after_train()


def test_only_what_was_evaluated_has_a_threshold(dataset, trainer, tmp_path):
    scores = iter([(0.9, 0.5), (0.8, 0.2)])

    def evaluate():
        right, wrong = next(scores)
        boxes = [(BOX, right), ([40.0, 40.0, 10.0, 10.0], wrong)]
        found = [{"image_id": 1, "category_id": 0, "bbox": box, "score": score} for box, score in boxes]
        (tmp_path / RESULTS).write_text(json.dumps(found))

    run(trainer, SaveThreshold(2, dataset, tmp_path, trainer), evaluate)
    thresholds = dict(trainer.saved)
    assert thresholds.pop("after_1") == pytest.approx(0.7)
    assert thresholds.pop("model_final") == pytest.approx(0.5)
    assert len(thresholds) == 7 and not any(thresholds.values())


def test_an_evaluation_without_detections_says_nothing(dataset, trainer, tmp_path):
    run(trainer, SaveThreshold(2, dataset, tmp_path, trainer), lambda: None)
    assert trainer.saved[-1] == ("model_final", None)
