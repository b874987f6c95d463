"""`DefaultTrainer`, and how training programs start."""

import logging
import os
import random

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.engine import (
    DefaultTrainer,
    default_argument_parser,
    default_setup,
    default_writers,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter

from .regression import Regression, batches


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
