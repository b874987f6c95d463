import pytest
import torch
from torch import nn

from sparsercnn import load_config
from sparsercnn.engine import build_inference_model, build_model
from sparsercnn.errors import InputError
from sparsercnn.evaluation.proposal_count import with_proposals

OPTIONS = ["MODEL.DEVICE", "cpu", "MODEL.SparseRCNN.NUM_PROPOSALS", 8, "MODEL.SparseRCNN.NUM_HEADS", 1]


@pytest.fixture(params=["dense", "grid"])
def cfg(request):
    torch.manual_seed(0)
    return load_config("configs/quickstart.yaml", [*OPTIONS, "MODEL.SparseRCNN.PROPOSALS", request.param])


def test_as_many_detections_as_were_asked_for(cfg):
    model = build_model(cfg).eval()
    image = {"image": torch.randint(256, (3, 64, 64), dtype=torch.uint8)}
    cfg.TEST.NUM_PROPOSALS = 30
    for prepared in (True, False):
        cfg.TEST.PREPARE = prepared
        assert len(build_inference_model(cfg, model)([image])[0]["instances"]) == 30
    assert len(model([image])[0]["instances"]) == 8


def test_the_same_number_changes_nothing(cfg):
    model = build_model(cfg).eval()
    image = {"image": torch.randint(256, (3, 64, 64), dtype=torch.uint8)}
    same = with_proposals(model, 8)([image])[0]["instances"]
    assert torch.equal(same.pred_boxes.tensor, model([image])[0]["instances"].pred_boxes.tensor)


def test_what_cannot_be():
    with pytest.raises(InputError, match="is for SparseRCNN, not Linear"):
        with_proposals(nn.Linear(1, 1), 5)
    cfg = load_config("configs/quickstart.yaml", [*OPTIONS, "MODEL.SparseRCNN.PROPOSALS", "image"])
    with pytest.raises(InputError, match="TEST.NUM_PROPOSALS is 65: 8 learned proposals give at most 64"):
        with_proposals(build_model(cfg), 65)
