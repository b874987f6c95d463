"""`Trainer`: detectron2's default trainer with the parts that Sparse R-CNN replaces."""

import logging
import math
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler

from ..data import SparseRCNNDatasetMapper
from ..errors import InputError
from ..evaluation.proposals import COCOAndProposalEvaluator
from ..evaluation.stages import with_stages
from ..evaluation.test_time_augmentation import SparseRCNNWithTTA
from ..files import CannotWriteError, write_json
from .build import amp_precision, build_inference_model, build_model, prepare_for_training
from .checkpoint import SparseRCNNCheckpointer
from .checkpoint_metadata import run_metadata
from .ema import average_weights
from .interrupt import StopAtInterrupt
from .optimizer import build_optimizer
from .optimizer_state import fit_groups
from .progress import ProgressLine
from .schedule import build_lr_scheduler
from .step import TrainStep

TRAIN_LOOP_LOGGER = "detectron2.engine.train_loop"


class Trainer(DefaultTrainer):
    """Trains and evaluates what `cfg` describes, as detectron2's `DefaultTrainer` does, on the CPU too.

    Differences: the optimizer, schedule, step and checkpointer of this package; an interrupt (Ctrl-C) finishes the
    iteration and saves a checkpoint; evaluation runs on a prepared copy of the model.
    """

    def __init__(self, cfg: CfgNode):
        # Not DefaultTrainer's: it can neither distribute a model on CPUs nor take another step or checkpointer.
        super(DefaultTrainer, self).__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        prepare_for_training(cfg, model)
        optimizer = self.build_optimizer(cfg, model)
        device_ids = [comm.get_local_rank()] if cfg.MODEL.DEVICE.startswith("cuda") else None
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)
        loader = self.build_train_loader(cfg)
        self._trainer = TrainStep(model, loader, optimizer, cfg.SOLVER.ACCUMULATE, amp_precision(cfg))
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        kept, metadata = cfg.SOLVER.CHECKPOINTS_KEPT, run_metadata(cfg)
        self.checkpointer = SparseRCNNCheckpointer(
            model, cfg.OUTPUT_DIR, kept=kept, metadata=metadata, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks([*self.build_hooks(), StopAtInterrupt()])

    def train(self) -> OrderedDict | None:  # type: ignore[override]  # the arguments of DefaultTrainer's
        """Train from `start_iter` to `max_iter`.

        Raises:
            InputError: an image cannot be used: the iterations before it are saved in a checkpoint. Or a file cannot be
                written: the checkpoints before it are whole.
        """
        logging.getLogger(TRAIN_LOOP_LOGGER).addFilter(_is_no_mistake)
        try:
            return super().train()
        except CannotWriteError:
            raise
        except InputError:
            if self.iter > self.start_iter:
                self.iter -= 1  # the last that is complete
                self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
            raise

    def load_state_dict(self, state_dict: dict) -> None:
        """Continue from a checkpoint's training state, be it ours or the published code's.

        Args:
            state_dict: as `state_dict` of this class or of detectron2's `DefaultTrainer` returns it.

        Raises:
            InputError: see `fit_groups`.
        """
        trainable = {name: p for name, p in self.checkpointer.model.named_parameters() if p.requires_grad}
        in_file = [trainable[name] for name in self.checkpointer.names_in_file if name in trainable]
        super().load_state_dict(fit_groups(state_dict, in_file, self._trainer.optimizer))

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg)
        logging.getLogger(__name__).info(f"Model:\n{model}")
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict]]:
        mapper = SparseRCNNDatasetMapper(cfg, is_train=True)
        # Only from page-locked memory can a GPU fetch images while it computes.
        return build_detection_train_loader(cfg, mapper=mapper, pin_memory=cfg.MODEL.DEVICE.startswith("cuda"))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict]]:
        mapper = SparseRCNNDatasetMapper(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        """The evaluator for the data set's `evaluator_type`.

        Args:
            output_folder: for the predictions, OUTPUT_DIR/inference/NAME if None.

        Raises:
            InputError: no evaluator for this type.
        """
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if kind == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name)
        if kind == "coco":
            folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
            return COCOAndProposalEvaluator(dataset_name, output_dir=folder)
        raise InputError(f"data set {dataset_name} has evaluator_type {kind!r}; only coco and pascal_voc are evaluated")

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None,
    ) -> OrderedDict:
        """Evaluate a copy of `model`, prepared for inference, on `DATASETS.TEST`.

        With `TEST.AUG` enabled it is evaluated again with test-time augmentation; these results have the suffix `_TTA`.
        So it is with each number of refinement stages in `TEST.STAGES`; the suffix is `_stage2`.
        Each data set's metrics are also written to OUTPUT_DIR/inference/NAME/metrics.json.
        """
        module = model.module if isinstance(model, DistributedDataParallel) else model
        prepared = build_inference_model(cfg, module)
        results = super().test(cfg, prepared, evaluators)
        for stages in cfg.TEST.STAGES:
            shorter = build_inference_model(cfg, with_stages(module, stages))
            results.update({f"{k}_stage{stages}": v for k, v in super().test(cfg, shorter, evaluators).items()})
        if cfg.TEST.AUG.ENABLED:
            logging.getLogger(__name__).info("Running inference with test-time augmentation ...")
            folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
            with_tta = [cls.build_evaluator(cfg, name, os.path.join(folder, name)) for name in cfg.DATASETS.TEST]
            augmented = super().test(cfg, SparseRCNNWithTTA(cfg, prepared), with_tta)
            results.update({f"{key}_TTA": value for key, value in augmented.items()})
        if comm.is_main_process():
            write_metrics(cfg, results)
        return results

    def build_hooks(self) -> list[HookBase | None]:
        hooks = super().build_hooks()
        return average_weights(self, hooks, self.cfg.SOLVER.EMA_DECAY) if self.cfg.SOLVER.EMA_DECAY else hooks

    def build_writers(self) -> list[EventWriter]:
        folder = self.cfg.OUTPUT_DIR
        os.makedirs(folder, exist_ok=True)
        json_writer = JSONWriter(os.path.join(folder, "metrics.json"))
        return [ProgressLine(self.max_iter), json_writer, TensorboardXWriter(folder)]


def _is_no_mistake(record: logging.LogRecord) -> bool:
    """Keeps the traceback of a user's mistake out of the log."""
    return not (record.exc_info and isinstance(record.exc_info[1], InputError))


def write_metrics(cfg: CfgNode, results: dict) -> None:
    """Write {task: {metric: value}} of each data set as JSON; a metric without value (no such objects) is null."""
    by_dataset = {cfg.DATASETS.TEST[0]: results} if len(cfg.DATASETS.TEST) == 1 else results
    for name, tasks in by_dataset.items():
        plain = {
            task: {metric: None if math.isnan(value) else float(value) for metric, value in metrics.items()}
            for task, metrics in tasks.items()
        }
        path = os.path.join(cfg.OUTPUT_DIR, "inference", name, "metrics.json")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_json(path, plain)
