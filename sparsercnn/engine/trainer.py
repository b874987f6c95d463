"""`Trainer`: detectron2's default trainer with the parts that Sparse R-CNN replaces."""

import errno
import gc
import logging
import os
import weakref
from collections import OrderedDict
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, TensorboardXWriter
from detectron2.utils.logger import setup_logger
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ..data import SparseRCNNDatasetMapper
from ..data.training import TrainingBatches, build_training_batches
from ..errors import InputError
from ..randomness import Purpose, seed_generators
from .build import amp_precision, build_model, prepare_for_training
from .checkpoints.checkpointer import SparseRCNNCheckpointer
from .checkpoints.metadata import run_metadata
from .checkpoints.optimizer_state import fit_groups
from .distributed.agreement import share_buffers
from .early_stopping import EarlyStopping
from .ema import CHECKPOINT_KEY, ExponentialMovingAverage
from .evaluation import EvaluatingTrainer
from .events import MetricsFile, RunEvents, WriteEvents
from .failed_step import FailedSteps
from .interrupt import Stopped, StopSignals
from .level_report import report_levels
from .not_finite import NotFiniteError
from .optimizer import build_optimizer
from .precise_bn import PreciseBatchNorm
from .prediction_pictures import draw_predictions
from .progress import ProgressLine
from .saving import SaveBest, SaveCheckpoints, SaveThreshold
from .schedule import build_lr_scheduler
from .step import TrainStep, UnusableImageError
from .trackers import build_trackers

# What detectron2 logs a failed training to.
TRAIN_LOOP_LOGGER = "detectron2.engine.train_loop"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Trainer(EvaluatingTrainer):
    """Trains and evaluates what `cfg` describes, as detectron2's `DefaultTrainer` does, on the CPU too.

    A run that is interrupted at any moment and continued ends as one that was not, bit for bit: weights, optimizer,
    metrics and best score. For that, what is random follows from the seed of the run and the iteration; a checkpoint
    holds all state (that of the hooks and of whatever is among the checkpointables of `checkpointer`); and what follows
    a checkpoint in its iteration, the evaluation above all, is done again.

    What can change the last bits: another number of threads; a GPU, unless PyTorch is told to use deterministic
    algorithms; more than two processes, because the order in which the first step of a process sums gradients differs
    from that of the later ones. Another number of processes keeps the images of each iteration, not the bits. Another
    batch size begins where as many batches of that size would have ended.

    Other differences to `DefaultTrainer`: the optimizer, schedule, step and checkpointer of this package; settings are
    always those of the config, state is that of the checkpoint; signals that ask to stop finish the iteration and save;
    numbers that are not finite end the training before they do harm; evaluation runs on a prepared copy of the model.

    Attributes:
        seed: `SEED` of the config, or one drawn for the run and kept in its checkpoints.
        evaluated: what evaluation looks at: the model, or the average of its weights.
    """

    _trainer: TrainStep
    storage: RunEvents

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
        self.batches = self.build_train_loader(cfg)
        self.signals = StopSignals()
        step_options = cfg.SOLVER.ACCUMULATE, amp_precision(cfg), self.signals
        self._trainer = TrainStep(model, self.batches, optimizer, *step_options)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        kept, metadata = cfg.SOLVER.CHECKPOINTS_KEPT, run_metadata(cfg)
        self.checkpointer = SparseRCNNCheckpointer(
            model, cfg.OUTPUT_DIR, kept=kept, metadata=metadata, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.storage = RunEvents()
        self.failed_steps = FailedSteps(cfg)
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase | None]:
        """Timing, averaging, learning rate, precise batch norm; checkpoints; evaluation, best checkpoint and writing.

        A hook that changes the state of the training belongs before `SaveCheckpoints`. One that only looks at it comes
        after.
        """
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0  # workers for precise batch norm alone would hold memory all the time
        precise_bn = None
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            loader = self.build_train_loader(cfg)
            precise_bn = PreciseBatchNorm(cfg.TEST.EVAL_PERIOD, self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER)
        averaging = None
        if cfg.SOLVER.EMA_DECAY:
            averaging = ExponentialMovingAverage(self.model, cfg.SOLVER.EMA_DECAY)
            self.checkpointer.add_checkpointable(CHECKPOINT_KEY, averaging.average)
        self.evaluated = averaging.average.module if averaging else self.model
        self.checkpoints = SaveCheckpoints(cfg.SOLVER.CHECKPOINT_PERIOD, self.signals)
        after_checkpoints: list[HookBase] = [hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate)]
        if cfg.DATASETS.TEST and comm.is_main_process():
            dataset = cfg.DATASETS.TEST[0]
            folder = Path(cfg.OUTPUT_DIR) / "inference" / dataset
            after_checkpoints.append(SaveThreshold(cfg.TEST.EVAL_PERIOD, dataset, folder, self.checkpoints))
        if cfg.TEST.EVAL_PERIOD and cfg.DATASETS.TEST:
            metric = "bbox/AP" if len(cfg.DATASETS.TEST) == 1 else f"{cfg.DATASETS.TEST[0]}/bbox/AP"
            best = SaveBest(cfg.TEST.EVAL_PERIOD, metric, self.checkpoints)
            after_checkpoints.append(best)
            if cfg.SOLVER.EARLY_STOPPING:
                after_checkpoints.append(EarlyStopping(cfg.SOLVER.EARLY_STOPPING, best))
        if comm.is_main_process():
            if cfg.TEST.PICTURES and cfg.DATASETS.TEST:
                after_checkpoints.append(draw_predictions(cfg, getattr(self.evaluated, "module", self.evaluated)))
            after_checkpoints.append(WriteEvents(self.build_writers(), cfg.TEST.EVAL_PERIOD))
        self._after_checkpoints = after_checkpoints
        changing = [hooks.IterationTimer(), averaging, hooks.LRScheduler(), precise_bn]
        return [*changing, self.checkpoints, *after_checkpoints]

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint in `OUTPUT_DIR` if `resume` and there is one, else load `MODEL.WEIGHTS`.

        Raises:
            InputError: the checkpoint has more iterations than `SOLVER.MAX_ITER`, or cannot be loaded.
        """
        self.iter = -1
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        # `load_state_dict` sets the iteration of the checkpoint.
        self.start_iter = self.iter + 1
        if self.start_iter > self.max_iter:
            raise InputError(
                f"the run has {self.start_iter} iterations already, more than SOLVER.MAX_ITER {self.max_iter}; "
                "evaluate it with --eval-only"
            )
        if self.start_iter == self.max_iter:
            logging.getLogger(__name__).info(f"All {self.max_iter} iterations are done; what is left is the evaluation")

    def train(self) -> OrderedDict | None:  # type: ignore[override]  # the arguments of DefaultTrainer's
        """Train from `start_iter` to `max_iter`.

        Returns:
            The results of the last evaluation, if the config expects some.

        Raises:
            InputError: an image cannot be used (the iterations before it are saved in a checkpoint), a number is not
                finite, or a file cannot be written (the checkpoints before it are whole).
            Stopped: a signal asked to stop. The state after the last complete iteration is saved.
        """
        self._trainer.seed = self.batches.seed = self.seed
        self.batches.start = self.start_iter * self.cfg.SOLVER.ACCUMULATE
        self.failed = False
        logger = logging.getLogger(TRAIN_LOOP_LOGGER)
        report_levels(self.cfg, self.model, self.batches.dataset)
        logger.info(f"Starting training from iteration {self.start_iter}")
        with self.storage, self.signals:
            try:
                self._run()
            except Exception as error:
                if mistake := self._as_input_error(error):
                    logger.error(f"Training stopped: {mistake}")
                    raise mistake from error
                logger.exception("Exception during training:")
                raise
        if self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
            verify_results(self.cfg, self._last_eval_results)
            return self._last_eval_results
        return None

    def _as_input_error(self, error: Exception) -> InputError | None:
        """What a user should be told in one line; None if the error is the program's."""
        if isinstance(error, InputError):
            return error
        if isinstance(error, FloatingPointError):
            return InputError(str(error))
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return InputError(f"cannot write to OUTPUT_DIR {self.cfg.OUTPUT_DIR}: {error.strerror}")
        return None

    def _run(self) -> None:
        try:
            self.before_train()
            if self.start_iter:
                self._repeat_after_checkpoint(self.start_iter - 1)
            for iteration in range(self.start_iter, self.max_iter):
                self.iter = iteration
                self.before_step()
                self.run_step()
                self.after_step()
                if iteration + 1 == self.max_iter:  # `EarlyStopping` changes it
                    break
            # Tells `after_train` that training came to its end.
            self.iter = self.max_iter
        except BaseException:
            self.failed = True
            raise
        finally:
            self.after_train()

    def _repeat_after_checkpoint(self, iteration: int) -> None:
        """What the run that saved a checkpoint after this iteration did next, and may not have come to the end of."""
        self.iter = self.storage.iter = iteration
        for hook in self._after_checkpoints:
            hook.after_step()

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        try:
            self._trainer.run_step()
        except NotFiniteError as error:
            self.failed_steps.handle(error, self._trainer)
        except UnusableImageError:
            self.iter -= 1  # the last that is complete
            self.checkpoints.save_unless_saved()
            # The first process that ends takes the others down, which may be saving.
            comm.synchronize()
            raise

    def _evaluate(self) -> OrderedDict | None:
        """Evaluate the model, unless training failed; a signal stops it at once.

        Raises:
            Stopped: a signal came. The state after the last complete iteration is saved.
        """
        if self.failed:
            return None
        seed_generators(self.seed, Purpose.EVALUATION, self.iter, comm.get_rank())
        try:
            with self.signals.act_at_once():
                share_buffers(self.evaluated)
                self._last_eval_results = self.test(self.cfg, self.evaluated)
        except Stopped:
            self.checkpoints.save_unless_saved()
            raise
        # The copy that was evaluated refers to itself: it would stay in memory until Python looks for such things.
        gc.collect()
        return self._last_eval_results

    def state_dict(self) -> dict:
        """The whole state after the last complete iteration, of plain values and tensors."""
        return {
            **super().state_dict(),
            "iteration": min(self.iter, self.max_iter - 1),
            "seed": self.seed,
            "events": self.storage.state_dict(),
            "skipped_steps": self.failed_steps.skipped,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Continue from a checkpoint's training state, be it ours or the published code's.

        Settings stay those of the config: learning rates, weight decay, and the seed unless it is -1.

        Args:
            state_dict: as `state_dict` of this class or of detectron2's `DefaultTrainer` returns it.

        Raises:
            InputError: see `fit_groups`.
        """
        trainable = {name: p for name, p in self.checkpointer.model.named_parameters() if p.requires_grad}
        in_file = [trainable[name] for name in self.checkpointer.names_in_file if name in trainable]
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        base_lrs = self.scheduler.base_lrs
        super().load_state_dict(fit_groups(state_dict, in_file, self.optimizer))
        self.scheduler.base_lrs = base_lrs
        for group, setting, rate in zip(self.optimizer.param_groups, settings, self.scheduler.get_lr(), strict=True):
            group.update(setting, lr=rate)
        # The rest is not in those of other programs.
        if self.cfg.SEED < 0:
            self.seed = state_dict.get("seed", self.seed)
        self.storage.load_state_dict(state_dict.get("events", {}))
        self.failed_steps.skipped = state_dict.get("skipped_steps", 0)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainingBatches:
        return build_training_batches(cfg, SparseRCNNDatasetMapper(cfg, is_train=True))

    def build_writers(self) -> list[EventWriter]:
        folder = self.cfg.OUTPUT_DIR
        os.makedirs(folder, exist_ok=True)
        metrics = MetricsFile(os.path.join(folder, "metrics.json"))
        return [ProgressLine(self.max_iter), metrics, TensorboardXWriter(folder), *build_trackers(self.cfg)]
