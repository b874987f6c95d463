"""The finest level, convolved where boxes read it, gives what the whole level gives."""

from unittest import mock

import pytest
import torch
from detectron2.layers import Conv2d
from detectron2.modeling import build_model
from torch.testing import assert_close

from sparsercnn import SparseRCNN, prepare_for_inference
from sparsercnn.fast.convolution import FastConv2d
from sparsercnn.fast.inference import Parts, prepare_parts
from sparsercnn.fast.on_demand import OnDemandPooler, convolve_tiles
from sparsercnn.fast.processor import has_onednn
from sparsercnn.modeling.pooler import FusedPooler, Pyramid
from sparsercnn.modeling.roi_routing import assign_levels
from sparsercnn.visualization.stages import predict_stages

from ..models import image, small_config

pytestmark = pytest.mark.skipif(not has_onednn(torch.bfloat16), reason="needs a CPU that computes in bfloat16")

STRIDES = [4, 8]
SMALL = [[3.0, 5.0, 20.0, 14.0], [30.0, 20.0, 60.0, 47.0]]
LARGE = [[0.0, 0.0, 300.0, 260.0]]
OUTSIDE = [[-40.0, -10.0, -5.0, 20.0], [60.0, 40.0, 200.0, 90.0], [9.0, 9.0, 9.0, 9.0], [30.0, 20.0, 10.0, 5.0]]
ALL = [[0.0, 0.0, 72.0, 52.0]]


def poolers(channels: int, dtype: torch.dtype):
    """Ours, and a function of features and boxes that convolves the whole level."""
    torch.manual_seed(0)
    conv = Conv2d(channels, channels, 3, padding=1).to(dtype)
    plain = FusedPooler(STRIDES)

    def expected(features, boxes):
        return pool(plain, plain.prepare([conv(features[0]), features[1]]), boxes)

    return OnDemandPooler(plain, FastConv2d(conv)), expected


def pool(pooler: FusedPooler, pyramid: Pyramid, boxes: torch.Tensor) -> torch.Tensor:
    return pooler.pool(pyramid, boxes, assign_levels(boxes, range(2, 4)) - 2)


def pyramid(channels: int, dtype: torch.dtype, batch: int = 2):
    sizes = (13, 18), (7, 9)
    return [torch.randn(batch, channels, *s).to(dtype, memory_format=torch.channels_last) for s in sizes]


def batch_of(*boxes):
    return torch.stack([torch.tensor(b) for b in boxes])


@pytest.mark.parametrize(("channels", "dtype"), [(128, torch.float32), (256, torch.bfloat16)], ids=str)
@torch.inference_mode()
def test_pools_what_the_whole_level_gives(channels, dtype):
    ours, expected = poolers(channels, dtype)
    features = pyramid(channels, dtype)
    table = ours.prepare(features)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.03, "atol": 0.03}
    stages = [batch_of(LARGE, LARGE), batch_of(SMALL, SMALL[::-1]), batch_of(OUTSIDE, OUTSIDE), batch_of(ALL, ALL)]
    for boxes in stages + stages:
        assert_close(pool(ours, table, boxes), expected(features, boxes), **close)


@torch.inference_mode()
def test_computes_what_is_read_once():
    ours, _ = poolers(128, torch.float32)
    table = ours.prepare(pyramid(128, torch.float32, batch=1))
    all_tiles = 4 * 5
    with mock.patch("sparsercnn.fast.on_demand.convolve_tiles", wraps=convolve_tiles) as convolve:
        pool(ours, table, batch_of(LARGE))
        convolve.assert_not_called()
        pool(ours, table, batch_of(SMALL[:1]))
        # x from 0.25 to 4.5 and y from 0.75 to 3, in pixels of the level
        assert convolve.call_args.args[1].tolist() == [[0, 0, 0], [0, 0, 1]]
        pool(ours, table, batch_of(SMALL[:1]))
        assert convolve.call_count == 1
        pool(ours, table, batch_of(SMALL[1:]))
        assert convolve.call_count == 2 and len(convolve.call_args.args[1]) < all_tiles / 2
        pool(ours, table, batch_of(ALL))
        assert sum(len(call.args[1]) for call in convolve.call_args_list) == all_tiles


def detector(**options):
    torch.manual_seed(0)
    cfg = small_config()
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.SparseRCNN.HIDDEN_DIM = 128
    cfg.merge_from_list([x for item in options.items() for x in item])
    model = build_model(cfg).eval()
    for stage in model.head.head_series:
        torch.nn.init.normal_(stage.bboxes_delta.weight, std=0.02)
    # Boxes of many sizes; the whole image, where training starts, would read the highest level only.
    centers, sizes = torch.rand(cfg.MODEL.SparseRCNN.NUM_PROPOSALS, 2), torch.logspace(-1.3, 0, 10)[:, None]
    model.init_proposal_boxes.weight.data = torch.cat([centers, sizes, sizes], dim=1)
    return model


@pytest.mark.parametrize(
    ("options", "is_on_demand"),
    [
        ({}, True),
        ({"MODEL.FPN.FUSE_TYPE": "avg"}, True),
        ({"MODEL.ROI_HEADS.IN_FEATURES": ["p2"]}, True),
        ({"MODEL.ROI_ROUTING.CANONICAL_LEVEL": 5, "MODEL.ROI_ROUTING.CANONICAL_BOX_SIZE": 200}, True),
        ({"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 5, "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 1}, True),
        ({"MODEL.ROI_HEADS.IN_FEATURES": ["p3", "p4"]}, True),
        ({"MODEL.ROI_ROUTING.MODE": "adaptive"}, False),
        ({"MODEL.ROI_ROUTING.POOLER": "ROIPooler"}, False),
        ({"MODEL.FPN.OUT_CHANNELS": 64, "MODEL.SparseRCNN.HIDDEN_DIM": 64}, False),
        ({"MODEL.FPN.IN_FEATURES": ["res5"], "MODEL.ROI_HEADS.IN_FEATURES": ["p5"]}, False),
    ],
    ids=str,
)
@torch.no_grad()
def test_detectors_give_the_same(options, is_on_demand):
    model = detector(**{"MODEL.FPN.NORM": "BN", "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"], **options})
    inputs = [{"image": image((160, 224), 1)}, {"image": image((128, 256), 2)}]
    on_demand = prepare_for_inference(model)
    whole = prepare_parts(model, torch.float32, compile=False, parts=Parts(on_demand=False))
    assert isinstance(on_demand.model.head.routing.pooler, OnDemandPooler) == is_on_demand
    assert not isinstance(whole.model.head.routing.pooler, OnDemandPooler)
    for ours in (on_demand, whole):
        for found, expected in zip(ours(inputs), model(inputs), strict=True):
            found, expected = found["instances"], expected["instances"]
            assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
            assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=0.05)


@torch.no_grad()
def test_half_precision_gives_nearly_the_same():
    model = detector(**{"MODEL.FPN.OUT_CHANNELS": 256, "MODEL.SparseRCNN.HIDDEN_DIM": 256})
    inputs = [{"image": image((160, 224), 1)}, {"image": image((128, 256), 2)}]
    prepared = prepare_for_inference(model, torch.bfloat16)
    assert isinstance(prepared.model.head.routing.pooler, OnDemandPooler)
    for found, expected in zip(prepared.run(predict_stages, inputs), predict_stages(model, inputs), strict=True):
        found, expected = found[-1], expected[-1]
        assert (found.scores - expected.scores).abs().max() < 0.02
        assert (found.pred_boxes.tensor - expected.pred_boxes.tensor).abs().median() < 1


def test_without_winograd_the_level_is_computed_whole():
    prepared = prepare_parts(detector(), torch.float32, compile=False, parts=Parts(winograd=False))
    assert not isinstance(prepared.model.head.routing.pooler, OnDemandPooler)


def test_detectors_that_read_the_level_themselves_keep_it():
    class MaskedRCNN(SparseRCNN):
        """As if it had a mask head on p2."""

    model = detector()
    model.__class__ = MaskedRCNN
    x = torch.rand(1, 3, 64, 64)
    p2 = prepare_for_inference(model).model.backbone(x)["p2"]
    assert_close(p2, model.backbone(x)["p2"], rtol=1e-4, atol=1e-4)
