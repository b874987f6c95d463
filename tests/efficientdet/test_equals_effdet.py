"""EfficientDet-D0 with converted weights equals the `effdet` package, from the image to the detections."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsercnn import load_config
from sparsercnn.engine import SparseRCNNCheckpointer, build_model
from tools.convert_weights import convert_weights

CONFIGS = Path(__file__).parents[2] / "configs" / "efficientdet"
SIZE = (256, 384)
REASON = "the effdet package, which the model is compared with, is not installed"


@pytest.fixture(scope="module")
def theirs():
    """Its D0 with random weights, statistics, biases and fusion weights."""
    models = pytest.importorskip("effdet.efficientdet", reason=REASON)
    config = pytest.importorskip("effdet.config", reason=REASON).get_efficientdet_config("tf_efficientdet_d0")
    config.image_size = SIZE
    torch.manual_seed(0)
    model = models.EfficientDet(config, pretrained_backbone=False).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("running_var", "edge_weights")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bias")) and "predict" not in name:
                tensor.normal_(0, 0.2)
    return model


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    """Our D0 of 90 classes with the same weights, by way of files."""
    folder = tmp_path_factory.mktemp("converted")
    torch.save(theirs.state_dict(), folder / "effdet.pth")
    config_file = folder / "d0.yaml"
    config_file.write_text(f"_BASE_: {CONFIGS / 'd0.yaml'}\nMODEL:\n  EFFICIENTDET:\n    NUM_CLASSES: 90\n")
    convert_weights("effdet", str(config_file), str(folder / "effdet.pth"), str(folder / "d0.pth"))
    cfg = load_config(config_file, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(folder / "d0.pth")])
    model = build_model(cfg).eval()
    SparseRCNNCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def images() -> list[dict]:
    """Clouds: of white noise random networks see the same everywhere, and whose score is best would be chance."""
    noise = torch.rand(2, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    return [{"image": x * 255} for x in F.interpolate(noise, SIZE, mode="bicubic").clamp(0, 1)]


@torch.no_grad()
def test_logits_and_deltas(theirs, ours):
    batch = ours.preprocess_image(images()).tensor
    expected_logits, expected_deltas = theirs(batch)
    _, logits, deltas = ours.predict(ours.backbone(batch))
    for found, expected in zip(logits, expected_logits, strict=True):
        expected = expected.permute(0, 2, 3, 1).reshape(2, -1, 90)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    for found, expected in zip(deltas, expected_deltas, strict=True):
        expected = expected.permute(0, 2, 3, 1).reshape(2, -1, 4)[..., [1, 0, 3, 2]]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert max(x.std() for x in logits) > 0.1 and max(x.std() for x in deltas) > 0.1


@torch.no_grad()
@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_detections(theirs, ours, nms, monkeypatch):
    from effdet.bench import DetBenchPredict

    from efficientdet.nms import soft_nms

    bench = DetBenchPredict(theirs)
    if nms == "soft":
        bench.soft_nms = True
        monkeypatch.setattr(ours, "suppress", soft_nms)
    expected = bench(ours.preprocess_image(images()).tensor)
    for result, rows in zip(ours(images()), expected, strict=True):
        found = result["instances"]
        # detectron2 clips the boxes to the image and drops those that lie outside.
        boxes = rows[:, :4].clamp(min=0).minimum(torch.tensor([SIZE[1], SIZE[0]] * 2))
        inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
        torch.testing.assert_close(found.pred_boxes.tensor, boxes[inside], rtol=0, atol=1e-3)
        torch.testing.assert_close(found.scores, rows[inside, 4], rtol=0, atol=1e-3)
        assert found.pred_classes.tolist() == (rows[inside, 5] - 1).tolist()
        assert len(found) > 50


def test_a_normalization_other_than_timms_would_show(ours):
    assert ours.backbone.bottom_up.same_normalization
    assert not [m for m in ours.modules() if isinstance(m, nn.BatchNorm2d) and m.eps != 1e-3]
