"""A model prepared for training gives the losses and gradients of the plain one."""

import copy
import pickle
from functools import partial
from unittest import mock

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BasicBlock
from detectron2.structures import Boxes, Instances
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch.testing import assert_close

from sparsercnn import prepare_for_inference
from sparsercnn.fast import trained_convolution
from sparsercnn.fast.inference import build_inference_model
from sparsercnn.fast.training import prepare_for_training
from sparsercnn.modeling.gradient_checkpointing import checkpoint_gradients

from ..models import image, small_config

PLAIN = {"CHANNELS_LAST": False, "FOLD_FROZEN_BN": False, "CPU_KERNELS": False, "GRADIENT_CHECKPOINTING": False}


def config(norm="FrozenBN", compile=False, **switches):
    cfg = small_config()
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    cfg.MODEL.update(PLAIN | switches)
    cfg.SOLVER.COMPILE = compile
    return cfg


def model(cfg, prepare=True):
    torch.manual_seed(0)
    built = build_model(cfg)
    for module in built.modules():
        if isinstance(module, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.normal_(module.bias, std=0.2)
    if prepare:
        prepare_for_training(cfg, built)
    return built.train()


def batch(sizes=((64, 96), (70, 64))):
    targets = {
        "gt_boxes": Boxes(torch.tensor([[4.0, 4, 40, 50], [10, 20, 30, 60]])),
        "gt_classes": torch.tensor([0, 2]),
    }
    return [{"image": image(s, seed=i), "instances": Instances(s, **targets)} for i, s in enumerate(sizes)]


def losses_and_gradients(built, inputs=None):
    losses = built(inputs or batch())
    built.zero_grad()
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in built.named_parameters() if p.grad is not None}


def assert_same_training(ours, plain, inputs=None):
    losses, gradients = losses_and_gradients(ours, inputs)
    expected_losses, expected_gradients = losses_and_gradients(plain, inputs)
    assert_close(dict(losses), dict(expected_losses), rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    largest = max(g.norm() for g in expected_gradients.values())
    for name, expected in expected_gradients.items():
        assert (gradients[name] - expected).norm() <= 1e-4 * expected.norm() + 1e-7 * largest, name


ALL = dict.fromkeys(PLAIN, True)
SWITCHES = [
    {"CHANNELS_LAST": True},
    {"FOLD_FROZEN_BN": True},
    {"GRADIENT_CHECKPOINTING": True},
    {"CHANNELS_LAST": True, "CPU_KERNELS": True},
    ALL,
]


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "+".join(s))
@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_each_switch_keeps_losses_and_gradients(switches, norm):
    ours, plain = model(config(norm, **switches)), model(config(norm), prepare=False)
    assert_same_training(ours, plain)
    state, expected = ours.state_dict(), plain.state_dict()
    assert list(state) == list(expected)
    # Also the running statistics of batch norms after this step.
    assert_close(state, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_winograd_keeps_losses_and_gradients(norm, monkeypatch):
    """In double precision, where no rounding takes activations across the kink of a ReLU."""
    monkeypatch.setattr(trained_convolution, "suits_winograd", is_plain_3x3)
    by_winograd = mock.Mock(wraps=trained_convolution.weight_gradient)
    monkeypatch.setattr(trained_convolution, "weight_gradient", by_winograd)
    ours, plain = model(config(norm, **ALL)).double(), model(config(norm), prepare=False).double()
    assert_same_training(ours, plain, batch(((128, 192), (160, 128))))
    by_winograd.assert_called()


def is_plain_3x3(conv):
    return conv.kernel_size == (3, 3) and conv.stride == conv.padding == conv.dilation == (1, 1) and conv.groups == 1


def test_defaults_switch_on_what_is_exact():
    cfg = small_config().MODEL
    assert cfg.CHANNELS_LAST and cfg.FOLD_FROZEN_BN and cfg.CPU_KERNELS and not cfg.GRADIENT_CHECKPOINTING


def test_channels_last_reaches_the_features():
    built = model(config(CHANNELS_LAST=True))
    features = built.backbone(built.preprocess_image(batch()).tensor)
    assert all(f.is_contiguous(memory_format=torch.channels_last) for f in features.values())


def test_frozen_stages_keep_nothing_for_the_backward_pass():
    built = model(config(CHANNELS_LAST=True, FOLD_FROZEN_BN=True, GRADIENT_CHECKPOINTING=True))
    res2 = built.backbone.bottom_up(built.preprocess_image(batch()).tensor)["res2"]
    assert not res2.requires_grad


@pytest.mark.parametrize("module", ["refinement stage", "ResNet stage", "stem"])
def test_checkpointing_keeps_less_for_the_backward_pass(module):
    def kept(cfg):
        built, seen = model(cfg), {}
        if module == "refinement stage":
            run, inputs = built.head.head_series[1], (torch.randn(2, 10, 32), torch.randn(20, 49, 32))
        elif module == "ResNet stage":
            run, inputs = built.backbone.bottom_up.res4, (torch.randn(2, 128, 16, 16),)
        else:
            run, inputs = built.backbone.bottom_up.stem, (torch.randn(2, 3, 32, 32),)
        inputs = [x.requires_grad_() for x in inputs]
        parameters = {p.data_ptr() for p in built.parameters()}

        def note(t):
            if t.data_ptr() not in parameters:
                seen[t.data_ptr()] = t  # held, so that no address comes twice
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            run(*inputs)
        return sum(t.numel() for t in seen.values())

    assert kept(config(GRADIENT_CHECKPOINTING=True)) < 0.5 * kept(config())


def test_checkpointing_keeps_two_maps_of_a_resnet_stage():
    stage, kept = model(config(GRADIENT_CHECKPOINTING=True)).backbone.bottom_up.res4, []
    x = torch.randn(2, 128, 16, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        y = stage(x)
    assert kept == [x.shape, y.shape]  # the inputs of its halves, the second as large as the output


def test_prepared_models_can_be_evaluated_copied_and_pickled():
    cfg = config(**ALL)
    trained, plain = model(cfg).eval(), model(config(), prepare=False).eval()
    inputs = [{"image": image((64, 96))}]
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
    cfg = config(CHANNELS_LAST=True, FOLD_FROZEN_BN=True)
    built = model(cfg)
    expected = built(batch())
    seen = {}
    built.criterion.register_forward_hook(lambda _, inputs, output: seen.update(boxes=inputs[1], losses=output))
    with torch.autocast("cpu", torch.bfloat16):
        losses = built(batch())
    sum(losses.values()).backward()
    assert seen["boxes"].dtype == torch.float32
    assert {loss.dtype for loss in seen["losses"].values()} == {torch.float32}
    assert all(p.grad.isfinite().all() for p in built.parameters() if p.grad is not None)
    assert_close(sum(losses.values()), sum(expected.values()), rtol=0.05, atol=0)


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="this torch cannot fail on recompilation")
def test_compiled_training_is_the_same_for_all_image_sizes():
    # Generating machine code takes minutes; all that comes before it is what can go wrong in a model.
    with mock.patch("torch.compile", partial(torch.compile, backend="aot_eager")):
        ours = model(config(CHANNELS_LAST=True, FOLD_FROZEN_BN=True, compile=True))
    plain = model(config(CHANNELS_LAST=True, FOLD_FROZEN_BN=True))
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert_same_training(ours, plain, batch(((64, 96), (70, 160))))
    # Whether images are square and the coarsest level odd are variants of their own, so both batches agree in that.
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_same_training(ours, plain, batch(((130, 200), (160, 100))))


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_compiled_training_recomputes(norm):
    operators = []

    def record(graph, inputs):
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return aot_eager(graph, inputs)

    with mock.patch("torch.compile", partial(torch.compile, backend=record)):
        ours = model(config(norm, compile=True, **ALL))
    plain = model(config(norm))
    assert_same_training(ours, plain)
    assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)  # running statistics too
    pieces = 1 + 2 * 4 + 2  # the stem, halves of ResNet stages, refinement stages
    assert operators.count("tag_activation_checkpoint") >= pieces


def test_checkpointing_reaches_blocks_that_are_called_one_by_one():
    blocks = nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 4))
    checkpoint_gradients(blocks)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        y = x = torch.randn(1, 4, 8, 8, requires_grad=True)
        for block in blocks:
            y = block(y)
    assert kept == [x.shape, x.shape]


@pytest.mark.parametrize("prepare", [True, False])
def test_evaluation_does_not_take_over_the_kernels_of_training(prepare, monkeypatch):
    cfg = config(**ALL)
    cfg.TEST.PREPARE, cfg.TEST.WINOGRAD = prepare, False
    trained = model(cfg)
    monkeypatch.setattr(trained_convolution, "_choose_on_cpu", None)
    build_inference_model(cfg, trained)([{"image": image((64, 96))}])
    with pytest.raises(TypeError):
        trained(batch())
