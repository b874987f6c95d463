"""A detector as one file in the format that its suffix names, with all that its users must know."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from ..architectures import num_classes
from ..data.images import read_image
from ..engine import SparseRCNNCheckpointer, build_model
from ..errors import InputError
from ..visualization.media import find_pictures
from .graph import DetectionGraph
from .onnx import VERIFIED_SIZES, compare, describe, example_batches, export_onnx, program
from .openvino import export_openvino

CALIBRATION_PICTURES = 100


def export_detector(
    cfg: CfgNode,
    output: Path,
    class_names: list[str] | None,
    threshold: float,
    license: str = "",
    calibrate: Sequence[str] = (),
) -> None:
    """Write a detector to one file, once that has given PyTorch's detections on pictures of several sizes.

    Args:
        cfg: of the detector, with its weights.
        output: .onnx, .pt2 (torch.export) or .xml (OpenVINO).
        class_names: of all classes, None for their numbers; they are in the file's metadata as all that follows.
        threshold: lowest score that users of the file see unless they ask for another.
        license: of the weights.
        calibrate: pictures, folders and globs that stand for what the model will see; OpenVINO's file then is in INT8.

    Raises:
        InputError: the format is unknown, a library is missing, or the export is not what PyTorch is.
    """
    writers: dict[str, Callable[[DetectionGraph, dict[str, str]], None]] = {
        ".onnx": lambda graph, metadata: export_onnx(graph, output, metadata),
        ".pt2": lambda graph, metadata: export_program(graph, output, metadata),
        ".xml": lambda graph, metadata: export_openvino(
            graph, output, metadata, calibration_batches(cfg, calibrate, graph.divisor)
        ),
    }
    if output.suffix not in writers:
        raise InputError(f"{output}: the suffix must be one of {', '.join(writers)}")
    if calibrate and output.suffix != ".xml":
        raise InputError(f"{output}: calibration (INT8) is for OpenVINO, whose files end in .xml")
    if not output.parent.is_dir():
        raise InputError(f"{output}: there is no folder {output.parent}")
    model = build_model(cfg).eval()
    SparseRCNNCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    graph = DetectionGraph(model, cfg.INPUT.FORMAT)
    about = {
        "class_names": class_names or [str(i) for i in range(num_classes(cfg) or 1)],
        "threshold": threshold,
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "license": license,
        "config": cfg.dump(),
    }
    writers[output.suffix](graph, describe(graph, about))


def export_program(graph: DetectionGraph, path: Path, metadata: dict[str, str]) -> None:
    """Write a `.pt2` file of torch.export; its metadata are `extra_files`."""
    exported = program(graph)
    module = exported.module()
    for images, sizes in example_batches(graph.divisor, VERIFIED_SIZES):
        with torch.no_grad():
            expected, found = ([t.numpy() for t in run(images, sizes)] for run in (graph, module))
        compare(expected, found, "torch.export", graph.nms_threshold)
    torch.export.save(exported, path, extra_files=metadata)


def calibration_batches(cfg: CfgNode, names: Sequence[str], divisor: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures that files, folders and globs name, at most CALIBRATION_PICTURES, each a batch for `DetectionGraph`."""
    resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    batches = []
    pictures = find_pictures(list(names)) if names else []
    for path in pictures[:: max(1, len(pictures) // CALIBRATION_PICTURES)][:CALIBRATION_PICTURES]:
        picture = read_image(str(path), "RGB")
        picture = resize.get_transform(picture).apply_image(picture)
        height, width = picture.shape[:2]
        padding = [(0, -height % divisor), (0, -width % divisor), (0, 0)]
        batches.append((np.pad(picture, padding)[None], np.array([[height, width]])))
    return batches
