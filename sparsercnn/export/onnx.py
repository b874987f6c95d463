"""ONNX: one file of standard operators for any number and size of pictures, which says itself how to use it."""

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from ..architectures import package_errors
from ..errors import InputError
from .graph import DetectionGraph

OPSET = 18
INPUTS, OUTPUTS = ("images", "sizes"), ("boxes", "scores", "classes")

# Height and width of the pictures that an export is compared with PyTorch on, a batch in each row.
VERIFIED_SIZES = (((224, 320),), ((333, 200), (160, 310)), ((97, 131), (64, 64), (250, 90)))

# Scores of a cascade agree to about 1e-6 and boxes to some hundredths of a pixel.
SCORE_TOLERANCE = 1e-4
BOX_TOLERANCE = 0.1  # pixels
IOU_TOLERANCE = 1e-3

# More images than this are no batch, more multiples of the divisor no picture.
MAX_BATCH, MAX_MULTIPLE = 1024, 2048


def program(graph: DetectionGraph) -> torch.export.ExportedProgram:
    """The graph of `torch.export`, for any batch, height and width."""
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    height, width = (torch.export.Dim(name, min=1, max=MAX_MULTIPLE) for name in ("rows", "columns"))
    images, sizes = next(example_batches(graph.divisor, (((96, 130), (70, 160), (128, 99)),)))
    shapes = {0: batch, 1: graph.divisor * height, 2: graph.divisor * width}
    with torch.no_grad(), package_errors():
        return torch.export.export(graph, (images, sizes), dynamic_shapes=(shapes, {0: batch}), strict=False)


def export_onnx(graph: DetectionGraph, path: Path, metadata: dict[str, str]) -> None:
    """Write `path`, after the file has given PyTorch's detections in onnxruntime on pictures of several sizes.

    Args:
        graph: the detector.
        path: of the file, which appears when it is complete and verified.
        metadata: texts that the file carries, by name.

    Raises:
        InputError: a library is missing, or the exported graph does not give what PyTorch gives.
    """
    onnx = _library("onnx")
    runtime = _library("onnxruntime")
    _library("onnxscript")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parts of the libraries that call each other's deprecated parts
        exported = torch.onnx.export(
            program(graph), input_names=INPUTS, output_names=OUTPUTS, opset_version=OPSET, dynamo=True, verbose=False
        )
    assert exported is not None
    model = exported.model_proto
    model.doc_string = "Object detection; sparsercnn_runtime.OnnxDetector runs it."
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    partial = path.with_name(f"{path.name}.partial")
    onnx.save(model, str(partial))
    try:
        session = runtime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        for images, sizes in example_batches(graph.divisor, VERIFIED_SIZES):
            found = session.run(list(OUTPUTS), dict(zip(INPUTS, (images.numpy(), sizes.numpy()), strict=True)))
            with torch.no_grad():
                compare([t.numpy() for t in graph(images, sizes)], found, "onnxruntime", graph.nms_threshold)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def compare(
    expected: list[np.ndarray], found: list[np.ndarray], where: str, nms_threshold: float | None = None
) -> None:
    """Compare detections with those of PyTorch.

    Args:
        expected, found: boxes (B, N, 4), scores (B, N), best first, and classes (B, N).
        where: they were found, for the message.
        nms_threshold: the IoU above which a better detection of its class suppressed another, if one did: which of two
            with as good as equal scores suppresses the other, and so what stays, may differ.

    Raises:
        InputError: they differ by more than rounding explains. Detections whose scores are as good as equal may come
            in another order.
    """
    scores = np.abs(expected[1] - found[1]).max()
    if nms_threshold is None and not scores <= SCORE_TOLERANCE:
        raise InputError(f"the export was given up: scores in {where} differ by {scores:.1e} from PyTorch's")
    for one, other in zip(zip(*expected, strict=True), zip(*found, strict=True), strict=True):
        distance = _nearest(one, other)
        if nms_threshold is None and not distance.max() <= BOX_TOLERANCE:
            raise InputError(f"the export was given up: boxes in {where} differ by {distance.max():.2g} pixels")
        for ours, theirs in ((one, other), (other, one)):
            missing = _nearest(ours, theirs) > BOX_TOLERANCE
            if nms_threshold is not None and not (_may_lack(ours, theirs, nms_threshold) | ~missing).all():
                raise InputError(f"the export was given up: detections in {where} are not those of PyTorch")


def _nearest(one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> np.ndarray:
    """For each detection of one picture the distance in pixels to the nearest of the same class and score."""
    distance = np.abs(one[0][:, None] - other[0]).max(-1)
    same = (one[2][:, None] == other[2]) & (np.abs(one[1][:, None] - other[1]) <= SCORE_TOLERANCE)
    return np.where(same, distance, np.inf).min(1)


def _may_lack(one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...], nms_threshold: float) -> np.ndarray:
    """Which detections of one picture another run may lack: suppressed by what it has, or worse than all of that."""
    overlaps = box_iou(torch.from_numpy(one[0]), torch.from_numpy(other[0])).numpy()
    better = (one[2][:, None] == other[2]) & (other[1] >= one[1][:, None] - SCORE_TOLERANCE)
    return (better & (overlaps > nms_threshold - IOU_TOLERANCE)).any(1) | (one[1] <= other[1].min() + SCORE_TOLERANCE)


def example_batches(divisor: int, batches: tuple[tuple[tuple[int, int], ...], ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of pictures with gray values that change smoothly, (B, H, W, 3) uint8, and their (B, 2) sizes.

    Args:
        divisor: what the height and the width of a batch must be multiples of.
        batches: height and width of each picture of each batch.
    """
    generator = torch.Generator().manual_seed(0)
    for sizes in batches:
        height, width = (-(-max(side) // divisor) * divisor for side in zip(*sizes, strict=True))
        images = torch.zeros(len(sizes), height, width, 3, dtype=torch.uint8)
        for image, (h, w) in zip(images, sizes, strict=True):
            coarse = torch.rand(1, 3, 6, 8, generator=generator) * 255
            smooth = torch.nn.functional.interpolate(coarse, (h, w), mode="bicubic").clamp(0, 255)
            image[:h, :w] = smooth[0].permute(1, 2, 0).to(torch.uint8)
        yield images, torch.tensor(sizes)


def digest(graph: DetectionGraph) -> str:
    """SHA-256 of the weights: names and values in the order of the model."""
    result = hashlib.sha256()
    for name, value in graph.model.state_dict().items():
        result.update(name.encode())
        result.update(value.detach().cpu().contiguous().numpy().tobytes())
    return result.hexdigest()


def describe(graph: DetectionGraph, about: dict[str, Any]) -> dict[str, str]:
    """The metadata of a file, each value as JSON: `about`, what the graph needs, and a hash of the weights."""
    needs = {"divisor": graph.divisor, "weights_sha256": digest(graph)}
    return {key: json.dumps(value) for key, value in {**about, **needs}.items()}


def _library(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        raise InputError(f"this export needs {name}: pip install 'sparsercnn[export]'") from error
