"""Detections from a model that sparsercnn exported: numpy, Pillow and onnxruntime or OpenVINO, no torch."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

__all__ = ["Detection", "OnnxDetector", "to_coco"]

METADATA = ("class_names", "threshold", "min_size", "max_size", "divisor", "license", "config", "weights_sha256")


@dataclass(frozen=True)
class Detection:
    """One object: its class (number and name), score, and box x0, y0, x1, y1 in pixels of the picture."""

    class_id: int
    name: str
    score: float
    box: tuple[float, float, float, float]


class OnnxDetector:
    """Runs an exported detector.

    Args:
        path: a file that `tools/export.py` wrote: .onnx, .xml for OpenVINO, or .pt2, which needs torch after all.
        threads: CPU threads, 0 for as many as the library takes.
        precision: of OpenVINO, "f32" or "bf16", which is faster on processors that have it.

    Attributes:
        metadata: what the model says of itself: class_names, threshold, min_size, max_size, divisor and more.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no model that `tools/export.py` wrote.
    """

    def __init__(self, path: str | Path, threads: int = 0, precision: str = "f32"):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no model {path}")
        try:
            open_model = {".xml": _open_openvino, ".pt2": _open_pt2}.get(self.path.suffix, _open_onnx)
            run, texts = open_model(self.path, threads, precision)
        except ImportError:
            raise
        except Exception as error:  # the libraries raise errors of classes of their own
            raise ValueError(f"{path} cannot be read as a model: {error}") from error
        if "class_names" not in texts or "divisor" not in texts:
            raise ValueError(f"{path} was not written by tools/export.py: it does not say how to use it")
        self._run = run
        self.metadata = {key: json.loads(value) for key, value in texts.items()}

    def predict(self, pictures, threshold: float | None = None):
        """What is on one picture, best first; for a list of pictures, a list of that.

        Args:
            pictures: a path, an (H, W, 3) uint8 RGB array, a Pillow image, or a list of them.
            threshold: lowest score; None for the model's own. 0 gives all.

        Raises:
            ValueError: a picture cannot be read, or an array is not (H, W, 3) uint8.
        """
        if isinstance(pictures, (list, tuple)):
            return [self.predict(picture, threshold) for picture in pictures]
        threshold = self.metadata["threshold"] if threshold is None else threshold
        names = self.metadata["class_names"]
        boxes, scores, classes = self.detect(_open_picture(pictures))
        return [
            Detection(int(c), names[c], float(s), tuple(map(float, box)))
            for box, s, c in zip(boxes, scores, classes, strict=True)
            if s > threshold
        ]

    def detect(self, picture: Image.Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All results for an RGB picture: boxes (N, 4) xyxy in its pixels, scores (N,), best first, classes (N,)."""
        height, width = self._input_size(picture.height, picture.width)
        if (width, height) != picture.size:
            resized = picture.resize((width, height), Image.Resampling.BILINEAR)
        else:
            resized = picture
        divisor = self.metadata["divisor"]
        images = np.zeros((1, -(-height // divisor) * divisor, -(-width // divisor) * divisor, 3), dtype=np.uint8)
        images[0, :height, :width] = np.asarray(resized)
        boxes, scores, classes = self._run(images, np.array([[height, width]], dtype=np.int64))
        scale = np.array([picture.width / width, picture.height / height] * 2, dtype=np.float32)
        limit = np.array([picture.width, picture.height] * 2, dtype=np.float32)
        boxes = np.clip(boxes[0] * scale, 0, limit)
        solid = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        return boxes[solid], scores[0][solid], classes[0][solid]

    def _input_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width with the shorter side min_size, or less where the longer one would exceed max_size."""
        shortest, longest = self.metadata["min_size"], self.metadata["max_size"]
        if not shortest:
            return height, width
        scale = shortest / min(height, width)
        new = (shortest, scale * width) if height < width else (scale * height, shortest)
        if max(new) > longest:
            new = tuple(side * (longest / max(new)) for side in new)
        return int(new[0] + 0.5), int(new[1] + 0.5)


def to_coco(detections: list[Detection], image_id: int | str = 0) -> list[dict]:
    """COCO results, a dict for each object: image_id, category_id (the class), bbox (absolute xywh) and score."""
    corners = [(d, *d.box) for d in detections]
    return [
        {"image_id": image_id, "category_id": d.class_id, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": d.score}
        for d, x0, y0, x1, y1 in corners
    ]


def _open_picture(picture) -> Image.Image:
    if isinstance(picture, (str, Path)):
        try:
            with Image.open(picture) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{picture} cannot be read as a picture: {error}") from error
    if isinstance(picture, Image.Image):
        return ImageOps.exif_transpose(picture).convert("RGB")
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"a picture is an (H, W, 3) uint8 RGB array, not {array.shape} {array.dtype}")
    return Image.fromarray(array)


def _open_onnx(path: Path, threads: int, precision: str):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=onnxruntime.get_available_providers())

    def run(images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        return session.run(["boxes", "scores", "classes"], {"images": images, "sizes": sizes})

    return run, session.get_modelmeta().custom_metadata_map


def _open_openvino(path: Path, threads: int, precision: str):
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    compiled = core.compile_model(model, "CPU", settings)

    def run(images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        results = compiled({"images": images, "sizes": sizes})
        return [results[name] for name in ("boxes", "scores", "classes")]

    keys = model.get_rt_info(["sparsercnn"]).value if model.has_rt_info(["sparsercnn"]) else ()
    return run, {key: model.get_rt_info(["sparsercnn", key]).astype(str) for key in keys}


def _open_pt2(path: Path, threads: int, precision: str):
    import torch

    if threads:
        torch.set_num_threads(threads)
    texts = dict.fromkeys(METADATA, "")
    module = torch.export.load(path, extra_files=texts).module()

    def run(images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [t.numpy() for t in module(torch.from_numpy(images), torch.from_numpy(sizes))]

    return run, {key: text.decode() if isinstance(text, bytes) else text for key, text in texts.items() if text}
