"""The training loop and its hooks."""

import itertools
import logging

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import (
    AMPTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    hooks,
)
from detectron2.utils.events import get_event_storage

from .regression import Regression, batches


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


def test_storage_is_only_open_during_training():
    trainer = simple_trainer()
    trainer.register_hooks([hooks.CallbackHook(after_step=lambda t: get_event_storage().put_scalar("seen", 1))])
    trainer.train(0, 1)
    assert trainer.storage.history("seen").latest() == 1
    with pytest.raises(AssertionError):
        get_event_storage()
