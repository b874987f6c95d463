"""From a config to predictions on pictures: weights loaded, model prepared for inference, pictures resized."""

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances

from .engine import SparseRCNNCheckpointer, build_inference_model, build_model
from .errors import InputError
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

    def __call__(self, picture: np.ndarray) -> Instances:
        """Predictions on a (H, W, 3) uint8 RGB picture, in its pixels and on the CPU."""
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
