"""`Detector` opens a checkpoint alone, takes pictures in any form, and its results turn into what others take."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from sparsercnn import Detector
from sparsercnn.engine import SparseRCNNCheckpointer
from sparsercnn.engine.checkpoints.metadata import run_metadata
from sparsercnn.errors import InputError
from tests.sparsercnn.models import small_config, small_model

NAMES = ["cat", "dog", "owl"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    cfg = small_config()
    cfg.DATASETS.TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = ("animals",), 64, 96
    MetadataCatalog.get("animals").thing_classes = NAMES
    SparseRCNNCheckpointer(small_model(), str(folder), metadata=run_metadata(cfg)).save("model_final")
    return folder / "model_final.pth"


@pytest.fixture(scope="module")
def detector(checkpoint):
    return Detector.from_checkpoint(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)


def test_a_picture_in_any_form_gives_the_same(detector, pixels, tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    forms = [path, str(path), pixels, Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1)]
    results = detector.predict(forms, threshold=0.0)
    expected = [(d.name, d.score, d.box) for d in results[0]]
    assert expected and all([(d.name, d.score, d.box) for d in result] == expected for result in results)


def test_a_checkpoint_says_its_classes_and_its_threshold(detector, pixels):
    assert detector.class_names == NAMES and detector.threshold == 0.5
    assert "3 classes: cat, dog, owl" in repr(detector)
    found = detector.predict(pixels, threshold=0.0)
    middle = found[len(found) // 2].score
    assert all(d.score > middle for d in detector.predict(pixels, threshold=middle))


def test_the_threshold_is_the_checkpoints_unless_one_is_given(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["metadata"]["score_threshold"] = 0.25
    path, config = tmp_path / "model.pth", tmp_path / "config.yaml"
    torch.save(content, path)
    config.write_text(content["metadata"]["config"])
    options = ["MODEL.DEVICE", "cpu"]
    assert Detector.from_checkpoint(path, device="cpu").threshold == 0.25
    assert Detector.from_config(config, path, options).threshold == 0.25
    assert Detector.from_config(config, path, options, threshold=0.0).threshold == 0.0


def test_results_print_draw_and_convert(detector, pixels, tmp_path):
    found = detector.predict(pixels, threshold=0.0)
    assert f"{len(found)} objects on a picture of 90×60 pixels" in repr(found) and found[0].name in repr(found)
    assert found._repr_png_().startswith(b"\x89PNG")
    found.save(tmp_path / "drawn.jpg")
    with Image.open(tmp_path / "drawn.jpg") as drawn:
        assert drawn.size == (480, 320)
    first = json.loads(json.dumps(found.to_coco(image_id=7)))[0]
    x0, y0, x1, y1 = found[0].box
    assert first["image_id"] == 7 and first["category_id"] == found[0].class_id
    assert first["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0])
    frame = pytest.importorskip("pandas") and found.to_dataframe()
    assert list(frame.name) == [d.name for d in found] and frame.x1[0] == pytest.approx(x1)


def test_stages_end_in_the_detections(detector, pixels):
    detector.threshold = 0.0
    stages = detector.stages(pixels)
    detector.threshold = 0.5
    assert len(stages) == 2
    best = detector.predict(pixels, threshold=0.0)[0]
    assert max(d.score for d in stages[-1]) == pytest.approx(best.score, abs=1e-6)


def test_mistakes_get_one_line(detector, checkpoint, pixels, tmp_path):
    with pytest.raises(InputError, match=r"an \(H, W, 3\) uint8 RGB array, not \(60, 90\) uint8"):
        detector.predict(pixels[..., 0])
    with pytest.raises(InputError, match=r"missing\.jpg"):
        detector.predict(tmp_path / "missing.jpg")
    with pytest.raises(InputError, match="not int"):
        detector.predict(3)
    bare = tmp_path / "bare.pth"
    torch.save({"model": small_model().state_dict()}, bare)
    with pytest.raises(InputError, match=r"does not hold its config: use Detector\.from_config"):
        Detector.from_checkpoint(bare)
