"""What the outputs of an evaluation depend on, in a few digits: outputs under the same digest are the same."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from ..files import file_digest

# Of the config, what decides about outputs.
SECTIONS = ("MODEL", "INPUT", "TEST")
# Where the programs are that compute them.
PACKAGES = ("sparsercnn", "necks", "efficientdet")
DIGITS = 16


def evaluation_digest(cfg: CfgNode, model: nn.Module, dataset_name: str, way: str = "") -> str:
    """The digest of a model's weights, its settings, a data set, and the programs that compute outputs from them.

    Of a data set, its annotations count, not the pixels.

    Args:
        cfg: the config.
        model: whose weights are loaded.
        dataset_name: a registered data set.
        way: of evaluating, where config and model leave a choice.
    """
    digest = hashlib.sha256(way.encode())
    for part in _parts(cfg, model, dataset_name):
        digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()[:DIGITS]


def _parts(cfg: CfgNode, model: nn.Module, dataset_name: str) -> Iterator[bytes | memoryview]:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = ""  # the weights themselves count
    yield from (cfg[section].dump().encode() for section in SECTIONS)
    for name, tensor in model.state_dict().items():
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    json_file = MetadataCatalog.get(dataset_name).get("json_file")
    if json_file and os.path.isfile(json_file):
        with open(json_file, "rb") as file:
            yield file_digest(file).encode()
    else:
        yield json.dumps(DatasetCatalog.get(dataset_name), default=str).encode()
    device = next(model.parameters()).device
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    yield f"{torch.__version__} {detectron2.__version__} {hardware}".encode()
    for package in PACKAGES:
        yield from (source.read_bytes() for source in sorted((Path(__file__).parents[2] / package).rglob("*.py")))
