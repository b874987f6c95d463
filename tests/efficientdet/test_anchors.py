"""Where the anchors lie and how large they are."""

import pytest
import torch

from efficientdet import EfficientDetAnchors


def test_sizes_shapes_and_order():
    (boxes,) = EfficientDetAnchors([8])([torch.zeros(1, 1, 2, 3)])
    boxes = boxes.tensor.view(2, 3, 9, 4)
    rows, columns = torch.meshgrid(torch.tensor([4.0, 12]), torch.tensor([4.0, 12, 20]), indexing="ij")
    torch.testing.assert_close((boxes[..., 0] + boxes[..., 2]) / 2, columns[..., None].expand(-1, -1, 9))
    torch.testing.assert_close((boxes[..., 1] + boxes[..., 3]) / 2, rows[..., None].expand(-1, -1, 9))
    sizes = (32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3))
    expected = [(size * w, size * h) for size in sizes for w, h in ((1, 1), (1.4, 0.7), (0.7, 1.4))]
    torch.testing.assert_close(boxes[1, 2, :, 2:] - boxes[1, 2, :, :2], torch.tensor(expected))


def test_anchors_grow_with_the_stride_and_the_scale():
    small, large = EfficientDetAnchors([8, 16], scale=5.0, num_sizes=1)([torch.zeros(1, 1, 1, 1)] * 2)
    assert small.tensor[0].tolist() == [-16, -16, 24, 24] and large.tensor[0].tolist() == [-32, -32, 48, 48]
    assert EfficientDetAnchors([8, 16], num_sizes=2).num_anchors == [6, 6]


@pytest.mark.parametrize("model, scale", [("tf_efficientdet_d0", 4.0), ("tf_efficientdet_d7", 5.0)])
@pytest.mark.parametrize("image", [(256, 384), (512, 512)])
def test_equal_those_of_effdet(model, scale, image):
    reason = "the effdet package, which the anchors are compared with, is not installed"
    theirs = pytest.importorskip("effdet.anchors", reason=reason)
    configs = pytest.importorskip("effdet.config", reason=reason)
    config = configs.get_efficientdet_config(model)
    config.image_size = image
    strides = [8, 16, 32, 64, 128]
    maps = [torch.zeros(1, 1, image[0] // stride, image[1] // stride) for stride in strides]
    ours = torch.cat([boxes.tensor for boxes in EfficientDetAnchors(strides, scale)(maps)])
    torch.testing.assert_close(ours[:, [1, 0, 3, 2]], theirs.Anchors.from_config(config).boxes, rtol=1e-6, atol=1e-4)
