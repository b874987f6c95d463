"""From a config or a checkpoint to detections on pictures: `Detector`, and `Predictor` below it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances

from .architectures import num_classes
from .config_file import load_config
from .data.pictures import as_picture
from .detections import Detections
from .engine import SparseRCNNCheckpointer, build_inference_model, build_model
from .engine.checkpoints.files import read_tensors
from .engine.checkpoints.metadata import checked_metadata
from .engine.own_data import evaluate_on, train_on
from .errors import InputError
from .evaluation.tiles import detect_in_tiles
from .modeling.detector import SparseRCNN
from .visualization.stages import predict_stages

# Most pictures that go through the network together.
BATCH = 8
# Of the pictures of a list, so many are in memory as the network's input at a time.
CHUNK = 64


class Predictor:
    """Predicts on one picture at a time, as `detectron2.engine.DefaultPredictor` does, and stage by stage.

    Args:
        cfg: names the model, its weights and the test-time size and channel order of its input.

    Attributes:
        threshold: the score over which to show detections: that of the best F1 in the evaluation after training, which
            the checkpoint holds, else 0.5.

    Raises:
        InputError: the model cannot be built as the config says, the weights do not fit it, or it needs precomputed
            proposals, which a picture does not have.
    """

    def __init__(self, cfg: CfgNode):
        if cfg.MODEL.LOAD_PROPOSALS:
            raise InputError("MODEL.LOAD_PROPOSALS is True: this model finds nothing on pictures without proposals")
        model = build_model(cfg).eval()
        content = SparseRCNNCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        threshold = (checked_metadata(content, cfg.MODEL.WEIGHTS) or {}).get("score_threshold")
        self.threshold = 0.5 if threshold is None else threshold
        self.model = build_inference_model(cfg, model)
        self.resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        self.channel_order = cfg.INPUT.FORMAT
        self.tile_size, self.tile_overlap = cfg.TEST.TILE_SIZE, cfg.TEST.TILE_OVERLAP

    def __call__(self, picture: np.ndarray) -> Instances:
        """Predictions on a (H, W, 3) uint8 RGB picture, or in its tiles, in its pixels and on the CPU."""
        return self.predict([picture])[0]

    def predict(self, pictures: Sequence[np.ndarray]) -> list[Instances]:
        """The same for several; those that the network sees in the same size go through it together."""
        if not self.tile_size:
            return self._detect(pictures)
        return [
            detect_in_tiles(lambda tile: self._detect([tile])[0], picture, self.tile_size, self.tile_overlap)
            for picture in pictures
        ]

    def _detect(self, pictures: Sequence[np.ndarray]) -> list[Instances]:
        inputs = [self._input(picture) for picture in pictures]
        of_size: dict[torch.Size, list[int]] = {}
        for i, x in enumerate(inputs):
            of_size.setdefault(x["image"].shape, []).append(i)
        batches = [same[i : i + BATCH] for same in of_size.values() for i in range(0, len(same), BATCH)]
        found: dict[int, Instances] = {}
        for batch in batches:
            for i, output in zip(batch, self.model([inputs[i] for i in batch]), strict=True):
                result = output["instances"] if "instances" in output else proposals_as_detections(output["proposals"])
                found[i] = result.to("cpu")
        return [found[i] for i in range(len(pictures))]

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
        cfg: names the model and its weights; without weights it must be trained before it finds anything.
        class_names: of all classes; their numbers if None.
        threshold: lowest score that `predict` returns unless it is told another; None for that of `Predictor`.

    Raises:
        InputError: see `Predictor`.
    """

    def __init__(self, cfg: CfgNode, class_names: list[str] | None = None, threshold: float | None = None):
        self.cfg = cfg
        self._loaded = Predictor(cfg) if cfg.MODEL.WEIGHTS else None
        self.class_names = class_names or [str(i) for i in range(num_classes(cfg) or 1)]
        self.threshold = threshold if threshold is not None else self._loaded.threshold if self._loaded else 0.5

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
        return cls(cfg, metadata.get("class_names"))

    @classmethod
    def from_config(
        cls, file: str | Path, weights: str | Path = "", options: Sequence = (), threshold: float | None = None
    ) -> "Detector":
        """The detector of a config.

        Args:
            file: a YAML file, see `load_config`.
            weights: path of a checkpoint; "" for the config's `MODEL.WEIGHTS`, without which there is only `train`.
            options: keys and values in turn that override the config.
            threshold: lowest score that `predict` returns; None for that of the checkpoint, or 0.5.

        Raises:
            InputError: see `load_config` and `Predictor`.
        """
        cfg = load_config(file, [*options, *(["MODEL.WEIGHTS", str(weights)] if weights else [])])
        return cls(cfg, class_names(cfg), threshold)

    @property
    def _predictor(self) -> Predictor:
        if self._loaded is None:
            raise InputError("the detector has no weights: train it, or give from_config weights=…")
        return self._loaded

    @overload
    def predict(self, images: list, threshold: float | None = None) -> list[Detections]: ...
    @overload
    def predict(self, images: Any, threshold: float | None = None) -> Detections: ...
    def predict(self, images: Any, threshold: float | None = None) -> Detections | list[Detections]:
        """What is on a picture, or on each of a list of pictures.

        Args:
            images: a path, an http(s) address, an (H, W, 3) uint8 RGB array, a (3, H, W) uint8 RGB tensor, a PIL image,
                or a list of them.
            threshold: lowest score; None for the detector's own.

        Raises:
            InputError: a picture cannot be read, or is of none of these kinds.
        """
        if not isinstance(images, list):
            return self.predict([images], threshold)[0]
        threshold = self.threshold if threshold is None else threshold
        results = []
        for start in range(0, len(images), CHUNK):
            pictures = [as_picture(image) for image in images[start : start + CHUNK]]
            for picture, found in zip(pictures, self._predictor.predict(pictures), strict=True):
                results.append(Detections(picture, found[found.scores > threshold], self.class_names))
        return results

    def stages(self, image: Any, threshold: float | None = None) -> list[Detections]:
        """The boxes after each refinement stage, of the proposals that score over the threshold in the end.

        Args:
            image: see `predict`.
            threshold: lowest score in the end; None for the detector's own.

        Raises:
            InputError: the model has no stages.
        """
        if not self._predictor.has_stages:
            raise InputError(f"{self.cfg.MODEL.META_ARCHITECTURE} has no refinement stages")
        picture = as_picture(image)
        _, *stages = self._predictor.stages(picture)
        kept = stages[-1].scores > (self.threshold if threshold is None else threshold)
        return [Detections(picture, stage[kept], self.class_names) for stage in stages]

    def train(
        self, data: str | Path, epochs: float | None = None, output: str | Path = "output/trained"
    ) -> dict[str, float]:
        """Learn from a data set, from the detector's weights on; it then detects with what it has learned.

        Args:
            data: a folder of labeled pictures (COCO JSON, Pascal VOC, YOLO and others), their annotation file, or the
                name of a registered data set. Its classes become the detector's.
            epochs: passes over the pictures; None for as many iterations as the config says.
            output: folder for checkpoints and logs, as `train_net.py` leaves them. It must not hold a run.

        Returns:
            COCO metrics (AP, AP50, …) on pictures that it was not trained on; empty where the data have none.

        Raises:
            InputError: see `train_on`.
        """
        path, metrics = train_on(self.cfg, data, epochs, Path(output))
        self.__dict__.update(Detector.from_checkpoint(path, self.cfg.MODEL.DEVICE).__dict__)
        return metrics

    def evaluate(self, data: str | Path | None = None, output: str | Path | None = None) -> dict[str, float]:
        """COCO metrics (AP, AP50, …) on a data set.

        Args:
            data: see `train`; None for the config's test set.
            output: folder for predictions and metrics, as `train_net.py --eval-only` leaves them; None to keep none.

        Raises:
            InputError: see `evaluate_on`.
        """
        if output is not None:
            return evaluate_on(self.cfg, self.class_names, data, Path(output))
        with tempfile.TemporaryDirectory() as folder:
            return evaluate_on(self.cfg, self.class_names, data, Path(folder))

    def export(self, path: str | Path, calibrate: Sequence[str | Path] = (), license: str = "") -> Path:
        """Write the detector to one file that needs no torch, once that has given PyTorch's detections.

        Args:
            path: of the file; its suffix names the format: .onnx, .pt2 (torch.export) or .xml (OpenVINO).
            calibrate: pictures or folders of them, for INT8 in OpenVINO.
            license: of the weights, for the file's metadata.

        Raises:
            InputError: see `sparsercnn.export.export_detector`.
        """
        from .export.files import export_detector  # late, because its libraries take a second to import

        export_detector(self.cfg, Path(path), self.class_names, self.threshold, license, list(map(str, calibrate)))
        return Path(path)

    def __repr__(self) -> str:
        names = ", ".join(self.class_names[:5]) + (", …" if len(self.class_names) > 5 else "")
        return f"Detector({self.cfg.MODEL.META_ARCHITECTURE}, {len(self.class_names)} classes: {names})"


def class_names(cfg: CfgNode) -> list[str] | None:
    """Names of the classes in the first test (or training) data set, None if they are not known or not as many."""
    if num_classes(cfg) is None:  # it finds objects of any class
        return ["object"]
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        names = MetadataCatalog.get(name).get("thing_classes", [])
        if len(names) == num_classes(cfg):
            return list(names)
    return None
