"""Gradient checkpointing keeps less for the backward pass, and neither losses, gradients nor statistics change."""

import copy

import pytest
import torch
from detectron2.modeling.backbone.resnet import BasicBlock
from torch import nn
from torch.testing import assert_close

from sparsercnn.engine.gradient_checkpointing import checkpoint_gradients

from ..models import assert_same_training, small_detector, training_batch


def checkpointed(detector):
    detector = copy.deepcopy(detector)
    checkpoint_gradients(detector)
    return detector


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_losses_gradients_and_statistics_stay(norm):
    plain = small_detector(norm).double()
    ours = checkpointed(plain)
    assert_same_training(ours, plain)
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-10, atol=1e-10)


def test_frozen_stages_keep_nothing_for_the_backward_pass():
    built = checkpointed(small_detector())
    res2 = built.backbone.bottom_up(built.preprocess_image(training_batch()).tensor)["res2"]
    assert not res2.requires_grad


def kept(run, *inputs):
    """Tensors that autograd holds after `run`, those of the parameters not counted."""
    seen = {}
    inputs = [x.requires_grad_() for x in inputs]

    def note(t):
        seen[t.data_ptr()] = t  # held, so that no address comes twice
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        run(*inputs)
    return seen


@pytest.mark.parametrize("part", ["head", "ResNet stage", "stem"])
def test_less_is_kept_for_the_backward_pass(part):
    def size(detector):
        if part == "head":
            pyramid = [torch.randn(2, 32, 64 // 2**i, 64 // 2**i) for i in range(4)]
            inputs = (*pyramid, torch.tensor([0.0, 0, 90, 90]).expand(2, 10, 4).contiguous(), torch.randn(10, 32))
            seen = kept(lambda *x: detector.head(list(x[:4]), *x[4:]), *inputs)
        elif part == "ResNet stage":
            seen = kept(detector.backbone.bottom_up.res4, torch.randn(2, 128, 16, 16))
        else:
            seen = kept(detector.backbone.bottom_up.stem, torch.randn(2, 3, 32, 32))
        parameters = {p.data_ptr() for p in detector.parameters()}
        return sum(t.numel() for address, t in seen.items() if address not in parameters)

    detector = small_detector()
    assert size(checkpointed(detector)) < 0.6 * size(detector)


def test_two_maps_of_a_resnet_stage_are_kept():
    stage, shapes = checkpointed(small_detector()).backbone.bottom_up.res4, []
    x = torch.randn(2, 128, 16, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(t.shape) or t, lambda t: t):
        y = stage(x)
    assert shapes == [x.shape, y.shape]  # the inputs of its halves, the second as large as the output


def test_blocks_that_are_called_one_by_one_are_pieces():
    blocks = nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 4))
    checkpoint_gradients(blocks)
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(t.shape) or t, lambda t: t):
        y = x = torch.randn(1, 4, 8, 8, requires_grad=True)
        for block in blocks:
            y = block(y)
    assert shapes == [x.shape, x.shape]


def test_evaluation_is_the_same():
    plain = small_detector().eval()
    ours = checkpointed(plain)
    inputs = [{"image": x["image"]} for x in training_batch()]
    with torch.no_grad():
        for found, expected in zip(ours(inputs), plain(inputs), strict=True):
            assert torch.equal(found["instances"].scores, expected["instances"].scores)
