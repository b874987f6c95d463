"""FastCOCOEvaluator against detectron2's COCOEvaluator on pycocotools."""

import importlib.util
import json
import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import launch
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from sparsercnn.errors import InputError
from sparsercnn.evaluation.coco import FastCOCOEvaluator

SIZE = 300
CATEGORIES = (4, 9, 17)
NUM_IMAGES = 30
installed = pytest.mark.skipif(
    importlib.util.find_spec("faster_coco_eval") is None, reason="faster-coco-eval is not installed"
)


def random_boxes(rng, count):
    """(count, 4) xywh of all three of COCO's sizes."""
    wh = np.exp(rng.uniform(np.log(8), np.log(200), (count, 2)))
    return np.concatenate([rng.uniform(0, 1, (count, 2)) * (SIZE - wh), wh], axis=1)


def make_annotations(image_ids):
    rng = np.random.default_rng(0)
    annotations = [
        {"image_id": image_id, "category_id": int(rng.choice(CATEGORIES[:2])), "bbox": box.tolist()}
        for image_id in image_ids
        for box in random_boxes(rng, rng.integers(0, 6))
    ]
    for i, annotation in enumerate(annotations, start=1):
        annotation |= {"id": i, "area": annotation["bbox"][2] * annotation["bbox"][3], "iscrowd": int(i % 11 == 0)}
    images = [{"id": i, "file_name": f"{i}.jpg", "width": SIZE, "height": SIZE} for i in image_ids]
    categories = [{"id": i, "name": f"category {i}"} for i in CATEGORIES]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def dataset(tmp_path):
    def register(image_ids=range(1, NUM_IMAGES + 1), annotations=True):
        content = make_annotations(list(image_ids))
        if not annotations:
            del content["annotations"]
        (tmp_path / "truth.json").write_text(json.dumps(content))
        MetadataCatalog.get("fast_evaluation").set(
            thing_classes=[c["name"] for c in content["categories"]],
            thing_dataset_id_to_contiguous_id={c: i for i, c in enumerate(CATEGORIES)},
        )
        register_coco_instances("fast_evaluation", {}, str(tmp_path / "truth.json"), "")
        return content

    yield register
    DatasetCatalog.remove("fast_evaluation")
    MetadataCatalog.remove("fast_evaluation")


def predict(content, detections_per_image=15):
    """{image id: output} with the objects, shifted, among random boxes; scores tie now and then."""
    rng = np.random.default_rng(1)
    outputs = {}
    for image in content["images"]:
        objects = [a for a in content.get("annotations", ()) if a["image_id"] == image["id"]]
        boxes = random_boxes(rng, detections_per_image)
        classes = rng.integers(0, len(CATEGORIES), detections_per_image)
        for i, found in enumerate(objects):
            boxes[i] = np.array(found["bbox"]) * rng.uniform(0.9, 1.1, 4)
            classes[i] = CATEGORIES.index(found["category_id"])
        boxes[:, 2:] += boxes[:, :2]
        instances = Instances((SIZE, SIZE))
        instances.pred_boxes = Boxes(torch.from_numpy(boxes).float())
        instances.scores = torch.from_numpy(rng.uniform(0, 1, detections_per_image).round(2)).float()
        instances.pred_classes = torch.from_numpy(classes)
        outputs[image["id"]] = {"instances": instances}
    return outputs


def run(evaluator, outputs, **kwargs):
    evaluator.reset()
    for image_id, output in outputs.items():
        evaluator.process([{"image_id": image_id}], [output])
    return evaluator.evaluate(**kwargs)


def assert_same(results, expected):
    assert list(results["bbox"]) == list(expected["bbox"])
    np.testing.assert_allclose(list(results["bbox"].values()), list(expected["bbox"].values()), rtol=0, atol=1e-9)


@installed
@pytest.mark.parametrize("max_dets", [None, 5, 300])
@pytest.mark.parametrize("img_ids", [None, [2, 3, 5, 7]])
def test_same_numbers_as_pycocotools(dataset, max_dets, img_ids):
    outputs = predict(dataset())
    expected = run(
        COCOEvaluator("fast_evaluation", max_dets_per_image=max_dets, use_fast_impl=False), outputs, img_ids=img_ids
    )
    results = run(FastCOCOEvaluator("fast_evaluation", max_dets_per_image=max_dets), outputs, img_ids=img_ids)
    assert 0 < expected["bbox"]["AP"] < 100
    assert_same(results, expected)


@pytest.mark.parametrize("reason", ["not installed", "image ids"])
def test_falls_back_with_one_log_line(dataset, reason, monkeypatch, caplog):
    content = dataset([f"image {i}" for i in range(NUM_IMAGES)] if reason == "image ids" else range(1, NUM_IMAGES))
    if reason == "not installed":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outputs = predict(content)
    evaluator = FastCOCOEvaluator("fast_evaluation")
    monkeypatch.setattr(evaluator, "_logger", logging.getLogger("fast_evaluation_test"))
    with caplog.at_level(logging.INFO, "fast_evaluation_test"):
        results = run(evaluator, outputs)
    assert sum("faster" in record.message for record in caplog.records) == 1
    assert_same(results, run(COCOEvaluator("fast_evaluation"), outputs))


@pytest.mark.parametrize("first", [1, 0, -1, -9])
@pytest.mark.parametrize("is_installed", [pytest.param(True, marks=installed), False])
def test_annotations_may_have_any_ids(dataset, tmp_path, first, is_installed, monkeypatch):
    if not is_installed:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    content = dataset()
    outputs = {}
    del content["annotations"][3:]
    for i, annotation in enumerate(content["annotations"]):
        annotation |= {"id": first + i, "image_id": i + 1, "iscrowd": 0}
        found = Instances((SIZE, SIZE), pred_boxes=Boxes(xyxy(annotation["bbox"])), scores=torch.ones(1))
        found.pred_classes = torch.tensor([CATEGORIES.index(annotation["category_id"])])
        outputs[i + 1] = {"instances": found}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    results = run(FastCOCOEvaluator("fast_evaluation"), outputs)["bbox"]
    assert (results["AP"], results["AP75"]) == pytest.approx((100, 100))


def xyxy(box):
    x, y, w, h = box
    return torch.tensor([[x, y, x + w, y + h]])


def test_writes_the_files_that_detectron2_writes(dataset, tmp_path):
    outputs = predict(dataset())
    run(FastCOCOEvaluator("fast_evaluation", output_dir=str(tmp_path / "fast")), outputs)
    run(COCOEvaluator("fast_evaluation", output_dir=str(tmp_path / "plain")), outputs)
    fast, plain = ((tmp_path / folder / "coco_instances_results.json").read_text() for folder in ("fast", "plain"))
    assert json.loads(fast) == json.loads(plain)
    fast, plain = (torch.load(tmp_path / folder / "instances_predictions.pth") for folder in ("fast", "plain"))
    assert fast == plain


def test_no_images_and_no_detections(dataset):
    content = dataset()
    assert run(FastCOCOEvaluator("fast_evaluation"), {}) == {}
    nothing = {1: {"instances": predict(content)[1]["instances"][:0]}}
    assert np.isnan(list(run(FastCOCOEvaluator("fast_evaluation"), nothing)["bbox"].values())).all()


def test_test_sets_without_annotations_only_write(dataset, tmp_path):
    outputs = predict(dataset(annotations=False))
    assert run(FastCOCOEvaluator("fast_evaluation", output_dir=str(tmp_path)), outputs) == {}
    assert len(json.loads((tmp_path / "coco_instances_results.json").read_text())) == NUM_IMAGES * 15


def test_a_class_that_the_data_set_lacks(dataset):
    outputs = predict(dataset())
    outputs[1]["instances"].pred_classes[0] = len(CATEGORIES)
    with pytest.raises(InputError, match="class 3, but data set fast_evaluation has 3 classes"):
        run(FastCOCOEvaluator("fast_evaluation"), outputs)


def _evaluate_share(path, outputs, results_file):
    register_coco_instances("fast_evaluation", {}, path, "")
    DatasetCatalog.get("fast_evaluation")
    mine = dict(list(outputs.items())[comm.get_rank() :: comm.get_world_size()])
    results = run(FastCOCOEvaluator("fast_evaluation"), mine)
    assert bool(results) == comm.is_main_process()
    if results:
        torch.save(results, results_file)


@pytest.mark.usefixtures("quick_processes")
def test_collects_from_all_processes(dataset, tmp_path):
    outputs = predict(dataset())
    arguments = (str(tmp_path / "truth.json"), outputs, str(tmp_path / "results.pth"))
    if torch.cuda.is_available():
        pytest.skip("launch uses one GPU per process")
    launch(_evaluate_share, 2, dist_url="auto", args=arguments)
    collected = torch.load(tmp_path / "results.pth", weights_only=False)
    assert_same(collected, run(FastCOCOEvaluator("fast_evaluation"), outputs))
