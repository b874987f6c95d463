"""The training loop, `DefaultTrainer`, and how training programs start."""

import itertools
import logging
import os
import random

import numpy as np
import pytest
import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    default_argument_parser,
    default_setup,
    default_writers,
    hooks,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter, get_event_storage
from torch import nn


@META_ARCH_REGISTRY.register()
class Regression(nn.Module):
    """Two losses on a linear map; in eval mode returns its outputs."""

    def __init__(self, cfg=None):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 2)
        self.register_buffer("unit", torch.ones(()))

    def forward(self, x):
        y = self.linear(x)
        return {"loss_a": (y[:, 0] - 1).square().mean(), "loss_b": y[:, 1].abs().mean()} if self.training else y


def batches():
    generator = torch.Generator().manual_seed(1)
    while True:
        yield torch.rand(4, 3, generator=generator)


def simple_trainer(loader=None, model=None, **kwargs):
    model = model or Regression()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return SimpleTrainer(model, loader or batches(), optimizer, **kwargs)


def plain_training(iterations):
    """The weights after training without any trainer."""
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for x in itertools.islice(batches(), iterations):
        optimizer.zero_grad()
        sum(model(x).values()).backward()
        optimizer.step()
    return model.linear.weight.detach()


@pytest.mark.parametrize("options", [{}, {"zero_grad_before_forward": True}, {"async_write_metrics": True}])
def test_simple_trainer_equals_a_hand_written_loop(options):
    trainer = simple_trainer(**options)
    trainer.train(0, 6)
    torch.testing.assert_close(trainer.model.linear.weight.detach(), plain_training(6))
    assert trainer.iter == 6


@pytest.mark.parametrize("asynchronous", [False, True])
def test_losses_are_logged_every_gather_metric_period(asynchronous):
    trainer = simple_trainer(gather_metric_period=3, async_write_metrics=asynchronous)
    trainer.train(0, 7)
    history = trainer.storage.history("total_loss")
    assert [iteration for _, iteration in history.values()] == [2, 5]
    a, b = (trainer.storage.history(name).latest() for name in ("loss_a", "loss_b"))
    assert history.latest() == pytest.approx(a + b)
    assert trainer.storage.history("data_time").latest() >= 0


def test_a_single_tensor_is_a_loss():
    class One(Regression):
        def forward(self, x):
            return sum(super().forward(x).values())

    trainer = simple_trainer(model=One())
    trainer.train(0, 6)
    torch.testing.assert_close(trainer.model.linear.weight.detach(), plain_training(6))
    assert len(trainer.storage.history("total_loss").values()) == 6


def test_loss_that_is_not_finite_stops_training():
    model = Regression()
    with torch.no_grad():
        model.linear.weight.fill_(float("nan"))
    with pytest.raises(
        FloatingPointError, match=r"Loss became infinite or NaN at iteration=4!\nloss_dict = \{.*loss_a"
    ):
        simple_trainer(model=model).train(4, 8)


def test_model_in_eval_mode_is_refused():
    trainer = simple_trainer()
    trainer.model.eval()
    with pytest.raises(AssertionError, match="eval mode"):
        trainer.train(0, 1)


def test_reset_data_loader():
    trainer = simple_trainer(iter([torch.zeros(1, 3)]))
    trainer.train(0, 1)
    trainer.reset_data_loader(lambda: iter([torch.ones(1, 3)]))
    trainer.train(1, 2)
    assert trainer.iter == 2


class Recorder(HookBase):
    def __init__(self):
        self.calls = []

    def before_train(self):
        self.calls.append("before_train")

    def after_train(self):
        self.calls.append(f"after_train {self.trainer.iter} {self.trainer.storage.iter}")

    def before_step(self):
        self.calls.append(f"before_step {self.trainer.storage.iter}")

    def after_backward(self):
        self.calls.append("after_backward")

    def after_step(self):
        self.calls.append(f"after_step {self.trainer.iter}")


def test_hooks_are_called_around_the_steps():
    trainer, recorder = simple_trainer(), Recorder()
    trainer.register_hooks([None, recorder])
    trainer.train(3, 5)
    assert (trainer.start_iter, trainer.max_iter) == (3, 5)
    steps = [[f"before_step {i}", "after_backward", f"after_step {i}"] for i in (3, 4)]
    assert recorder.calls == ["before_train", *steps[0], *steps[1], "after_train 5 5"]


def test_after_train_runs_when_a_step_fails():
    class Failing(TrainerBase):
        def run_step(self):
            raise RuntimeError("step failed")

    trainer, recorder = Failing(), Recorder()
    trainer.register_hooks([recorder])
    with pytest.raises(RuntimeError, match="step failed"):
        trainer.train(0, 2)
    assert recorder.calls[-1] == "after_train 0 0"


def test_only_hooks_can_be_registered():
    with pytest.raises(AssertionError):
        TrainerBase().register_hooks([print])
    with pytest.raises(NotImplementedError):
        TrainerBase().run_step()


def test_resumed_training_equals_uninterrupted(tmp_path):
    def trainer_with_checkpoints(loader):
        trainer = simple_trainer(loader)
        scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 4)
        trainer.register_hooks([hooks.LRScheduler(scheduler=scheduler)])
        checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path), trainer=trainer)
        trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, 5)])
        return trainer, checkpointer, scheduler

    first, *_ = trainer_with_checkpoints(batches())
    first.train(0, 5)
    loader = batches()
    whole, *_ = trainer_with_checkpoints(loader)
    whole.train(0, 9)

    resumed, checkpointer, scheduler = trainer_with_checkpoints(itertools.islice(batches(), 5, None))
    checkpointer.load(str(tmp_path / "model_0000004.pth"))
    assert resumed.iter == 4
    assert scheduler.last_epoch == 5
    resumed.train(resumed.iter + 1, 9)
    torch.testing.assert_close(resumed.model.linear.weight, whole.model.linear.weight, rtol=0, atol=0)


def test_state_of_a_hook_that_is_not_there_is_ignored_with_a_warning(caplog):
    trainer = TrainerBase()
    with caplog.at_level(logging.WARNING):
        trainer.load_state_dict({"iteration": 7, "hooks": {"NoSuchHook": {"a": 1}}})
    assert trainer.iter == 7
    assert "NoSuchHook" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows the message without CUDA")
def test_amp_trainer_needs_cuda():
    model = Regression()
    trainer = AMPTrainer(model, batches(), torch.optim.SGD(model.parameters(), 0.1), precision=torch.bfloat16)
    assert {"iteration", "optimizer", "grad_scaler"} <= trainer.state_dict().keys()
    with pytest.raises(AssertionError, match="CUDA is required for AMP training"):
        trainer.train(0, 1)


class RegressionTrainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return batches()

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return [torch.full((1, 3), value) for value in (0.0, 1.0)]


class EvaluatedTrainer(RegressionTrainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return MeanEvaluator()


class MeanEvaluator(DatasetEvaluator):
    def reset(self):
        self.values = []

    def process(self, inputs, outputs):
        self.values.append(outputs.mean().item())

    def evaluate(self):
        return {"regression": {"mean": float(np.mean(self.values))}}


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "Regression"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.DATASETS.TEST = ("any",)
    cfg.SOLVER.MAX_ITER = 4
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    cfg.TEST.EVAL_PERIOD = 2
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg


def test_default_trainer_trains_evaluates_and_saves(cfg, tmp_path):
    trainer = EvaluatedTrainer(cfg)
    trainer.resume_or_load(resume=False)
    before = trainer.model.linear.weight.detach().clone()
    trainer.train()
    assert not torch.equal(before, trainer.model.linear.weight)
    assert {"model_0000001.pth", "model_final.pth", "last_checkpoint", "metrics.json"} <= set(os.listdir(tmp_path))
    history = trainer.storage.history("regression/mean").values()
    assert [iteration for _, iteration in history] == [1, 4]

    saved = torch.load(tmp_path / "model_final.pth", weights_only=False)
    assert saved["iteration"] == 3
    assert saved["trainer"]["iteration"] == 3
    assert "optimizer" in saved["trainer"]["_trainer"]


def test_default_trainer_resumes_after_the_last_finished_iteration(cfg):
    first = RegressionTrainer(cfg)
    first.resume_or_load(resume=True)
    assert first.start_iter == 0
    first.train()
    cfg.SOLVER.MAX_ITER = 6
    resumed = RegressionTrainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 4
    torch.testing.assert_close(resumed.model.linear.weight, first.model.linear.weight)
    assert resumed.optimizer.state_dict()["state"].keys() == first.optimizer.state_dict()["state"].keys()

    fresh = RegressionTrainer(cfg)
    fresh.resume_or_load(resume=False)
    assert fresh.start_iter == 0


def test_default_trainer_shares_its_parts_with_the_inner_trainer(cfg):
    trainer = RegressionTrainer(cfg)
    assert trainer.model is trainer._trainer.model
    assert trainer.optimizer is trainer._trainer.optimizer
    trainer.model = Regression()
    assert trainer.model is trainer._trainer.model
    trainer.data_loader = loader = batches()
    assert trainer._trainer.data_loader is loader


def test_hooks_of_the_default_trainer(cfg):
    kinds = [type(hook).__name__ for hook in RegressionTrainer(cfg).build_hooks() if hook is not None]
    assert kinds == ["IterationTimer", "LRScheduler", "PeriodicCheckpointer", "EvalHook", "PeriodicWriter"]


def test_evaluation_without_evaluator_gives_empty_results(cfg, caplog):
    with caplog.at_level(logging.WARNING):
        assert RegressionTrainer.test(cfg, Regression()) == {}
    assert "No evaluator found" in caplog.text


def test_evaluation_with_given_evaluators(cfg):
    model = Regression().eval()
    mean = model(torch.tensor([[0.0] * 3, [1.0] * 3])).mean().item()
    one = RegressionTrainer.test(cfg, model, MeanEvaluator())
    assert one == {"regression": {"mean": pytest.approx(mean)}}
    cfg.DATASETS.TEST = ("any", "other")
    both = RegressionTrainer.test(cfg, model, [MeanEvaluator(), MeanEvaluator()])
    assert list(both) == ["any", "other"]
    assert both["other"] == one
    with pytest.raises(AssertionError, match="2 != 1"):
        RegressionTrainer.test(cfg, model, MeanEvaluator())


def test_expected_results_are_verified_after_training(cfg):
    cfg.TEST.EXPECTED_RESULTS = [["regression", "mean", 1000.0, 0.1]]
    with pytest.raises(SystemExit):
        EvaluatedTrainer(cfg).train()


def test_auto_scale_workers(cfg):
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 8
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER = 16, 0.02, 9000
    cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.CHECKPOINT_PERIOD = (6000, 8000), 100, 500
    cfg.TEST.EVAL_PERIOD = 1000
    cfg.freeze()
    half = DefaultTrainer.auto_scale_workers(cfg, 4)
    assert half.is_frozen()
    solver = half.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER) == (8, 0.01, 18000)
    assert (solver.STEPS, solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD) == ((12000, 16000), 200, 1000)
    assert (half.TEST.EVAL_PERIOD, solver.REFERENCE_WORLD_SIZE) == (2000, 4)
    assert cfg.SOLVER.IMS_PER_BATCH == 16
    assert DefaultTrainer.auto_scale_workers(cfg, 8) is cfg


def test_argument_parser():
    parser = default_argument_parser()
    args = parser.parse_args([])
    assert (args.config_file, args.resume, args.eval_only) == ("", False, False)
    assert (args.num_gpus, args.num_machines, args.machine_rank) == (1, 1, 0)
    assert args.dist_url.startswith("tcp://127.0.0.1:")
    assert not args.opts
    args = parser.parse_args("--config-file a.yaml --num-gpus 2 --eval-only SOLVER.BASE_LR 0.1".split())
    assert (args.config_file, args.num_gpus, args.eval_only) == ("a.yaml", 2, True)
    assert args.opts == ["SOLVER.BASE_LR", "0.1"]
    assert "Run on multiple machines" in parser.format_help()
    assert "my own words" in default_argument_parser("my own words").format_help()


@pytest.fixture
def restored_logging():
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    state = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, state, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_default_setup_saves_the_config_and_seeds(cfg, tmp_path, restored_logging):
    config_file = tmp_path / "given.yaml"
    config_file.write_text("SEED: 7\n")
    cfg.merge_from_file(str(config_file))
    args = default_argument_parser().parse_args(["--config-file", str(config_file)])
    draws = []
    for _ in range(2):
        default_setup(cfg, args)
        draws.append((torch.rand(1).item(), np.random.rand(), random.random()))
    assert draws[0] == draws[1]

    reloaded = get_cfg()
    reloaded.merge_from_file(str(tmp_path / "config.yaml"))
    assert yaml.safe_load(reloaded.dump()) == yaml.safe_load(cfg.dump())
    log = (tmp_path / "log.txt").read_text()
    for expected in (
        "Environment info:",
        "Command line arguments:",
        "Contents of args.config_file=",
        "Running with full",
    ):
        assert expected in log


def test_default_writers(tmp_path):
    writers = default_writers(str(tmp_path / "new"), 10)
    assert [type(writer) for writer in writers] == [CommonMetricPrinter, JSONWriter, TensorboardXWriter]
    assert (tmp_path / "new").is_dir()
    for writer in writers:
        writer.close()


def test_storage_is_only_open_during_training():
    trainer = simple_trainer()
    trainer.register_hooks([hooks.CallbackHook(after_step=lambda t: get_event_storage().put_scalar("seen", 1))])
    trainer.train(0, 1)
    assert trainer.storage.history("seen").latest() == 1
    with pytest.raises(AssertionError):
        get_event_storage()
