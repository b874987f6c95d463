"""An evaluation by any number of processes, killed or not, gives the results of one process, bit for bit."""

import json
from datetime import timedelta

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import default_argument_parser
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import nn

from sparsercnn.engine.distributed.launch import launch
from sparsercnn.evaluation import unfinished
from sparsercnn.evaluation.coco import FastCOCOEvaluator
from sparsercnn.evaluation.inference import evaluate
from sparsercnn.evaluation.unfinished import UnfinishedEvaluation

NUM_IMAGES = 10
PASSES = (("data", "output"), ("data", "continued"), ("small", "small"))


class Killed(BaseException):
    """As sudden as a signal."""


class Detector(nn.Module):
    """Finds something that depends on the image alone; nothing in one of them."""

    def __init__(self, kill_at=None):
        super().__init__()
        self.kill_at = kill_at
        self.seen = []

    def forward(self, batch):
        if len(self.seen) == self.kill_at:
            raise Killed
        (image_id,) = (x["image_id"] for x in batch)
        self.seen.append(image_id)
        generator = torch.Generator().manual_seed(image_id)
        count = 0 if image_id == 4 else 5
        corners = 50 * torch.rand(count, 2, generator=generator)
        boxes = Boxes(torch.cat([corners, corners + 30 * torch.rand(count, 2, generator=generator)], dim=1))
        scores, classes = torch.rand(count, generator=generator), torch.randint(2, (count,), generator=generator)
        return [{"instances": Instances((100, 100), pred_boxes=boxes, scores=scores, pred_classes=classes)}]


def kill(*_):
    raise Killed


def make_dataset(folder, images):
    annotations = []
    for image in range(1, images + 1):
        objects = Detector()([{"image_id": image}])[0]["instances"][:2]
        for (x0, y0, x1, y1), kind in zip(
            objects.pred_boxes.tensor.tolist(), objects.pred_classes.tolist(), strict=True
        ):
            annotation = {"id": len(annotations) + 1, "image_id": image, "category_id": kind + 1, "iscrowd": 0}
            annotations.append({**annotation, "bbox": [x0 + 1, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)})
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 100, "width": 100} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}],
    }
    folder.mkdir()
    (folder / "truth.json").write_text(json.dumps(content))


def run(folder, output, model, digest=lambda: "digest"):
    """Results of an evaluation, and what it wrote; in processes other than the main one ("{}", None)."""
    name = f"inference test {folder}"
    register_coco_instances(name, {}, str(folder / "truth.json"), "")
    try:
        loader = build_detection_test_loader(DatasetCatalog.get(name), mapper=dict)
        evaluator = FastCOCOEvaluator(name, output_dir=str(output))
        results = evaluate(model, loader, evaluator, UnfinishedEvaluation(str(output), digest))
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    # As text, because numbers that are none do not equal themselves.
    return repr(results), (output / "coco_instances_results.json").read_bytes() if comm.is_main_process() else None


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set, and an evaluation that writes what it has after every image."""
    monkeypatch.setattr(unfinished, "PERIOD", 0)
    make_dataset(tmp_path / "data", NUM_IMAGES)
    return tmp_path


def run_and_kill(folder, after, output="output"):
    with pytest.raises(Killed):
        run(folder / "data", folder / output, Detector(kill_at=after))


def leftovers(folder):
    return [path for output in folder.iterdir() for path in output.glob("unfinished*")]


def test_a_killed_evaluation_continues(folder):
    expected = run(folder / "data", folder / "whole", Detector())
    run_and_kill(folder, after=4)
    run_and_kill(folder, after=3)
    model = Detector()
    assert run(folder / "data", folder / "output", model) == expected
    assert model.seen == [8, 9, 10] and not leftovers(folder)


def test_killed_when_all_images_were_done(folder, monkeypatch):
    expected = run(folder / "data", folder / "whole", Detector())
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(FastCOCOEvaluator, "evaluate", kill)
        run(folder / "data", folder / "output", Detector())
    model = Detector()
    assert run(folder / "data", folder / "output", model) == expected and not model.seen


def test_outputs_of_another_evaluation_are_not_used(folder):
    run_and_kill(folder, after=4)
    model = Detector()
    run(folder / "data", folder / "output", model, digest=lambda: "other")
    assert len(model.seen) == NUM_IMAGES and not leftovers(folder)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:200] + bytes([b[200] ^ 1]) + b[201:]])
def test_damaged_outputs_are_computed_again(folder, damage):
    expected = run(folder / "data", folder / "whole", Detector())
    run_and_kill(folder, after=4)
    path = sorted(folder.glob("output/unfinished-digest/*.npz"))[1]
    path.write_bytes(damage(path.read_bytes()))
    model = Detector()
    assert run(folder / "data", folder / "output", model) == expected
    assert len(model.seen) == NUM_IMAGES - 3


def test_a_short_evaluation_writes_nothing_and_computes_no_digest(folder, monkeypatch):
    monkeypatch.setattr(unfinished, "PERIOD", 60)
    run(folder / "data", folder / "output", Detector(), digest=kill)


def run_by_all(folder):
    """What two processes do: a whole evaluation, the rest of one that was killed, and more processes than images."""
    shown = {}
    for data, output in PASSES:
        model = Detector()
        result = run(folder / data, folder / output, model)
        shown[output] = result, comm.gather(model.seen)
    if comm.is_main_process():
        torch.save(shown, folder / "shown.pth")


@pytest.mark.skipif(torch.cuda.is_available(), reason="each process gets a GPU where there are any")
@pytest.mark.usefixtures("quick_processes")
def test_two_processes_give_the_results_of_one(folder):
    make_dataset(folder / "small", 1)
    expected = {output: run(folder / data, folder / "one", Detector()) for data, output in PASSES}
    run_and_kill(folder, after=3, output="continued")
    args = default_argument_parser().parse_args(["--num-gpus", "2"])
    launch(run_by_all, args, (folder,), timedelta(seconds=120))
    shown = torch.load(folder / "shown.pth")
    assert {output: result for output, (result, _) in shown.items()} == expected
    seen = {output: by_process for output, (_, by_process) in shown.items()}
    assert seen["output"] == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert seen["continued"] == [[4, 6, 8, 10], [5, 7, 9]]
    assert seen["small"] == [[1], []]
    assert not leftovers(folder)
