"""OpenVINO: an IR of two files, in float32, or in INT8 calibrated on a user's pictures."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from .graph import DetectionGraph
from .onnx import INPUTS, OUTPUTS, VERIFIED_SIZES, compare, example_batches, export_onnx

RT_INFO = "sparsercnn"  # where the metadata of the file are


def export_openvino(
    graph: DetectionGraph,
    path: Path,
    metadata: dict[str, str],
    calibration: Sequence[tuple[np.ndarray, np.ndarray]] = (),
) -> None:
    """Write `path` (.xml) and the weights beside it (.bin), verified against PyTorch before they are quantized.

    Args:
        graph: the detector.
        path: of the .xml file.
        metadata: texts that the file carries, by name.
        calibration: batches (1, H, W, 3) uint8 and (1, 2) int64 that stand for what the model will see; with them
            convolutions and products become INT8. Empty for float32.

    Raises:
        InputError: a library is missing, or the exported graph does not give what PyTorch gives.
    """
    try:
        import openvino
    except ImportError as error:
        raise InputError("this export needs openvino: pip install 'sparsercnn[export]'") from error
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        export_onnx(graph, Path(folder) / "model.onnx", metadata)
        model = openvino.convert_model(Path(folder) / "model.onnx")
        _verify(graph, openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}))
        if calibration:
            model = _quantize(model, calibration)
        for key, value in metadata.items():
            model.set_rt_info(value, [RT_INFO, key])
        openvino.save_model(model, path, compress_to_fp16=False)


def _verify(graph: DetectionGraph, compiled: Any) -> None:
    for images, sizes in example_batches(graph.divisor, VERIFIED_SIZES):
        found = compiled(dict(zip(INPUTS, (images.numpy(), sizes.numpy()), strict=True)))
        with torch.no_grad():
            expected = [t.numpy() for t in graph(images, sizes)]
        compare(expected, [found[name] for name in OUTPUTS], "OpenVINO", graph.nms_threshold)


def _quantize(model: Any, calibration: Sequence[tuple[np.ndarray, np.ndarray]]) -> Any:
    try:
        import nncf
    except ImportError as error:
        raise InputError("INT8 needs nncf: pip install 'sparsercnn[export]'") from error
    batches = nncf.Dataset(calibration, lambda batch: dict(zip(INPUTS, batch, strict=True)))
    return nncf.quantize(model, batches, preset=nncf.QuantizationPreset.MIXED, subset_size=len(calibration))
