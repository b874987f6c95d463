"""COCOEvaluator, inference_on_dataset and what is done with results."""

import json
import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, BoxMode, Instances

# (image id, category id, xywh): one small, one medium, two large objects.
OBJECTS = [
    (1, 4, [10, 10, 20, 20]),
    (1, 9, [100, 50, 50, 50]),
    (2, 4, [0, 0, 150, 150]),
    (2, 9, [20, 30, 120, 100]),
]


@pytest.fixture
def name(tmp_path):
    name = "coco_evaluation_test"
    annotations = [
        {"id": i, "image_id": image, "category_id": c, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, (image, c, box) in enumerate(OBJECTS, start=1)
    ]
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 200, "height": 200} for i in (1, 2)]
    categories = [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    register_coco_instances(name, {}, str(path), "root")
    DatasetCatalog.get(name)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def detections(*found, size=(200, 200)):
    """Instances of (contiguous class, xywh, score)."""
    boxes = torch.tensor([box for _, box, _ in found], dtype=torch.float32).reshape(-1, 4)
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
    scores = torch.tensor([score for _, _, score in found])
    classes = torch.tensor([c for c, _, _ in found], dtype=torch.int64)
    return {"instances": Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)}


PERFECT = {
    1: detections((0, OBJECTS[0][2], 0.9), (1, OBJECTS[1][2], 0.8)),
    2: detections((0, OBJECTS[2][2], 0.7), (1, OBJECTS[3][2], 0.6)),
}


def evaluate(evaluator, outputs):
    evaluator.reset()
    for image_id, output in outputs.items():
        evaluator.process([{"image_id": image_id}], [output])
    return evaluator.evaluate()


def test_perfect_detections(name, tmp_path):
    out = tmp_path / "out"
    results = evaluate(COCOEvaluator(name, output_dir=str(out)), PERFECT)["bbox"]
    assert list(results) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AP-cat", "AP-dog"]
    assert all(value == pytest.approx(100) for value in results.values())

    written = json.loads((out / "coco_instances_results.json").read_text())
    assert [(r["image_id"], r["category_id"], r["bbox"]) for r in written] == OBJECTS
    assert written[0]["score"] == pytest.approx(0.9)
    saved = torch.load(out / "instances_predictions.pth", weights_only=False)
    assert [prediction["image_id"] for prediction in saved] == [1, 2]


def test_a_missed_object_and_a_loose_box(name):
    loose = [20, 30, 120, 80]  # IoU 0.8 with the dog of image 2
    outputs = {1: detections((1, OBJECTS[1][2], 0.8)), 2: detections((0, OBJECTS[2][2], 0.7), (1, loose, 0.6))}
    results = evaluate(COCOEvaluator(name), outputs)["bbox"]
    # half of the cats: precision 1 at the 51 of 101 recalls up to 0.5
    assert results["AP-cat"] == pytest.approx(100 * 51 / 101)
    assert results["AP-dog"] == pytest.approx(0.7 * 100 + 0.3 * 100 * 51 / 101)
    assert results["AP50"] == pytest.approx((100 * 51 / 101 + 100) / 2)
    assert results["APs"] == 0


def test_max_dets_per_image(name):
    wrong = [(0, [150, 150, 9, 9], 0.9)] * 12
    outputs = {1: detections(*wrong, (0, OBJECTS[0][2], 0.8), (1, OBJECTS[1][2], 0.8)), 2: PERFECT[2]}
    default = evaluate(COCOEvaluator(name), outputs)["bbox"]
    assert default["AP-cat"] == pytest.approx(100 * 2 / 14)
    more = evaluate(COCOEvaluator(name, max_dets_per_image=300), outputs)["bbox"]
    assert more == pytest.approx(default)
    fewer = evaluate(COCOEvaluator(name, max_dets_per_image=12), outputs)["bbox"]  # image 1's cat is the 13th
    assert fewer["AP-cat"] == pytest.approx(100 * 51 / 101 / 13)
    assert fewer["AP"] == pytest.approx((fewer["AP-cat"] + fewer["AP-dog"]) / 2)


def test_evaluating_some_images_only(name):
    evaluator = COCOEvaluator(name)
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [PERFECT[1]])
    assert evaluator.evaluate(img_ids=[1])["bbox"]["AP"] == pytest.approx(100)


def test_no_detections(name, detectron2_log):
    results = evaluate(COCOEvaluator(name), {1: detections(), 2: detections()})["bbox"]
    assert all(math.isnan(value) for value in results.values())
    assert "No predictions from the model!" in detectron2_log.text


def test_no_images(name, detectron2_log):
    assert evaluate(COCOEvaluator(name), {}) == {}
    assert "Did not receive valid predictions" in detectron2_log.text


def test_unknown_class_is_reported(name):
    with pytest.raises(AssertionError, match="class=2, but the dataset only has 2 classes"):
        evaluate(COCOEvaluator(name), {1: detections((2, [0, 0, 5, 5], 0.5))})


def test_other_data_sets_are_converted(tmp_path):
    name = "not_coco_test"
    annotation = {"bbox": [10, 10, 60, 60], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    record = {"file_name": "a.jpg", "image_id": 3, "height": 99, "width": 99, "annotations": [annotation]}
    DatasetCatalog.register(name, lambda: [record])
    MetadataCatalog.get(name).thing_classes = ["thing"]
    try:
        with pytest.raises(ValueError, match="output_dir must be provided"):
            COCOEvaluator(name)
        results = evaluate(COCOEvaluator(name, output_dir=str(tmp_path)), {3: detections((0, [10, 10, 50, 50], 0.5))})
        assert results["bbox"]["AP"] == pytest.approx(100)
        assert (tmp_path / f"{name}_coco_format.json").is_file()
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_instances_to_coco_json():
    (result,) = instances_to_coco_json(detections((3, [1, 2, 3, 4], 0.5))["instances"], 7)
    assert result == {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}
    assert instances_to_coco_json(detections()["instances"], 7) == []


# ---------------------------------------------------------------- running


class Recording(DatasetEvaluator):
    def __init__(self, key="task"):
        self.key = key

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += list(zip(inputs, outputs, strict=True))

    def evaluate(self):
        return {self.key: {"count": len(self.seen)}}


class Model(torch.nn.Module):
    def forward(self, inputs):
        assert not self.training and not torch.is_grad_enabled()
        return [x * 2 for x in inputs]


def test_inference_on_dataset(detectron2_log):
    model, evaluator = Model().train(), Recording()
    results = inference_on_dataset(model, [[i, i + 1] for i in range(0, 24, 2)], evaluator)
    assert results == {"task": {"count": 24}}
    assert evaluator.seen == [(i, 2 * i) for i in range(24)]
    assert model.training and torch.is_grad_enabled()
    assert "Start inference on 12 batches" in detectron2_log.text
    assert "Total inference time" in detectron2_log.text
    assert "Total inference pure compute time" in detectron2_log.text


def test_inference_with_several_evaluators_or_none():
    batches = [[1], [2]]
    assert inference_on_dataset(Model(), batches, [Recording("a"), Recording("b")]).keys() == {"a", "b"}
    assert inference_on_dataset(Model(), batches, None) == {}
    assert inference_on_dataset(lambda inputs: inputs, batches, Recording()) == {"task": {"count": 2}}


def test_evaluators_must_differ_in_task():
    evaluators = DatasetEvaluators([Recording("a"), Recording("a")])
    evaluators.reset()
    with pytest.raises(AssertionError, match="same key a"):
        evaluators.evaluate()


@pytest.mark.parametrize("training", [True, False])
def test_inference_context_restores_the_mode(training):
    model = Model().train(training)
    with inference_context(model):
        assert not model.training
    assert model.training == training


# ---------------------------------------------------------------- results


def test_print_csv_format(detectron2_log):
    print_csv_format({"bbox": {"AP": 12.34567, "AP50": 20.0, "AP-cat": 1.0}, "speed": 3})
    assert "copypaste: Task: bbox" in detectron2_log.text
    assert "copypaste: AP,AP50\n" in detectron2_log.text
    assert "copypaste: 12.3457,20.0000\n" in detectron2_log.text
    assert "copypaste: speed=3" in detectron2_log.text


def test_flatten():
    assert flatten_results_dict({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a/b": 1, "a/c/d": 2, "e": 3}


def test_verify_results():
    cfg = get_cfg()
    assert verify_results(cfg, {})
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 38.5, 0.2]]
    assert verify_results(cfg, {"bbox": {"AP": 38.65}})
    for wrong in ({"AP": 38.8}, {"AP": float("nan")}, {"AP50": 38.5}):
        with pytest.raises(SystemExit) as exit:
            verify_results(cfg, {"bbox": wrong})
        assert exit.value.code == 1
