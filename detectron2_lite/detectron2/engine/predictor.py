"""Prediction on one image at a time."""

from __future__ import annotations

import numpy as np
import torch

import detectron2.data.transforms as T
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model


class DefaultPredictor:
    """Predict on one image at a time, with the weights and test-time preprocessing of a config.

    It loads `cfg.MODEL.WEIGHTS`, takes images in BGR as OpenCV does and converts them to `cfg.INPUT.FORMAT`, and
    resizes them by `cfg.INPUT.{MIN,MAX}_SIZE_TEST`.

    Attributes:
        metadata: of the first dataset in `cfg.DATASETS.TEST`, if there is one.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg.clone()
        self.model = build_model(self.cfg)
        self.model.eval()
        if len(cfg.DATASETS.TEST):
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        self.aug = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT
        assert self.input_format in ["RGB", "BGR"], self.input_format

    def __call__(self, original_image: np.ndarray) -> dict:
        """Predict on one image.

        Args:
            original_image: (H, W, 3) in BGR order.

        Returns:
            the output of the model for this image, with boxes in pixels of the original image.
        """
        with torch.no_grad():
            if self.input_format == "RGB":
                original_image = original_image[:, :, ::-1]
            height, width = original_image.shape[:2]
            image = self.aug.get_transform(original_image).apply_image(original_image)
            image = torch.as_tensor(image.astype("float32").transpose(2, 0, 1)).to(self.cfg.MODEL.DEVICE)
            return self.model([{"image": image, "height": height, "width": width}])[0]
