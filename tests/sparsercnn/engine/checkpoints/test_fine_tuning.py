"""Weights of one detector as the start of another: what is loaded, and what the table says of it."""

import logging
from types import SimpleNamespace

import pytest
import torch
from detectron2.data import MetadataCatalog

from sparsercnn import load_config
from sparsercnn.engine import SparseRCNNCheckpointer, build_model
from sparsercnn.engine.checkpoints.fine_tuning import fit_to_model
from sparsercnn.errors import InputError

COCO = MetadataCatalog.get("coco_2017_val").thing_classes
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.SparseRCNN.HIDDEN_DIM", 16, "MODEL.SparseRCNN.NHEADS", 4, "MODEL.SparseRCNN.DIM_FEEDFORWARD", 16),
    *("MODEL.SparseRCNN.DIM_DYNAMIC", 4, "MODEL.FPN.OUT_CHANNELS", 16, "MODEL.NECK.OUT_CHANNELS", 16),
]


def model(name="necks/fpn", classes=80, proposals=100, stages=2):
    sizes = ["MODEL.SparseRCNN.NUM_CLASSES", classes, "MODEL.SparseRCNN.NUM_PROPOSALS", proposals]
    torch.manual_seed(classes + proposals)
    return build_model(load_config(f"configs/{name}.yaml", [*SMALL, *sizes, "MODEL.SparseRCNN.NUM_HEADS", stages]))


class State:
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        raise AssertionError("weights alone are loaded")


def checkpointer(model, folder="", classes=None):
    return SparseRCNNCheckpointer(model, str(folder), metadata={"class_names": classes}, trainer=State())


def start(model, path, classes, caplog):
    """Start a training of the model from a file; the table in the log, {part: [tensors, loaded, rest]}."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        checkpointer(model, classes=classes).resume_or_load(str(path), resume=False)
    rows = [line.strip("|").split("|") for line in caplog.text.splitlines() if line.startswith("|")]
    assert rows and not [r for r in caplog.records if r.levelno > logging.INFO]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows[2:]}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A checkpoint of 80 classes that does not say which, and its model."""
    trained = model()
    folder = tmp_path_factory.mktemp("published")
    torch.save({"model": trained.state_dict()}, folder / "model.pth")
    return SimpleNamespace(path=folder / "model.pth", state=trained.state_dict())


def test_classes_of_the_same_name_keep_their_rows(published, caplog):
    new = model(classes=3)
    before = {name: x.clone() for name, x in new.state_dict().items()}
    rows = start(new, published.path, ["cell", "dog", "person"], caplog)
    assert rows["class layers"] == ["4", "4", "dog, person of the file's 80 classes, cell afresh"]
    assert rows["head"][0] == rows["head"][1] and rows["bottom-up network"][2] == ""
    for name in ("head.head_series.0.class_logits.weight", "head.head_series.1.class_logits.bias"):
        now, old = new.state_dict()[name], published.state[name]
        assert torch.equal(now[1], old[COCO.index("dog")]) and torch.equal(now[2], old[COCO.index("person")])
        assert torch.equal(now[0], before[name][0])


def test_the_order_of_classes_may_change(tmp_path, caplog):
    trained, new = model(classes=3), model(classes=3)
    checkpointer(trained, tmp_path, classes=["a", "b", "c"]).save("model")
    start(new, tmp_path / "model.pth", ["c", "a", "b"], caplog)
    bias = "head.head_series.0.class_logits.weight"
    assert torch.equal(new.state_dict()[bias], trained.state_dict()[bias][[2, 0, 1]])


def test_unknown_classes_start_afresh(tmp_path, caplog):
    torch.save({"model": model(classes=5).state_dict()}, tmp_path / "model.pth")
    new = model(classes=3)
    before = new.head.head_series[0].class_logits.weight.clone()
    rows = start(new, tmp_path / "model.pth", ["a", "b", "c"], caplog)
    assert rows["class layers"] == ["4", "0", "4 start afresh; 4 of the file not used"]
    assert torch.equal(new.head.head_series[0].class_logits.weight, before)


@pytest.mark.parametrize("count", [30, 300])
def test_another_number_of_proposals(published, caplog, count):
    new = model(proposals=count)
    rows = start(new, published.path, COCO, caplog)
    assert rows["proposals"][:2] == ["2", "2"] and rows["proposals"][2].startswith(f"100 → {count}: ")
    kept = min(count, 100)
    assert torch.equal(
        new.init_proposal_features.weight[:kept], published.state["init_proposal_features.weight"][:kept]
    )


def test_too_many_proposals(published):
    with pytest.raises(InputError, match="NUM_PROPOSALS is 10001: 100 learned proposals give at most 10000"):
        checkpointer(model(proposals=10001)).resume_or_load(str(published.path), resume=False)


@pytest.mark.parametrize("source", ["necks/fpn", "sparsercnn.res50.100pro.3x"])
def test_from_an_fpn_to_panet(tmp_path, caplog, source):
    """PANet contains an FPN, whichever of the two implementations the weights are of."""
    trained, new = model(source), model("necks/panet")
    torch.save({"model": trained.state_dict()}, tmp_path / "model.pth")
    rows = start(new, tmp_path / "model.pth", COCO, caplog)
    assert rows["neck"] == ["28", "16", "12 start afresh"]
    assert rows["RoI routing"] == ["12", "0", "12 start afresh"]
    ours, theirs = new.state_dict(), trained.state_dict()
    for i in range(4):
        lateral = f"backbone.fpn_lateral{i + 2}.weight"
        lateral = lateral if lateral in theirs else f"backbone.neck.lateral.{i}.weight"
        assert torch.equal(ours[f"backbone.neck.fpn.lateral.{i}.weight"], theirs[lateral])
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith("head.head_series"))


def test_another_bottom_up_network_or_head_is_a_mistake(published):
    with pytest.raises(InputError, match="another architecture.*\n.*head.head_series.2"):
        checkpointer(model(stages=3)).resume_or_load(str(published.path), resume=False)


def test_an_evaluation_takes_only_what_fits(published):
    with pytest.raises(InputError, match="another architecture.*\n.*init_proposal"):
        SparseRCNNCheckpointer(model(proposals=30)).resume_or_load(str(published.path), resume=False)


def test_two_stage_detectors_and_anchors():
    """Rows of a class: K + 1 scores and 4 K deltas in Faster R-CNN, A K logits in EfficientDet."""
    torch.manual_seed(0)
    file = {
        "roi_heads.box_predictor.cls_score.weight": torch.rand(3, 5),
        "roi_heads.box_predictor.bbox_pred.weight": torch.rand(8, 5),
        "head.class_logits.pointwise.bias": torch.rand(6),
    }
    start = {
        "roi_heads.box_predictor.cls_score.weight": torch.zeros(4, 5),
        "roi_heads.box_predictor.bbox_pred.weight": torch.zeros(12, 5),
        "head.class_logits.pointwise.bias": torch.zeros(9),
    }
    scores, deltas, logits = fit_to_model(file, start, ["a", "b"], ["x", "b", "a"]).weights.values()
    given_scores, given_deltas, given_logits = file.values()
    assert torch.equal(scores[1:], given_scores[[1, 0, 2]]) and not scores[0].any()
    assert torch.equal(deltas.view(3, 4, 5)[1:], given_deltas.view(2, 4, 5)[[1, 0]]) and not deltas[:4].any()
    assert torch.equal(logits.view(3, 3)[:, 1:], given_logits.view(3, 2)[:, [1, 0]]) and not logits[::3].any()
