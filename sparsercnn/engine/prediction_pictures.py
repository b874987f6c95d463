"""Pictures of predictions in TensorBoard, after each evaluation during training."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase
from torch import nn

from ..data import SparseRCNNDatasetMapper
from ..data.images import read_image
from ..visualization.drawing import PredictionDrawer
from .build import build_inference_model

THRESHOLD = 0.3


class DrawPredictions(HookBase):
    """Draws what the model finds on the same images after each evaluation. For the main process.

    Args:
        period: iterations from one evaluation to the next; 0: only after training.
        records: the images, in detectron2's format.
        mapper: from a record to the model's input, as in evaluation.
        make: makes what is evaluated at the time ready for inference.
        drawer: draws.
    """

    trainer: DefaultTrainer

    def __init__(
        self,
        period: int,
        records: Sequence[dict],
        mapper: Callable[[dict], dict],
        make: Callable[[], nn.Module],
        drawer: PredictionDrawer,
    ):
        self.period = period
        self.records = records
        self.mapper = mapper
        self.make = make
        self.drawer = drawer

    def after_step(self) -> None:
        following = self.trainer.iter + 1
        if self.period and following % self.period == 0 and following != self.trainer.max_iter:
            self._draw()

    def after_train(self) -> None:
        if self.trainer.iter == self.trainer.max_iter:
            self._draw()

    def _draw(self) -> None:
        model = self.make()
        for number, record in enumerate(self.records):
            (output,) = model([self.mapper(record)])
            found = output["instances"].to("cpu")
            picture = self.drawer.draw(read_image(record["file_name"], "RGB"), found)
            self.trainer.storage.put_image(f"predictions/{number}", torch.from_numpy(np.moveaxis(picture, 2, 0).copy()))


def draw_predictions(cfg: CfgNode, model: nn.Module) -> DrawPredictions:
    """The hook that `TEST.PICTURES` asks for, of `model`, which is not distributed."""
    name = cfg.DATASETS.TEST[0]
    records = DatasetCatalog.get(name)[: cfg.TEST.PICTURES]
    drawer = PredictionDrawer(MetadataCatalog.get(name).get("thing_classes"), THRESHOLD)
    mapper = SparseRCNNDatasetMapper(cfg, is_train=False)
    return DrawPredictions(cfg.TEST.EVAL_PERIOD, records, mapper, lambda: build_inference_model(cfg, model), drawer)
