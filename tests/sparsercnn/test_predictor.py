"""`Detector` opens a checkpoint alone, takes pictures in any form, and its results turn into what others take."""

import functools
import http.server
import json
import threading

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
from tests.tiny_run import QUICKSTART, TINY

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
    results = [detector.predict(form, threshold=0.0) for form in forms]
    expected = [(d.name, d.score, d.box) for d in results[0]]
    assert expected and all([(d.name, d.score, d.box) for d in result] == expected for result in results)


def test_a_picture_on_the_web(detector, pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    (tmp_path / "page.html").write_text("<html>")
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        found = detector.predict(f"{address}/picture.png", threshold=0.0)
        assert [d.box for d in found] == [d.box for d in detector.predict(pixels, threshold=0.0)]
        with pytest.raises(InputError, match=rf"cannot read image {address}/page.html: it is an HTML page"):
            detector.predict(f"{address}/page.html")
        with pytest.raises(InputError, match=rf"cannot download {address}/missing.png: .*404"):
            detector.predict(f"{address}/missing.png")
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_pictures_of_one_size_go_together(detector, pixels, monkeypatch):
    pictures = [pixels, pixels[:, ::-1].copy(), pixels[:, :60], np.rot90(pixels).copy(), pixels[::-1].copy()]
    alone = [detector.predict(picture, threshold=0.0) for picture in pictures]
    sizes = []
    run = detector._predictor.model.forward
    monkeypatch.setattr(detector._predictor.model, "forward", lambda inputs: sizes.append(len(inputs)) or run(inputs))
    together = detector.predict(pictures, threshold=0.0)
    assert sizes == [3, 1, 1]
    for expected, found in zip(alone, together, strict=True):
        assert [d.name for d in found] == [d.name for d in expected]
        np.testing.assert_allclose([d.box for d in found], [d.box for d in expected], rtol=0, atol=0.01)


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


def test_results_become_supervisions(detector, pixels):
    pytest.importorskip("supervision")
    found = detector.predict(pixels, threshold=0.0)
    converted = found.to_supervision()
    assert len(converted) == len(found) and list(converted.data["class_name"]) == [d.name for d in found]
    assert tuple(converted.xyxy[0]) == pytest.approx(found[0].box)
    assert converted.confidence[0] == pytest.approx(found[0].score)


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


def test_a_detector_learns_from_a_folder_and_is_measured(tiny, tmp_path, loggers):
    detector = Detector.from_config(QUICKSTART, options=TINY)
    with pytest.raises(InputError, match="the detector has no weights: train it"):
        detector.predict(tiny / "1.png")
    metrics = detector.train(data=tiny, epochs=2, output=tmp_path / "run")
    assert {"AP", "AP50"} <= metrics.keys()
    assert sorted(detector.class_names) == ["circle", "square", "triangle"]
    assert detector.cfg.SOLVER.MAX_ITER == 3  # 3 of the 4 pictures twice, 2 at a time
    detector.predict(tiny / "1.png")
    assert (tmp_path / "run" / "model_final.pth").is_file() and (tmp_path / "run" / "config.yaml").is_file()
    measured = detector.evaluate(data=tiny / "annotations.json", output=tmp_path / "measured")
    assert json.loads((tmp_path / "measured" / "inference" / "measured_test" / "metrics.json").read_text())
    assert {"AP", "AP50"} <= measured.keys()
    with pytest.raises(InputError, match="holds a run"):
        detector.train(data=tiny, epochs=1, output=tmp_path / "run")
    with pytest.raises(InputError, match="data shapes_tran: there is no such file or data set; did you mean shapes_"):
        detector.evaluate(data="shapes_tran")


def test_a_detector_of_other_classes_is_not_measured(detector, tiny):
    with pytest.raises(InputError, match="has objects of class circle, square, triangle; the detector knows"):
        detector.evaluate(data=tiny)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["efficientdet", "fasterrcnn"])
def test_every_detector_learns_detects_and_is_measured(kind, tiny, tmp_path, loggers):
    config = f"configs/{kind}/quickstart.yaml"
    options = ["MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0]
    detector = Detector.from_config(config, options=options)
    metrics = detector.train(data=tiny, epochs=1, output=tmp_path / "run")
    found = detector.predict([tiny / "1.png", tiny / "2.png"], threshold=0.0)
    assert len(found) == 2 and metrics.keys() >= {"AP"}
    assert detector.evaluate(data=tiny).keys() >= {"AP"}
    with pytest.raises(InputError, match="has no refinement stages"):
        detector.stages(tiny / "1.png")
