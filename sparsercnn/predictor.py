"""From a config or a checkpoint to detections on pictures: `Detector`, and `Predictor` below it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, overload

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from PIL import Image, ImageOps

from .architectures import num_classes
from .config_file import load_config
from .data.images import read_image
from .detections import Detections
from .engine import SparseRCNNCheckpointer, build_inference_model, build_model
from .engine.checkpoint_files import read_tensors
from .engine.checkpoint_metadata import checked_metadata
from .errors import InputError
from .evaluation.tiles import detect_in_tiles
from .modeling.detector import SparseRCNN
from .visualization.stages import predict_stages


class Predictor:
    """Predicts on one picture at a time, as `detectron2.engine.DefaultPredictor` does, and stage by stage.

    Args:
        cfg: names the model, its weights and the test-time size and channel order of its input.

    Raises:
        InputError: the model cannot be built as the config says, the weights do not fit it, or it needs precomputed
            proposals, which a picture does not have.
    """

    def __init__(self, cfg: CfgNode):
        if cfg.MODEL.LOAD_PROPOSALS:
            raise InputError("MODEL.LOAD_PROPOSALS is True: this model finds nothing on pictures without proposals")
        model = build_model(cfg).eval()
        SparseRCNNCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        self.model = build_inference_model(cfg, model)
        self.resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        self.channel_order = cfg.INPUT.FORMAT
        self.tile_size, self.tile_overlap = cfg.TEST.TILE_SIZE, cfg.TEST.TILE_OVERLAP

    def __call__(self, picture: np.ndarray) -> Instances:
        """Predictions on a (H, W, 3) uint8 RGB picture, or in its tiles, in its pixels and on the CPU."""
        if self.tile_size:
            return detect_in_tiles(self._detect, picture, self.tile_size, self.tile_overlap)
        return self._detect(picture)

    def _detect(self, picture: np.ndarray) -> Instances:
        (output,) = self.model([self._input(picture)])
        found = output["instances"] if "instances" in output else proposals_as_detections(output["proposals"])
        return found.to("cpu")

    @property
    def has_stages(self) -> bool:
        """Whether the model refines boxes in stages, so that `stages` can show them."""
        return isinstance(self.model.model, SparseRCNN)

    def stages(self, picture: np.ndarray) -> list[Instances]:
        """The learned proposals and the boxes after each stage; see `predict_stages`."""
        return [stage.to("cpu") for stage in self.model.run(predict_stages, [self._input(picture)])[0]]

    def _input(self, picture: np.ndarray) -> dict:
        height, width = picture.shape[:2]
        if self.channel_order == "BGR":
            picture = picture[:, :, ::-1]
        resized = self.resize.get_transform(picture).apply_image(picture)
        image = torch.as_tensor(resized.transpose(2, 0, 1).astype("float32"))
        return {"image": image, "height": height, "width": width}


def proposals_as_detections(proposals: Instances) -> Instances:
    """Proposals, with `proposal_boxes` and `objectness_logits`, as detections of one class scored by probability."""
    return Instances(
        proposals.image_size,
        pred_boxes=proposals.proposal_boxes,
        scores=proposals.objectness_logits.sigmoid(),
        pred_classes=torch.zeros(len(proposals), dtype=torch.int64),
    )


class Detector:
    """Finds objects on pictures, in three lines.

        detector = Detector.from_checkpoint("output/quickstart/model_final.pth")
        found = detector.predict("photo.jpg")
        found.save("drawn.jpg")

    Args:
        cfg: names the model and its weights.
        class_names: of all classes; their numbers if None.
        threshold: lowest score that `predict` returns unless it is told another.

    Raises:
        InputError: see `Predictor`.
    """

    def __init__(self, cfg: CfgNode, class_names: list[str] | None = None, threshold: float = 0.5):
        self.cfg = cfg
        self._predictor = Predictor(cfg)
        self.class_names = class_names or [str(i) for i in range(num_classes(cfg) or 1)]
        self.threshold = threshold

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str | None = None) -> "Detector":
        """The detector of a checkpoint that `train_net.py` wrote: it holds its config, class names and threshold.

        Args:
            path: of the file.
            device: "cpu" or "cuda"; None for that of the config, or the CPU where there is no GPU.

        Raises:
            InputError: the file cannot be read, or says nothing of its config, as published checkpoints.
        """
        metadata = checked_metadata(read_tensors(str(path)), str(path)) or {}
        if not metadata.get("config"):
            raise InputError(f"{path} does not hold its config: use Detector.from_config(FILE, weights={str(path)!r})")
        options = ["MODEL.WEIGHTS", str(path), *(["MODEL.DEVICE", device] if device else [])]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "config.yaml"
            file.write_text(metadata["config"])
            cfg = load_config(file, options)
        threshold = metadata.get("score_threshold")
        return cls(cfg, metadata.get("class_names"), 0.5 if threshold is None else threshold)

    @classmethod
    def from_config(
        cls, file: str | Path, weights: str | Path = "", options: Sequence = (), threshold: float = 0.5
    ) -> "Detector":
        """The detector of a config.

        Args:
            file: a YAML file, see `load_config`.
            weights: path of a checkpoint; "" for the config's `MODEL.WEIGHTS`.
            options: keys and values in turn that override the config.
            threshold: lowest score that `predict` returns.

        Raises:
            InputError: see `load_config` and `Predictor`.
        """
        cfg = load_config(file, [*options, *(["MODEL.WEIGHTS", str(weights)] if weights else [])])
        if not cfg.MODEL.WEIGHTS:
            raise InputError(f"{file} names no MODEL.WEIGHTS: give weights=…")
        return cls(cfg, class_names(cfg), threshold)

    @overload
    def predict(self, images: list, threshold: float | None = None) -> list[Detections]: ...
    @overload
    def predict(self, images: Any, threshold: float | None = None) -> Detections: ...
    def predict(self, images: Any, threshold: float | None = None) -> Detections | list[Detections]:
        """What is on a picture, or on each of a list of pictures.

        Args:
            images: a path, an (H, W, 3) uint8 RGB array, a (3, H, W) uint8 RGB tensor, a PIL image, or a list of them.
            threshold: lowest score; None for the detector's own.

        Raises:
            InputError: a picture cannot be read, or is of none of these kinds.
        """
        if isinstance(images, list):
            return [cast(Detections, self.predict(image, threshold)) for image in images]
        picture = as_picture(images)
        found = self._predictor(picture)
        kept = found[found.scores > (self.threshold if threshold is None else threshold)]
        return Detections(picture, kept, self.class_names)

    def stages(self, image: Any) -> list[Detections]:
        """The boxes after each refinement stage, of the proposals that score over the threshold in the end.

        Args:
            image: see `predict`.

        Raises:
            InputError: the model has no stages.
        """
        if not self._predictor.has_stages:
            raise InputError(f"{self.cfg.MODEL.META_ARCHITECTURE} has no refinement stages")
        picture = as_picture(image)
        _, *stages = self._predictor.stages(picture)
        kept = stages[-1].scores > self.threshold
        return [Detections(picture, stage[kept], self.class_names) for stage in stages]

    def __repr__(self) -> str:
        names = ", ".join(self.class_names[:5]) + (", …" if len(self.class_names) > 5 else "")
        return f"Detector({self.cfg.MODEL.META_ARCHITECTURE}, {len(self.class_names)} classes: {names})"


def as_picture(image: Any) -> np.ndarray:
    """An (H, W, 3) uint8 RGB array of a path, array, tensor or PIL image.

    Raises:
        InputError: the file cannot be read, or it is none of these.
    """
    if isinstance(image, (str, Path)):
        return read_image(str(image), "RGB")
    if isinstance(image, Image.Image):
        image = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    elif isinstance(image, torch.Tensor):
        image = image.permute(1, 2, 0).cpu().numpy() if image.dim() == 3 and image.shape[0] == 3 else image.numpy()
    if not isinstance(image, np.ndarray):
        raise InputError(f"a picture is a path, an array, a tensor or a PIL image, not {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"a picture is an (H, W, 3) uint8 RGB array, not {image.shape} {image.dtype}")
    return image


def class_names(cfg: CfgNode) -> list[str] | None:
    """Names of the classes in the first test (or training) data set, None if they are not known or not as many."""
    if num_classes(cfg) is None:  # it finds objects of any class
        return ["object"]
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        names = MetadataCatalog.get(name).get("thing_classes", [])
        if len(names) == num_classes(cfg):
            return list(names)
    return None
