"""The Python API for those who prefer a shell.

    python -m sparsercnn predict MODEL photo.jpg photos/ --output drawn/ --json found.json
    python -m sparsercnn train MODEL --data FOLDER --epochs 20 --output output/mine
    python -m sparsercnn evaluate MODEL --data FOLDER
    python -m sparsercnn export MODEL --output model.onnx

MODEL is a checkpoint that was trained here, or a config (.yaml), which takes its weights from --weights.
"""

import argparse
import json
import sys
from pathlib import Path

from .errors import InputError
from .files import write_json
from .predictor import Detector
from .visualization.media import find_pictures, plan_outputs


def predict(args: argparse.Namespace) -> None:
    """Print what is on each picture; draw it, and write all as COCO results, where that is asked for."""
    detector = open_detector(args)
    pictures = find_pictures(args.pictures)
    results = []
    for path, output in zip(pictures, plan_outputs(pictures, args.output), strict=True):
        found = detector.predict(path, args.threshold)
        print(f"{path}: {found}")
        results += found.to_coco(image_id=str(path))
        if output:
            found.save(output)
    if args.json:
        write_json(args.json, results)


def train(args: argparse.Namespace) -> None:
    """Train, and print the metrics if there are some."""
    detector = open_detector(args)
    print_metrics(detector.train(args.data, args.epochs, args.output))
    print(f"The trained detector is {args.output / 'model_final.pth'}")


def evaluate(args: argparse.Namespace) -> None:
    """Print COCO metrics."""
    print_metrics(open_detector(args).evaluate(args.data, args.output))


def export(args: argparse.Namespace) -> None:
    """Write one file, and print its name."""
    print(open_detector(args).export(args.output, args.calibrate, args.license))


def open_detector(args: argparse.Namespace) -> Detector:
    """The detector of a checkpoint or of a config."""
    if Path(args.model).suffix in (".yaml", ".yml"):
        return Detector.from_config(args.model, args.weights)
    if args.weights:
        raise InputError(f"--weights goes with a config (.yaml), not with {args.model}")
    return Detector.from_checkpoint(args.model)


def print_metrics(metrics: dict[str, float]) -> None:
    """Print metrics as JSON, rounded."""
    print(json.dumps({name: round(value, 2) for name, value in metrics.items()}))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line (that of the process if None)."""
    parser = argparse.ArgumentParser(
        prog="python -m sparsercnn", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: object, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(getattr(run, "__name__", ""), help=help, description=help)
        sub.set_defaults(run=run)
        sub.add_argument("model", metavar="MODEL", help="a checkpoint, or a config (.yaml)")
        sub.add_argument("--weights", default="", metavar="FILE", help="of a config; default: its MODEL.WEIGHTS")
        return sub

    data = "a folder of labeled pictures, its annotation file, or the name of a registered data set"
    sub = command(predict, "find objects on pictures")
    sub.add_argument("pictures", nargs="+", metavar="PICTURE", help="pictures, folders of pictures, or globs in quotes")
    sub.add_argument("--threshold", type=float, help="lowest score; default: the detector's own")
    sub.add_argument("--output", metavar="PATH", help="a file, or a folder, for the drawn pictures")
    sub.add_argument("--json", type=Path, metavar="FILE", help="for COCO results; an image_id is a path")
    sub = command(train, "learn from a data set, from the weights of the detector on")
    sub.add_argument("--data", required=True, help=data)
    sub.add_argument("--epochs", type=float, help="passes over the pictures; default: the config's SOLVER.MAX_ITER")
    sub.add_argument("--output", type=Path, default=Path("output/trained"), help="folder (default: %(default)s)")
    sub = command(evaluate, "measure COCO metrics")
    sub.add_argument("--data", help=f"{data}; default: the config's test set")
    sub.add_argument("--output", type=Path, help="folder for predictions and metrics")
    sub = command(export, "write one file that needs no torch")
    sub.add_argument("--output", type=Path, required=True, metavar="FILE", help=".onnx, .pt2 or .xml (OpenVINO)")
    sub.add_argument("--calibrate", nargs="+", default=[], metavar="PATH", help="pictures or folders, for INT8 (.xml)")
    sub.add_argument("--license", default="", help="of the weights, for the file's metadata")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Do what the command line asks for; returns the exit status."""
    args = parse_args(argv)
    try:
        args.run(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
