"""The hooks of the training loop."""

import json
import logging

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import SimpleTrainer, hooks
from detectron2.utils.events import CommonMetricPrinter, JSONWriter
from fvcore.common.param_scheduler import LinearParamScheduler
from torch import nn


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return {"loss": (self.scale * x).mean()}


def make_trainer(*registered, lr=0.1):
    model = Mean()

    def loader():
        while True:
            yield torch.ones(2)

    trainer = SimpleTrainer(model, loader(), torch.optim.SGD(model.parameters(), lr))
    trainer.register_hooks(list(registered))
    return trainer


@pytest.mark.parametrize(
    ("max_iter", "period", "after_train", "expected"),
    [
        (30, 15, True, [14, 30]),
        (31, 15, True, [14, 29, 31]),
        (20, 0, True, [20]),
        (30, 15, False, [14]),
    ],
)
def test_eval_hook_runs_periodically_and_at_the_end(max_iter, period, after_train, expected):
    trainer = make_trainer()
    seen = []
    trainer.register_hooks([hooks.EvalHook(period, lambda: seen.append(trainer.iter), eval_after_train=after_train)])
    trainer.train(0, max_iter)
    assert seen == expected


def test_eval_hook_logs_nested_results():
    trainer = make_trainer(hooks.EvalHook(0, lambda: {"bbox": {"AP": 40.0}, "plain": 2}))
    trainer.train(0, 3)
    assert trainer.storage.latest()["bbox/AP"] == (40.0, 3)
    assert trainer.storage.latest()["plain"] == (2, 3)


def test_eval_hook_refuses_what_is_not_a_number():
    with pytest.raises(ValueError, match="nested dict of float. Got 'a/b: word'"):
        make_trainer(hooks.EvalHook(0, lambda: {"a": {"b": "word"}})).train(0, 1)
    with pytest.raises(AssertionError, match="must return a dict"):
        make_trainer(hooks.EvalHook(0, lambda: [1])).train(0, 1)


def test_no_evaluation_after_training_failed():
    calls = []

    def fail(trainer):
        raise RuntimeError("broken")

    trainer = make_trainer(hooks.EvalHook(0, lambda: calls.append(1)), hooks.CallbackHook(after_step=fail))
    with pytest.raises(RuntimeError, match="broken"):
        trainer.train(0, 5)
    assert calls == []


@pytest.mark.parametrize(
    ("mode", "scores", "saved_at"),
    [
        ("max", [3.0, 5.0, 4.0, 5.0], [1, 3]),
        ("min", [3.0, 5.0, 2.0, 2.0], [1, 5]),
        ("max", [float("nan"), 1.0, float("inf"), 0.5], [3, 5]),
    ],
)
def test_best_checkpointer(mode, scores, saved_at):
    saves = []

    class Checkpointer:
        def save(self, name, **extra):
            saves.append((name, extra["iteration"]))

    metrics = iter(scores)
    trainer = make_trainer(
        hooks.EvalHook(2, lambda: {"val": next(metrics)}),
        hooks.BestCheckpointer(2, Checkpointer(), "val", mode=mode, file_prefix="best"),
    )
    trainer.train(0, 8)
    assert saves == [("best", i) for i in saved_at]


def test_best_checkpointer_without_the_metric_warns(tmp_path, caplog):
    trainer = make_trainer()
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path))
    trainer.register_hooks([hooks.BestCheckpointer(0, checkpointer, "no/such")])
    with caplog.at_level(logging.WARNING):
        trainer.train(0, 2)
    assert "no/such does not seem to be computed" in caplog.text
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(AssertionError):
        hooks.BestCheckpointer(0, checkpointer, "no/such", mode="highest")


def test_best_checkpointer_saves_the_model(tmp_path):
    trainer = make_trainer()
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path))
    trainer.register_hooks([hooks.EvalHook(0, lambda: {"val": 1.0}), hooks.BestCheckpointer(0, checkpointer, "val")])
    trainer.train(0, 2)
    saved = torch.load(tmp_path / "model_best.pth", weights_only=False)
    torch.testing.assert_close(saved["model"]["scale"], trainer.model.scale.detach())


def test_periodic_checkpointer(tmp_path):
    trainer = make_trainer()
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path), trainer=trainer)
    trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, 2)])
    trainer.train(0, 5)
    assert {p.name for p in tmp_path.glob("*.pth")} == {"model_0000001.pth", "model_0000003.pth", "model_final.pth"}
    assert torch.load(tmp_path / "model_final.pth", weights_only=False)["iteration"] == 4


def test_periodic_writer_writes_what_was_logged_last(tmp_path):
    path = tmp_path / "metrics.json"
    printer = CommonMetricPrinter(50)
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    printer.logger.addHandler(handler)
    level = printer.logger.level
    printer.logger.setLevel(logging.INFO)
    try:
        trainer = make_trainer(
            hooks.IterationTimer(),
            hooks.EvalHook(0, lambda: {"metric": 100}),
            hooks.PeriodicWriter([printer, JSONWriter(str(path))]),
        )
        trainer.train(0, 50)
    finally:
        printer.logger.removeHandler(handler)
        printer.logger.setLevel(level)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["iteration"] for record in records] == [19, 39, 49, 50]
    assert records[-1]["metric"] == 100
    assert all("eta" in line and "loss:" in line for line in lines[:2])


def test_periodic_writer_takes_writers_only():
    with pytest.raises(AssertionError):
        hooks.PeriodicWriter([print])


def test_lr_scheduler_logs_the_rate_that_was_used():
    trainer = make_trainer(lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 2, gamma=0.1)
    trainer.register_hooks([hooks.LRScheduler(scheduler=scheduler)])
    trainer.train(0, 4)
    rates = [rate for rate, _ in trainer.storage.history("lr").values()]
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1])
    assert scheduler.last_epoch == 4


def test_lr_scheduler_takes_multipliers_and_the_trainers_own():
    trainer = make_trainer(lr=2.0)
    trainer.scheduler = LinearParamScheduler(1.0, 0.0)
    trainer.register_hooks([hooks.LRScheduler()])
    trainer.train(0, 4)
    rates = [rate for rate, _ in trainer.storage.history("lr").values()]
    assert rates == pytest.approx([2.0, 1.5, 1.0, 0.5])


def test_lr_is_that_of_the_representative_group():
    p = [nn.Parameter(torch.zeros(1)) for _ in range(5)]
    best = hooks.LRScheduler.get_best_param_group_id
    assert best(torch.optim.SGD([{"params": p[:1]}, {"params": p[1:4]}, {"params": p[4:]}], 0.1)) == 1
    singles = [{"params": [p[0]], "lr": 0.5}, {"params": [p[1]], "lr": 0.1}, {"params": [p[2]], "lr": 0.1}]
    assert best(torch.optim.SGD(singles, 1.0)) == 1


def test_callback_hook():
    calls = []
    hook = hooks.CallbackHook(
        before_train=lambda trainer: calls.append(("before_train", trainer.iter)),
        before_step=lambda trainer: calls.append(("before_step", trainer.iter)),
        after_step=lambda trainer: calls.append(("after_step", trainer.iter)),
        after_train=lambda trainer: calls.append(("after_train", trainer.iter)),
    )
    make_trainer(hook).train(0, 1)
    assert calls == [("before_train", 0), ("before_step", 0), ("after_step", 0), ("after_train", 1)]


def test_iteration_timer_leaves_out_the_warm_up(caplog):
    trainer = make_trainer(hooks.IterationTimer(warmup_iter=3))
    with caplog.at_level(logging.INFO):
        trainer.train(5, 12)
    assert [iteration for _, iteration in trainer.storage.history("time").values()] == [7, 8, 9, 10, 11]
    assert "Overall training speed: 5 iterations in" in caplog.text
    assert "Total training time:" in caplog.text


def test_precise_bn_uses_true_averages():
    model = nn.Sequential(nn.BatchNorm1d(2))
    data = [torch.randn(8, 2, generator=torch.Generator().manual_seed(i)) * (i + 1) for i in range(4)]
    hook = hooks.PreciseBN(0, model, data, 4)
    hook.update_stats()
    expected = torch.stack([x.mean(0) for x in data]).mean(0)
    torch.testing.assert_close(model[0].running_mean, expected)


def test_precise_bn_is_off_without_batch_norm():
    hook = hooks.PreciseBN(0, nn.Linear(1, 1), [], 4)
    hook.update_stats()  # would fail on the empty data


def test_profiler_saves_a_trace(tmp_path):
    activities = [torch.profiler.ProfilerActivity.CPU]
    hook = hooks.TorchProfiler(lambda t: t.iter == 1, str(tmp_path), activities=activities, save_tensorboard=False)
    make_trainer(hook).train(0, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["profiler-trace-iter1.json"]
    trace = json.loads((tmp_path / "profiler-trace-iter1.json").read_text())
    assert trace


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows the behavior without CUDA")
def test_memory_stats_are_silent_without_cuda(caplog):
    with caplog.at_level(logging.INFO):
        make_trainer(hooks.TorchMemoryStats(period=1)).train(0, 2)
    assert "max_reserved_mem" not in caplog.text
