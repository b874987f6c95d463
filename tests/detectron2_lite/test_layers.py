"""Layers: wrappers, normalization, deformable convolutions, NMS, RoIAlign and box losses."""

import math

import pytest
import torch
import torch.multiprocessing as mp
from detectron2.layers import (
    BatchNorm2d,
    CNNBlockBase,
    Conv2d,
    DeformConv,
    DepthwiseSeparableConv2d,
    FrozenBatchNorm2d,
    ModulatedDeformConv,
    NaiveSyncBatchNorm,
    ROIAlign,
    ShapeSpec,
    batched_nms,
    cat,
    ciou_loss,
    cross_entropy,
    diou_loss,
    get_norm,
    nonzero_tuple,
    roi_align,
    shapes_to_tensor,
)
from torch import nn
from torch.nn import functional as F


def random_batch_norm(channels: int, seed: int = 0) -> nn.BatchNorm2d:
    generator = torch.Generator().manual_seed(seed)
    bn = nn.BatchNorm2d(channels, eps=1e-3)
    bn.weight.data.uniform_(0.5, 2, generator=generator)
    bn.bias.data.normal_(generator=generator)
    bn.running_mean.normal_(generator=generator)
    bn.running_var.uniform_(0.5, 2, generator=generator)
    return bn.eval()


def test_shape_spec_fields_are_optional_and_compare_by_value():
    assert ShapeSpec(channels=3, stride=4) == ShapeSpec(3, None, None, 4)
    assert ShapeSpec().channels is None


def test_conv_applies_norm_then_activation():
    torch.manual_seed(0)
    norm = random_batch_norm(4)
    conv = Conv2d(3, 4, 3, padding=1, bias=False, norm=norm, activation=F.relu)
    x = torch.randn(2, 3, 5, 7)
    expected = F.relu(norm(F.conv2d(x, conv.weight, padding=1)))
    torch.testing.assert_close(conv(x), expected)
    assert set(conv.state_dict()) == {"weight"} | {f"norm.{name}" for name in norm.state_dict()}


def test_conv_of_an_empty_batch_keeps_gradients():
    conv = Conv2d(3, 4, 3, padding=1, stride=2)
    out = conv(torch.zeros(0, 3, 8, 8))
    assert out.shape == (0, 4, 4, 4)
    out.sum().backward()
    assert torch.equal(conv.weight.grad, torch.zeros_like(conv.weight))


def test_conv_refuses_an_empty_batch_with_sync_batch_norm():
    conv = Conv2d(3, 4, 3, norm=nn.SyncBatchNorm(4))
    with pytest.raises(AssertionError, match="does not support empty inputs"):
        conv(torch.zeros(0, 3, 8, 8))


@pytest.mark.parametrize(
    "name, layer",
    [
        ("BN", BatchNorm2d),
        ("SyncBN", nn.SyncBatchNorm),
        ("nnSyncBN", nn.SyncBatchNorm),
        ("FrozenBN", FrozenBatchNorm2d),
        ("GN", nn.GroupNorm),
        ("naiveSyncBN", NaiveSyncBatchNorm),
        ("naiveSyncBN_N", NaiveSyncBatchNorm),
    ],
)
def test_get_norm_by_name(name, layer):
    assert type(get_norm(name, 64)) is layer


def test_get_norm_without_layer_callable_and_unknown():
    assert get_norm("", 8) is None
    assert get_norm(None, 8) is None
    assert get_norm(lambda channels: nn.GroupNorm(2, channels), 8).num_groups == 2
    assert get_norm("GN", 64).num_groups == 32
    with pytest.raises(KeyError):
        get_norm("NoSuchNorm", 8)


def test_layer_norm_normalizes_channels_of_each_pixel():
    norm = get_norm("LN", 6)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    x = torch.randn(2, 6, 3, 5)
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (6,), norm.weight, norm.bias, 1e-6).permute(0, 3, 1, 2)
    torch.testing.assert_close(norm(x), expected)


def test_a_new_frozen_batch_norm_is_the_identity():
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(FrozenBatchNorm2d(4)(x), x)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_frozen_batch_norm_equals_batch_norm_in_eval(requires_grad, training):
    bn = random_batch_norm(5)
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(bn).train(training)
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    x = torch.randn(2, 5, 4, 3)
    x1, x2 = (x.clone().requires_grad_(requires_grad) for _ in range(2))
    y1, y2 = bn(x1), frozen(x2)
    torch.testing.assert_close(y1, y2)
    if requires_grad:
        upstream = torch.randn_like(y1)
        y1.backward(upstream)
        y2.backward(upstream)
        torch.testing.assert_close(x1.grad, x2.grad)
    assert not list(frozen.parameters())
    assert all(torch.equal(before[k], v) for k, v in frozen.state_dict().items())


def test_convert_frozen_batch_norm_is_recursive_and_reversible():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), random_batch_norm(4), nn.Sequential(random_batch_norm(4, 1), nn.ReLU()))
    x = torch.randn(2, 3, 4, 4)
    expected = net.eval()(x)
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(net)
    assert [type(m) for m in (frozen[1], frozen[2][0])] == [FrozenBatchNorm2d] * 2
    assert frozen[1].eps == 1e-3
    torch.testing.assert_close(frozen(x), expected)


def test_frozen_batch_norm_loads_checkpoints_without_running_statistics():
    frozen = FrozenBatchNorm2d(4)
    affine = {"weight": torch.rand(4), "bias": torch.rand(4)}
    frozen.load_state_dict(affine)
    torch.testing.assert_close(frozen.weight, affine["weight"])
    torch.testing.assert_close(frozen.running_mean, torch.zeros(4))
    torch.testing.assert_close(frozen.running_var, torch.ones(4))


def test_frozen_batch_norm_saved_by_a_current_version_must_be_complete():
    state = FrozenBatchNorm2d(4).state_dict()
    assert set(state) == {"weight", "bias", "running_mean", "running_var"}
    del state["running_mean"]
    with pytest.raises(RuntimeError, match="running_mean"):
        FrozenBatchNorm2d(4).load_state_dict(state)


def _sync_batch_norm_worker(rank: int, stats_mode: str, batches: list[torch.Tensor], out_dir: str):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{out_dir}/init", rank=rank, world_size=len(batches)
    )
    norm = NaiveSyncBatchNorm(3, stats_mode=stats_mode)
    x = batches[rank].requires_grad_()
    y = norm(x)
    y.pow(3).sum().backward()
    torch.save([y.detach(), x.grad, norm.running_mean], f"{out_dir}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("quick_processes")
def test_naive_sync_batch_norm_weighs_workers_by_batch_size(tmp_path):
    """Over batches of 3 and 0 images it does what batch norm does on all of them."""
    x = torch.randn(3, 3, 4, 5, generator=torch.Generator().manual_seed(0)) + 2
    mp.spawn(_sync_batch_norm_worker, ("N", [x, x[:0]], str(tmp_path)), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]

    reference, x = nn.BatchNorm2d(3), x.clone().requires_grad_()
    y = reference(x)
    y.pow(3).sum().backward()
    torch.testing.assert_close(results[0][0], y.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(results[0][1], x.grad, atol=1e-4, rtol=1e-4)
    for rank in (0, 1):
        torch.testing.assert_close(results[rank][2], reference.running_mean)
    assert results[1][0].shape == (0, 3, 4, 5)


def test_freezing_a_block_stops_gradients_and_statistics():
    class Block(CNNBlockBase):
        def __init__(self):
            super().__init__(3, 4, 2)
            self.conv = Conv2d(3, 4, 3, stride=2, norm=get_norm("BN", 4))

    block = Block()
    assert (block.in_channels, block.out_channels, block.stride) == (3, 4, 2)
    assert block.freeze() is block
    assert not any(p.requires_grad for p in block.parameters())
    assert isinstance(block.conv.norm, FrozenBatchNorm2d)


def test_deformable_convolution_with_zero_offset_is_a_convolution():
    conv = DeformConv(4, 6, kernel_size=3, stride=2, padding=1, groups=2)
    x = torch.randn(2, 4, 7, 9)
    out = conv(x, torch.zeros(2, 9 * 2, 4, 5))
    assert conv.weight.shape == (6, 2, 3, 3)
    torch.testing.assert_close(out, F.conv2d(x, conv.weight, stride=2, padding=1, groups=2))


def test_modulated_deformable_convolution_weighs_the_kernel_points():
    conv = ModulatedDeformConv(4, 6, kernel_size=3, padding=1, deformable_groups=2)
    nn.init.normal_(conv.bias)
    x, mask = torch.randn(2, 4, 7, 9), torch.full((2, 2 * 9, 7, 9), 0.5)
    try:
        out = conv(x, torch.zeros(2, 2 * 9 * 2, 7, 9), mask)
    except NotImplementedError as e:
        pytest.skip(f"this detectron2 has no CPU kernel: {e}")
    torch.testing.assert_close(out, F.conv2d(x, conv.weight / 2, conv.bias, padding=1))


def test_deformable_convolution_reads_where_the_offset_points():
    conv = DeformConv(1, 1, kernel_size=1)
    nn.init.ones_(conv.weight)
    x = torch.arange(12.0).reshape(1, 1, 3, 4)
    offset = torch.zeros(1, 2, 3, 4)
    offset[:, 0], offset[:, 1] = 1, 0.5  # one row down, half a column right
    assert conv(x, offset)[0, 0, 0, 0] == 4.5


def test_deformable_convolution_repr():
    shared = "in_channels=3, out_channels=10, kernel_size=(3, 3)"
    assert repr(DeformConv(3, 10, kernel_size=3, padding=1)) == (
        f"DeformConv({shared}, stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1, deformable_groups=1, "
        "bias=False)"
    )
    assert repr(ModulatedDeformConv(3, 10, kernel_size=3, padding=1)) == (
        f"ModulatedDeformConv({shared}, stride=1, padding=1, dilation=1, groups=1, deformable_groups=1, bias=True)"
    )


def test_depthwise_separable_convolution():
    conv = DepthwiseSeparableConv2d(4, 6, norm1="BN", activation1=F.relu)
    x = torch.randn(2, 4, 5, 5)
    assert conv(x).shape == (2, 6, 5, 5)
    assert conv.depthwise.weight.shape == (4, 1, 3, 3) and conv.depthwise.bias is None
    assert conv.pointwise.weight.shape == (6, 4, 1, 1) and conv.pointwise.bias is not None


def test_cat_of_one_tensor_is_that_tensor():
    x = torch.rand(2, 3)
    assert cat([x]) is x
    assert cat([x, x], dim=1).shape == (2, 6)


def test_cross_entropy_over_nothing_is_zero_with_gradient():
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(0, dtype=torch.int64), reduction="mean")
    loss.backward()
    assert loss.item() == 0 and logits.grad.shape == (0, 5)
    logits, target = torch.randn(4, 5), torch.tensor([0, 1, 4, 2])
    assert torch.equal(cross_entropy(logits, target), F.cross_entropy(logits, target))


def test_nonzero_tuple_and_shapes_to_tensor():
    rows, columns = nonzero_tuple(torch.tensor([[0, 1], [2, 0]]))
    assert rows.tolist() == [0, 1] and columns.tolist() == [1, 0]
    assert shapes_to_tensor([3, 4]).tolist() == [3, 4]


def test_batched_nms_keeps_overlaps_between_groups():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 9, 10], [50, 50, 60, 60]], dtype=torch.float32)
    scores = torch.tensor([0.5, 0.9, 0.7, 0.6])
    assert batched_nms(boxes, scores, torch.tensor([0, 0, 1, 0]), 0.5).tolist() == [1, 2, 3]
    assert batched_nms(boxes, scores, torch.zeros(4, dtype=torch.int64), 0.5).tolist() == [1, 3]


def test_aligned_roi_align_has_no_half_pixel_shift():
    """On a ramp, a bin's value is the coordinate of its center; pixel i has its center at i + 0.5."""
    ramp = torch.arange(10.0).reshape(1, 1, 1, 10).expand(1, 1, 10, 10)
    rois = torch.tensor([[0, 2, 2, 6, 6]], dtype=torch.float32)
    aligned = ROIAlign((4, 4), 1.0, 0, aligned=True)(ramp, rois)[0, 0, 0]
    shifted = ROIAlign((4, 4), 1.0, 0, aligned=False)(ramp, rois)[0, 0, 0]
    torch.testing.assert_close(aligned, torch.tensor([2.0, 3, 4, 5]))
    torch.testing.assert_close(shifted, torch.tensor([2.5, 3.5, 4.5, 5.5]))
    torch.testing.assert_close(roi_align(ramp, rois, (4, 4), 1.0, 0, True)[0, 0, 0], aligned)


def test_roi_align_of_nothing_and_repr():
    pool = ROIAlign((7, 7), 0.25, 2)
    features = torch.zeros(1, 3, 8, 8, requires_grad=True)
    out = pool(features, torch.zeros(0, 5))
    assert out.shape == (0, 3, 7, 7)
    out.sum().backward()
    assert repr(pool) == "ROIAlign(output_size=(7, 7), spatial_scale=0.25, sampling_ratio=2, aligned=True)"
    with pytest.raises(AssertionError):
        pool(features, torch.zeros(2, 4))


def test_diou_and_ciou_by_hand():
    big, quarter = torch.tensor([[-1.0, -1, 1, 1]]), torch.tensor([[0.0, 0, 1, 1]])
    # IoU 1/4, squared center distance 1/2, squared diagonal of the enclosing box 8
    torch.testing.assert_close(diou_loss(big, quarter), torch.tensor([1 - 0.25 + 0.5 / 8]), atol=1e-5, rtol=0)
    torch.testing.assert_close(ciou_loss(big, quarter), torch.tensor([1 - 0.25 + 0.5 / 8]), atol=1e-5, rtol=0)
    wide = torch.tensor([[0.0, 0, 2, 1]])
    v = 4 / math.pi**2 * (math.atan(1) - math.atan(2)) ** 2
    alpha = v / (1 - 0.5 + v)
    expected = 1 - 0.5 + 0.25 / 5 + alpha * v
    torch.testing.assert_close(ciou_loss(wide, quarter), torch.tensor([expected]), atol=1e-5, rtol=0)
    assert diou_loss(big, big, reduction="sum").item() == pytest.approx(0, abs=1e-6)
