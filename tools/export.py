#!/usr/bin/env python3
"""Export a detector to one file that needs no torch.

    python tools/export.py --config-file configs/quickstart.yaml --output model.onnx MODEL.WEIGHTS model_final.pth
    python tools/export.py --config-file configs/quickstart.yaml --output model.xml --calibrate photos/ MODEL.WEIGHTS …

The suffix of the output names the format: .onnx, .pt2 (torch.export), .xml (OpenVINO; with --calibrate in INT8). What
was exported has given PyTorch's detections on pictures of several sizes before the file appears.
"""

import argparse
import sys
from pathlib import Path

from sparsercnn import load_config
from sparsercnn.engine import check_model
from sparsercnn.errors import InputError
from sparsercnn.export.files import export_detector
from sparsercnn.predictor import class_names


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
        export_detector(cfg, args.output, class_names(cfg), args.threshold, args.license, args.calibrate)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
