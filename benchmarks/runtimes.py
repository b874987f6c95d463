"""A detector exported to other runtimes, as functions of the same pictures, for `benchmarks.inference --runtimes`."""

from pathlib import Path

import numpy as np
from torch import Tensor, nn

from sparsercnn.export.graph import DetectionGraph
from sparsercnn.export.onnx import INPUTS, export_onnx
from sparsercnn.export.openvino import export_openvino

from .harness import Function


def exported(model: nn.Module, inputs: list[dict], threads: int, folder: Path) -> dict[str, Function]:
    """Functions that detect on `inputs`, by runtime and precision.

    Args:
        model: a detector for RGB pictures; exporting it compares it with PyTorch.
        inputs: an `image`, (3, H, W) from 0 to 255, of each picture; all of one size.
        threads: of each runtime.
        folder: for the exported files.
    """
    import onnxruntime
    import openvino

    graph = DetectionGraph(model, "RGB")
    feed = dict(zip(INPUTS, pictures([x["image"] for x in inputs], graph.divisor), strict=True))
    export_onnx(graph, folder / "model.onnx", {})
    export_openvino(graph, folder / "int8.xml", {}, [(feed["images"][:1], feed["sizes"][:1])])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    functions: dict[str, Function] = {"onnxruntime fp32": lambda: session.run(None, feed)}
    for name, file, precision in (
        ("OpenVINO fp32", "model.onnx", "f32"),
        ("OpenVINO bf16", "model.onnx", "bf16"),
        ("OpenVINO int8", "int8.xml", "f32"),
    ):
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
        compiled = openvino.compile_model(str(folder / file), "CPU", settings)
        functions[name] = lambda compiled=compiled: compiled(feed)  # type: ignore[misc]
    return functions


def pictures(images: list[Tensor], divisor: int) -> tuple[np.ndarray, np.ndarray]:
    """A batch (B, H, W, 3) uint8, padded to multiples of `divisor`, and (B, 2) sizes without the padding."""
    height, width = images[0].shape[1:]
    batch = np.stack([image.permute(1, 2, 0).byte().numpy() for image in images])
    padded = np.pad(batch, [(0, 0), (0, -height % divisor), (0, -width % divisor), (0, 0)])
    return padded, np.array([[height, width]] * len(images), dtype=np.int64)
