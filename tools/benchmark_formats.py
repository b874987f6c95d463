#!/usr/bin/env python3
"""One detector in every format that runs here: AP, milliseconds, start-up, memory and size in one table.

    python tools/benchmark_formats.py MODEL.pth --output output/formats
    python tools/benchmark_formats.py MODEL.pth --output output/formats --data shapes_val --json formats.json

MODEL is a checkpoint that was trained here. OUTPUT keeps the exported files, which a second run takes as they are. INT8
is calibrated on the training pictures. Milliseconds are medians for one picture, from array to boxes, of rounds in
which all formats take turns; start-up and memory are those of a process of its own, from its start to the first
detection. Run it on a quiet machine.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import Instances

from benchmarks import harness
from sparsercnn.data.images import read_image
from sparsercnn.engine import Trainer
from sparsercnn.errors import InputError
from sparsercnn.files import write_json
from sparsercnn.predictor import Detector, Predictor
from sparsercnn.visualization.page import ExportedModel

Find = Callable[[np.ndarray], Instances]
# So many pictures of a training set calibrate INT8.
CALIBRATION = 100


@dataclass(frozen=True)
class Format:
    """A way to run the detector.

    Attributes:
        name: for the table.
        file: that holds the model.
        options: of the config, for PyTorch.
        precision: of the runner, for an exported file.
    """

    name: str
    file: Path
    options: tuple[object, ...] = ()
    precision: str = "f32"

    @property
    def megabytes(self) -> float:
        """Size of the file, and of the weights that OpenVINO keeps beside it."""
        files = [self.file, self.file.with_suffix(".bin")] if self.file.suffix == ".xml" else [self.file]
        return sum(file.stat().st_size for file in files) / 1e6

    def open(self) -> Find:
        """The function from an (H, W, 3) uint8 RGB picture to all detections."""
        if self.file.suffix != ".pth":
            exported = ExportedModel(str(self.file), self.precision)
            return lambda picture: exported.find(picture)[0]
        cfg = Detector.from_checkpoint(self.file, "cpu").cfg.clone()
        cfg.defrost()
        cfg.merge_from_list(list(self.options))
        return Predictor(cfg)


def formats(checkpoint: Path, folder: Path) -> list[Format]:
    """All of them; the exported files are made where they are not yet."""
    detector = Detector.from_checkpoint(checkpoint, "cpu")
    names = [record["file_name"] for record in DatasetCatalog.get(detector.cfg.DATASETS.TRAIN[0])]
    pictures = names[:: max(1, len(names) // CALIBRATION)][:CALIBRATION]
    folder.mkdir(parents=True, exist_ok=True)
    onnx, ir, int8, pt2 = (folder / name for name in ("model.onnx", "model.xml", "model_int8.xml", "model.pt2"))
    for file in (onnx, ir, int8, pt2):
        if not file.is_file():
            detector.export(file, calibrate=pictures if file == int8 else ())
    return [
        Format("PyTorch, plain", checkpoint, ("TEST.PREPARE", False)),
        Format("PyTorch, prepared, float32", checkpoint),
        Format("PyTorch, prepared, bfloat16", checkpoint, ("TEST.PRECISION", "bfloat16")),
        Format("torch.export (.pt2)", pt2),
        Format("onnxruntime", onnx),
        Format("OpenVINO, float32", ir),
        Format("OpenVINO, bfloat16", ir, precision="bf16"),
        Format("OpenVINO, INT8", int8),
    ]


def average_precision(cfg: CfgNode, data: str, find: Find, folder: Path) -> float:
    """COCO's AP on a registered data set."""
    evaluator = Trainer.build_evaluator(cfg, data, str(folder))
    evaluator.reset()
    for record in DatasetCatalog.get(data):
        evaluator.process([record], [{"instances": find(read_image(record["file_name"], "RGB"))}])
    results = evaluator.evaluate()
    assert results is not None  # it is the only process
    return results["bbox"]["AP"]


FIRST_DETECTION = {
    "exported": "from sparsercnn_runtime import OnnxDetector as D; D(a[1], precision=a[2]).predict(a[3])",
    "checkpoint": (
        "from pathlib import Path; from tools.benchmark_formats import Format; "
        "from sparsercnn.data.images import read_image; "
        "Format('', Path(a[1]), tuple(eval(a[2]))).open()(read_image(a[3], 'RGB'))"
    ),
}


def start(format: Format, picture: str) -> tuple[float, float]:
    """Seconds from the start of a process to its first detection, and the most memory that it held, in MiB."""
    is_exported = format.file.suffix != ".pth"
    program = f"import sys; a = sys.argv; {FIRST_DETECTION['exported' if is_exported else 'checkpoint']}"
    detail = format.precision if is_exported else repr(format.options)
    begin = time.perf_counter()
    command = [sys.executable, "-W", "ignore", "-c", f"{program}; {PRINT_MEMORY}", str(format.file), detail, picture]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise InputError(f"{format.name} does not start: {done.stderr.strip().splitlines()[-1]}")
    return seconds, float(done.stdout.splitlines()[-1])


# Of Linux; what `resource` gives includes the memory of the process that started it.
PRINT_MEMORY = "print(int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0]) / 1024)"


def benchmark(args: argparse.Namespace) -> list[dict]:
    """A row for each format."""
    cfg = Detector.from_checkpoint(args.model, "cpu").cfg
    data = args.data or cfg.DATASETS.TEST[0]
    chosen = formats(args.model, args.output)
    finds = {format.name: format.open() for format in chosen}
    picture = DatasetCatalog.get(data)[0]["file_name"]
    pixels = read_image(picture, "RGB")
    functions: dict[str, harness.Function] = {name: partial(find, pixels) for name, find in finds.items()}
    times = harness.measure(functions, args.repeats, "cpu", warmup=2)
    rows = []
    for format in chosen:
        seconds, memory = start(format, picture)
        rows.append(
            {
                "format": format.name,
                "AP": average_precision(cfg, data, finds[format.name], args.output / "inference"),
                "ms": float(np.median(times[format.name])),
                "ms_quartiles": harness.quartiles(times[format.name]),
                "start_s": seconds,
                "memory_MiB": memory,
                "size_MB": format.megabytes,
            }
        )
    return rows


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = ["| format | AP | ms | start-up s | memory MiB | size MB |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {r['format']} | {r['AP']:.1f} | {r['ms']:.4g} | {r['start_s']:.1f} | {r['memory_MiB']:.0f} | "
        f"{r['size_MB']:.1f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL", help="a checkpoint")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="for the exported files")
    parser.add_argument("--data", help="registered data set for AP (default: the first test set of the config)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds that count (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")
    args = parser.parse_args(argv)
    try:
        rows = benchmark(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{table(rows)}\n\nMedians of {args.repeats} rounds. {harness.environment('cpu')}")
    if args.json:
        write_json(args.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
