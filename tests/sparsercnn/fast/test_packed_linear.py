"""Linear layers with rearranged weights give what the plain ones give, also copied and saved."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sparsercnn.fast.packed_linear import PackedDynamicConv, PackedLinear, pack_linear_layers
from sparsercnn.fast.processor import has_onednn
from sparsercnn.modeling.head import DynamicConv

from ..models import small_model

pytestmark = pytest.mark.skipif(not has_onednn(torch.float32), reason="needs oneDNN")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12)])
def test_a_packed_layer_equals_the_plain_one(shape, dtype):
    if not has_onednn(dtype):
        pytest.skip(f"needs a CPU that computes in {dtype}")
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 7).to(dtype), torch.randn(shape).to(dtype)
    packed = PackedLinear(layer.weight, layer.bias, rows=5)
    for other in (packed, copy.deepcopy(packed)):
        assert_close(other(x), layer(x))


@torch.no_grad()
def test_a_packed_interaction_equals_the_plain_one():
    torch.manual_seed(0)
    conv = DynamicConv(hidden_dim=16, dim_dynamic=4, bins=9)
    objects, roi_features = torch.randn(2, 5, 16), torch.randn(10, 9, 16)
    packed = PackedDynamicConv(conv, rows=5)
    for ours, plain in zip(packed.matrices(objects), conv.matrices(objects), strict=True):
        assert ours.shape == plain.shape
        assert_close(ours, plain)
    assert_close(packed(objects, roi_features), conv(objects, roi_features), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_every_large_layer_of_a_head_is_packed_once():
    head = small_model().head
    pack_linear_layers(head, rows=10)
    for stage in head.head_series:
        assert isinstance(stage.inst_interact, PackedDynamicConv)
        assert all(isinstance(layer, PackedLinear) for layer in (stage.linear1, stage.linear2))
    assert not any("linear1.weight" in name for name in head.state_dict())
    torch.save(head.state_dict(), io.BytesIO())
