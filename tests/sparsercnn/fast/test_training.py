"""A model prepared for training gives the losses and gradients of the plain one."""

import copy
import pickle
from unittest import mock

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sparsercnn import prepare_for_inference
from sparsercnn.fast import training_convolution
from sparsercnn.fast.training import prepare_for_training

from ..models import assert_same_training, image, small_detector, training_batch


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_losses_and_gradients_stay(norm, monkeypatch):
    """In double precision, where no rounding takes activations across the kink of a ReLU."""
    monkeypatch.setattr(training_convolution, "suits_winograd", is_plain_3x3)
    by_winograd = mock.Mock(wraps=training_convolution.weight_gradient)
    monkeypatch.setattr(training_convolution, "weight_gradient", by_winograd)
    plain = small_detector(norm).double()
    ours = copy.deepcopy(plain)
    prepare_for_training(ours)
    state, expected = ours.state_dict(), plain.state_dict()
    assert list(state) == list(expected)
    assert_same_training(ours, plain, training_batch(((128, 192), (160, 128))))
    by_winograd.assert_called()
    # Also the running statistics of batch norms after this step.
    assert_close(state, expected, rtol=1e-8, atol=1e-8)


def is_plain_3x3(conv):
    return conv.kernel_size == (3, 3) and conv.stride == conv.padding == conv.dilation == (1, 1) and conv.groups == 1


def test_channels_last_reaches_the_features():
    built = small_detector()
    prepare_for_training(built)
    features = built.backbone(built.preprocess_image(training_batch()).tensor)
    assert all(f.is_contiguous(memory_format=torch.channels_last) for f in features.values())


def test_prepared_models_can_be_evaluated_copied_and_pickled():
    trained = small_detector()
    plain = copy.deepcopy(trained).eval()
    prepare_for_training(trained)
    trained.eval()
    inputs = [{"image": image((64, 96))}]
    with torch.no_grad():
        expected = plain(inputs)[0]["instances"]
    for other in (trained, copy.deepcopy(trained), pickle.loads(pickle.dumps(trained)), prepare_for_inference(trained)):
        with torch.no_grad():
            found = other(inputs)[0]["instances"]
        assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
    clone = copy.deepcopy(trained)
    nn.init.zeros_(clone.head.head_series[-1].class_logits.weight)
    with torch.no_grad():
        assert not torch.equal(clone(inputs)[0]["instances"].scores, expected.scores)


def test_bfloat16_is_close_and_computes_boxes_and_losses_in_float32():
    built = small_detector()
    prepare_for_training(built)
    expected = built(training_batch())
    seen = {}
    built.criterion.register_forward_hook(lambda _, inputs, output: seen.update(boxes=inputs[1], losses=output))
    with torch.autocast("cpu", torch.bfloat16):
        losses = built(training_batch())
    sum(losses.values()).backward()
    assert seen["boxes"].dtype == torch.float32
    assert {loss.dtype for loss in seen["losses"].values()} == {torch.float32}
    assert all(p.grad.isfinite().all() for p in built.parameters() if p.grad is not None)
    assert_close(sum(losses.values()), sum(expected.values()), rtol=0.05, atol=0)
