"""The detectors that are compared, and inputs for them."""

import argparse
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import box_convert

import sparsercnn
from sparsercnn import SparseRCNN

CONFIGS = Path(__file__).parents[1] / "configs"


def add_config_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config options for baseline and ours alike")


def load_config(name: str, args: argparse.Namespace) -> CfgNode:
    """`configs/NAME` with the options and the device of `args`, and random weights."""
    return sparsercnn.load_config(CONFIGS / name, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", args.device, *args.opts])


def baseline_config(cfg: CfgNode) -> CfgNode:
    """The same detector as detectron2's parts make it, without any of our switches for speed."""
    cfg = cfg.clone()
    cfg.MODEL.ROI_ROUTING.POOLER = "ROIPooler"
    cfg.SOLVER.FAST = False
    return cfg


@torch.no_grad()
def act_trained(model: SparseRCNN, generator: torch.Generator) -> None:
    """Make random weights behave in two respects as trained ones do, in place.

    Fresh proposals all cover the whole image, and fresh deltas move each box by its own size in every stage, which
    blows rounding errors up. Trained ones have all sizes, and small deltas.
    """
    boxes = random_boxes(len(model.init_proposal_boxes.weight), 1.0, 1.0, generator)
    model.init_proposal_boxes.weight.copy_(box_convert(boxes, "xyxy", "cxcywh"))
    for stage in model.head.head_series:
        stage.bboxes_delta.weight.mul_(0.05)


def random_boxes(count: int, height: float, width: float, generator: torch.Generator) -> Tensor:
    """(count, 4) xyxy boxes inside an image: sqrt(w·h) log-uniform from 2 to 80 % of the shorter side, w/h of 1/2 to 2.

    On an 800×1216 image these are 16 to 640 pixels, of which p2 gets about half, p3 and p4 a fifth each, p5 the rest.
    """
    uniform = torch.rand(4, count, generator=generator)
    size = min(height, width) * 0.02 * 40 ** uniform[0]
    aspect = 2 ** (uniform[1] - 0.5)
    w, h = (size * aspect).clamp(max=width), (size / aspect).clamp(max=height)
    x, y = uniform[2] * (width - w), uniform[3] * (height - h)
    return torch.stack([x, y, x + w, y + h], dim=1)


def random_images(count: int, height: int, width: int, generator: torch.Generator, device: str = "cpu") -> list[dict]:
    """Inputs of a detector: uint8 noise."""
    images = torch.randint(256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
    return [{"image": image} for image in images.to(device)]


def random_targets(
    count: int, objects: int, height: int, width: int, num_classes: int, generator: torch.Generator
) -> list[Instances]:
    targets = []
    for _ in range(count):
        target = Instances((height, width))
        target.gt_boxes = Boxes(random_boxes(objects, height, width, generator))
        target.gt_classes = torch.randint(num_classes, (objects,), generator=generator)
        targets.append(target)
    return targets
