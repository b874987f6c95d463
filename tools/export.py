#!/usr/bin/env python3
"""Export a detector to one file that needs no torch.

    python tools/export.py --config-file configs/quickstart.yaml --output model.onnx MODEL.WEIGHTS model_final.pth
    python tools/export.py --config-file configs/quickstart.yaml --output model.xml --calibrate photos/ MODEL.WEIGHTS …

The suffix of the output names the format: .onnx, .pt2 (torch.export), .xml (OpenVINO; with --calibrate in INT8). What
was exported has given PyTorch's detections on pictures of several sizes before the file appears.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from sparsercnn import load_config
from sparsercnn.architectures import num_classes
from sparsercnn.data.images import read_image
from sparsercnn.engine import SparseRCNNCheckpointer, build_model, check_model
from sparsercnn.errors import InputError
from sparsercnn.export.graph import DetectionGraph
from sparsercnn.export.onnx import VERIFIED_SIZES, compare, describe, example_batches, export_onnx, program
from sparsercnn.export.openvino import export_openvino
from sparsercnn.predictor import class_names
from sparsercnn.visualization.media import find_pictures

CALIBRATION_PICTURES = 100


def export(cfg: CfgNode, output: Path, license: str, threshold: float, calibrate: list[str]) -> None:
    """Write the detector that `cfg` describes to `output`.

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
        raise InputError(f"--output {output}: the suffix must be one of {', '.join(writers)}")
    if calibrate and output.suffix != ".xml":
        raise InputError("--calibrate is for OpenVINO: name an --output that ends in .xml")
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}")
    model = build_model(cfg).eval()
    SparseRCNNCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    graph = DetectionGraph(model, cfg.INPUT.FORMAT)
    about = {
        "class_names": class_names(cfg) or [str(i) for i in range(num_classes(cfg) or 1)],
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
        compare(expected, found, "torch.export")
    torch.export.save(exported, path, extra_files=metadata)


def calibration_batches(cfg: CfgNode, names: list[str], divisor: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures that files, folders and globs name, at most CALIBRATION_PICTURES, each a batch for `DetectionGraph`."""
    resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    batches = []
    pictures = find_pictures(names) if names else []
    for path in pictures[:: max(1, len(pictures) // CALIBRATION_PICTURES)][:CALIBRATION_PICTURES]:
        picture = read_image(str(path), "RGB")
        picture = resize.get_transform(picture).apply_image(picture)
        height, width = picture.shape[:2]
        padding = [(0, -height % divisor), (0, -width % divisor), (0, 0)]
        batches.append((np.pad(picture, padding)[None], np.array([[height, width]])))
    return batches


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path to config file")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help=".onnx, .pt2 or .xml")
    parser.add_argument("--license", default="", help="of the weights, for the file's metadata")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score that users see (default: 0.5)")
    parser.add_argument(
        "--calibrate", nargs="+", default=[], metavar="PATH", help="pictures or folders for INT8 (OpenVINO)"
    )
    parser.add_argument("opts", nargs="*", default=[], metavar="KEY VALUE", help="config options")
    args = parser.parse_intermixed_args(argv)
    try:
        cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
        check_model(cfg)
        export(cfg, args.output, args.license, args.threshold, args.calibrate)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
