"""Two processes on the CPU compute what one process does with the whole batch."""

import json

import pytest
import torch
from detectron2.engine import launch
from detectron2.engine.defaults import create_ddp_model
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from sparsercnn import load_config
from sparsercnn.engine import TrainStep, build_optimizer

# Seed 0 puts an activation so close to the kink of a ReLU that rounding decides its gradient.
SEEDS = (1, 2, 3)
STEPS = len(SEEDS)
# SGD, because the first steps of AdamW follow the sign of a gradient, be it rounding error alone.
SMALL_MODEL = """
MODEL.DEVICE cpu MODEL.META_ARCHITECTURE SparseRCNN MODEL.BACKBONE.NAME build_resnet_fpn_backbone
MODEL.BACKBONE.FREEZE_AT 0 MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64
MODEL.RESNETS.OUT_FEATURES ['res2','res3','res4','res5'] MODEL.FPN.IN_FEATURES ['res2','res3','res4','res5']
MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_HEADS.IN_FEATURES ['p2','p3','p4','p5']
MODEL.SparseRCNN.NUM_CLASSES 3 MODEL.SparseRCNN.NUM_PROPOSALS 8 MODEL.SparseRCNN.HIDDEN_DIM 16
MODEL.SparseRCNN.NHEADS 4 MODEL.SparseRCNN.DIM_FEEDFORWARD 32 MODEL.SparseRCNN.DIM_DYNAMIC 8
MODEL.SparseRCNN.NUM_HEADS 2 SOLVER.OPTIMIZER SGD SOLVER.BASE_LR 0.05
SOLVER.CLIP_GRADIENTS.ENABLED True SOLVER.CLIP_GRADIENTS.CLIP_TYPE full_model
"""


def make_batch(seed):
    """Four images with 4, 1, 0 and 3 objects, so that the two processes have different numbers of them."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for num_boxes in (4, 1, 0, 3):
        corners = torch.rand(num_boxes, 2, generator=generator) * 32
        boxes = torch.cat([corners, corners + 8 + 20 * torch.rand(num_boxes, 2, generator=generator)], dim=1)
        classes = torch.randint(3, (num_boxes,), generator=generator)
        image = torch.randint(256, (3, 64, 64), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": Instances((64, 64), gt_boxes=Boxes(boxes), gt_classes=classes)})
    return batch


def train(accumulate):
    """Train a few steps and return the losses of each; every process takes its share of each batch."""
    torch.set_num_threads(1)
    cfg = load_config(options=SMALL_MODEL.split())
    torch.manual_seed(comm.get_rank())
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    model = create_ddp_model(model, broadcast_buffers=False, device_ids=None)
    images_per_turn = 4 // accumulate
    turns = [
        batch[start : start + images_per_turn][comm.get_rank() :: comm.get_world_size()]
        for batch in map(make_batch, SEEDS)
        for start in range(0, 4, images_per_turn)
    ]
    step = TrainStep(model, turns, optimizer, accumulate=accumulate)
    history = []
    with EventStorage() as storage:
        for step.iter in range(STEPS):
            step.run_step()
            history.append({k: v for k, (v, _) in storage.latest().items() if "loss" in k})
    return history


def train_in_each_way(path):
    """Write the losses without and with accumulation as JSON."""
    histories = train(1), train(2)
    if comm.is_main_process():
        path.write_text(json.dumps(histories))


@pytest.fixture(scope="module")
def expected():
    return train(1)


def assert_same_losses(history, expected):
    assert len(history) == STEPS and "loss_giou_0" in history[0]
    for step, reference in zip(history, expected, strict=True):
        assert step == pytest.approx(reference, rel=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="detectron2 gives each process a GPU where there are any")
@pytest.mark.usefixtures("quick_processes")
def test_two_processes_equal_one(tmp_path, expected):
    path = tmp_path / "losses.json"
    launch(train_in_each_way, 2, dist_url="auto", args=(path,))
    for history in json.loads(path.read_text()):
        assert_same_losses(history, expected)


def test_accumulation_equals_the_whole_batch(expected):
    assert_same_losses(train(2), expected)
