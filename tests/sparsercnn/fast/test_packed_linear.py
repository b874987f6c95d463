"""Linear layers with rearranged weights give what plain ones give."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sparsercnn import DynamicHead
from sparsercnn.fast.packed_linear import PackedLinear, pack_linear_layers
from sparsercnn.fast.processor import has_onednn
from sparsercnn.modeling.head import RefinementStage
from sparsercnn.modeling.pooler import FusedPooler
from sparsercnn.modeling.roi_routing import LevelRouting

pytestmark = pytest.mark.skipif(not has_onednn(torch.bfloat16), reason="needs a CPU that computes in bfloat16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 7, 300])
@torch.inference_mode()
def test_packed_layers(dtype, rows):
    torch.manual_seed(0)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    layer = nn.Linear(40, 24).to(dtype)
    x = torch.randn(2, rows, 40)
    packed = PackedLinear(layer, rows=100)
    for one in (packed, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert_close(one(x), layer(x.to(dtype)), **close)


@torch.inference_mode()
def test_packed_head():
    torch.manual_seed(0)
    stage = RefinementStage(32, 3, 4, 64, 8, 1, 3)
    head = DynamicHead(routing=LevelRouting(FusedPooler([4, 8]), 32), stages=[stage, stage])  # sharing their weights
    objects, roi_features = torch.randn(2, 10, 32), torch.randn(20, 49, 32)
    expected = stage(objects, roi_features)
    pack_linear_layers(head, rows=10)
    packed = [name for name, module in stage.named_modules() if isinstance(module, PackedLinear)]
    assert packed == ["inst_interact.dynamic_layer", "inst_interact.out_layer", "linear1", "linear2"]
    for found, wanted in zip(stage(objects, roi_features), expected, strict=True):
        assert_close(found, wanted, rtol=1e-4, atol=1e-5)
