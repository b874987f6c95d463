"""Runs of train_net.py that are interrupted, continued, overwritten, or meet numbers that are not finite."""

import copy
import json
import shutil
import signal

import pytest
import torch

import train_net
from sparsercnn import load_config
from sparsercnn.engine import TrainStep, build_model
from sparsercnn.engine.failed_step import replay
from sparsercnn.engine.interrupt import STOPPING
from tests.reliability.kills import checkpoint, metrics, same
from tests.tiny_run import QUICKSTART, TINY, error_of, run
from tools import replay_batch

pytestmark = pytest.mark.usefixtures("loggers")


def test_resuming_continues_after_the_last_iteration(tiny, tmp_path):
    assert run("SOLVER.MAX_ITER", 2, "OUTPUT_DIR", tmp_path) == 0
    assert run("SOLVER.MAX_ITER", 4, "OUTPUT_DIR", tmp_path, flags=["--resume"]) == 0
    trainer = torch.load(tmp_path / "model_final.pth", weights_only=True)["trainer"]
    assert trainer["iteration"] == 3
    steps = [state["step"].item() for state in trainer["_trainer"]["optimizer"]["state"].values()]
    assert set(steps) == {4}


def resume(checkpoint, folder):
    """Weights after two more iterations."""
    folder.mkdir()
    torch.save(checkpoint, folder / "model_0000002.pth")
    (folder / "last_checkpoint").write_text("model_0000002.pth")
    assert run("SOLVER.MAX_ITER", 5, "SEED", 7, "OUTPUT_DIR", folder, flags=["--resume"]) == 0
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def as_published(checkpoint):
    """With an optimizer group for each parameter, and the learned proposals before the head."""
    checkpoint = copy.deepcopy(checkpoint)
    model = build_model(load_config(QUICKSTART, TINY))
    ours = [name for name, p in model.named_parameters() if p.requires_grad]
    checkpoint["model"] = dict(sorted(checkpoint["model"].items(), key=lambda item: item[0].startswith("head.")))
    published = [name for name in checkpoint["model"] if name in ours]
    assert published != ours
    optimizer = checkpoint["trainer"]["_trainer"]["optimizer"]
    (group,) = optimizer["param_groups"]
    optimizer["state"] = {i: optimizer["state"][ours.index(name)] for i, name in enumerate(published)}
    optimizer["param_groups"] = [{**group, "params": [i]} for i in range(len(published))]
    checkpoint["trainer"]["hooks"]["LRScheduler"]["base_lrs"] *= len(published)
    return checkpoint


def test_a_published_checkpoint_resumes_as_ours_does(trained, tmp_path):
    checkpoint = torch.load(trained / "model_final.pth", weights_only=True)
    published = as_published(checkpoint)
    earlier = {key: value for key, value in published.items() if key != "trainer"}
    earlier["optimizer"] = published["trainer"]["_trainer"]["optimizer"]
    earlier["scheduler"] = published["trainer"]["hooks"]["LRScheduler"]
    expected = resume(checkpoint, tmp_path / "ours")
    assert not torch.equal(expected["init_proposal_boxes.weight"], checkpoint["model"]["init_proposal_boxes.weight"])
    for name, state in {"published": published, "earlier": earlier}.items():
        torch.testing.assert_close(resume(state, tmp_path / name), expected)


def test_weights_alone_are_not_resumed(trained, tmp_path, capsys):
    torch.save({"model": torch.load(trained / "model_final.pth", weights_only=True)["model"]}, tmp_path / "weights.pth")
    (tmp_path / "last_checkpoint").write_text("weights.pth")
    message = error_of(capsys, "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", 5, flags=["--resume"])
    assert "weights.pth" in message and "no state of a training" in message


@pytest.fixture
def heeded():
    """Tests may run in the background, where Ctrl-C is ignored, or under nohup."""
    previous = {number: signal.signal(number, signal.default_int_handler) for number in STOPPING}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_the_run_continues_as_if_nothing_had_happened(
    trained, tmp_path, capsys, monkeypatch, heeded, number, code
):
    whole_step = TrainStep.run_step

    def interrupted_step(self):
        whole_step(self)
        if self.iter == 1:
            signal.raise_signal(number)

    monkeypatch.setattr(TrainStep, "run_step", interrupted_step)
    assert run("SOLVER.MAX_ITER", 3, "SEED", 3, "OUTPUT_DIR", tmp_path) == code
    assert "--resume" in capsys.readouterr().err
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert signal.getsignal(number) is signal.default_int_handler
    monkeypatch.undo()
    assert run("SOLVER.MAX_ITER", 3, "SEED", 3, "OUTPUT_DIR", tmp_path, flags=["--resume"]) == 0
    assert same(checkpoint(trained / "model_final.pth"), checkpoint(tmp_path / "model_final.pth"))
    assert metrics(trained) == metrics(tmp_path)


def test_a_signal_during_an_evaluation_stops_it_at_once(trained, tmp_path, monkeypatch):
    def interrupted_evaluation(*args):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the signal did nothing")

    monkeypatch.setattr("sparsercnn.engine.evaluation.build_inference_model", interrupted_evaluation)
    options = ["SOLVER.MAX_ITER", 3, "SEED", 3, "TEST.EVAL_PERIOD", 2, "OUTPUT_DIR", tmp_path]
    assert run(*options) == 143
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    monkeypatch.undo()
    assert run(*options, flags=["--resume"]) == 0
    # The interrupted evaluation was done again.
    iterations = [json.loads(line)["iteration"] for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert iterations == [1, 2, 3] and (tmp_path / "model_best.pth").is_file()


def test_a_run_without_a_seed_draws_one_and_keeps_it(tiny, tmp_path, monkeypatch):
    whole_step, seeds = TrainStep.run_step, []

    def step(self):
        seeds.append(self.seed)
        whole_step(self)
        if len(seeds) == 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(TrainStep, "run_step", step)
    assert run("SOLVER.MAX_ITER", 2, "OUTPUT_DIR", tmp_path) == 143
    assert run("SOLVER.MAX_ITER", 2, "OUTPUT_DIR", tmp_path, flags=["--resume"]) == 0
    assert len(seeds) == 2 and seeds[0] == seeds[1] > 0


def test_settings_are_those_of_the_command_that_resumes(tiny, tmp_path):
    schedule = ["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", "()", "OUTPUT_DIR", tmp_path]
    assert run(*schedule, "SOLVER.MAX_ITER", 2, "SOLVER.BASE_LR", 0.001) == 0
    changed = ["SOLVER.BASE_LR", 0.002, "SOLVER.WEIGHT_DECAY", 0.5]
    assert run(*schedule, "SOLVER.MAX_ITER", 3, *changed, flags=["--resume"]) == 0
    (group,) = torch.load(tmp_path / "model_final.pth")["trainer"]["_trainer"]["optimizer"]["param_groups"]
    assert (group["lr"], group["weight_decay"]) == (0.002, 0.5)
    log = (tmp_path / "log.txt").read_text()
    assert "SOLVER.BASE_LR: 0.001 → 0.002" in log and "SOLVER.MAX_ITER: 2 → 3" in log
    assert "BASE_LR: 0.002" in (tmp_path / "config.yaml").read_text()


def test_another_optimizer_is_not_resumed(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    options = ["OUTPUT_DIR", tmp_path / "run", "SOLVER.MAX_ITER", 5, "SOLVER.OPTIMIZER", "SGD"]
    assert "another optimizer" in error_of(capsys, *options, flags=["--resume"])


def test_fewer_iterations_than_the_run_has_are_not_resumed(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    options = ["OUTPUT_DIR", tmp_path / "run", "SOLVER.MAX_ITER", 2]
    assert "3 iterations already" in error_of(capsys, *options, flags=["--resume"])


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_overwritten_only_if_asked_for(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    before = contents(folder)
    assert "--overwrite" in error_of(capsys, "OUTPUT_DIR", folder, "SOLVER.MAX_ITER", 2)
    assert contents(folder) == before
    assert run("OUTPUT_DIR", folder, "SOLVER.MAX_ITER", 2, flags=["--overwrite"]) == 0
    assert torch.load(folder / "model_final.pth", weights_only=True)["iteration"] == 1
    assert (folder / "metrics.json").read_bytes() != before[folder / "metrics.json"]


def test_an_evaluation_leaves_log_and_config_of_the_run(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    before = {path: content for path, content in contents(folder).items() if path.parent == folder}
    assert run("OUTPUT_DIR", folder, "TEST.PRECISION", "bfloat16", flags=["--eval-only", "--resume"]) == 0
    assert {path: content for path, content in contents(folder).items() if path.parent == folder} == before
    assert "PRECISION: bfloat16" in (folder / "inference" / "config.yaml").read_text()


def test_a_process_that_torchrun_starts_again_resumes(monkeypatch):
    assert train_net.read_arguments(["--overwrite"]).overwrite
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    args = train_net.read_arguments(["--overwrite"])
    assert args.resume and not args.overwrite


@pytest.fixture
def broken_loss(monkeypatch):
    """The model's classification loss is infinite in iteration 1."""
    whole_step = TrainStep.run_step

    def step(self):
        if self.iter == 1:
            with torch.no_grad():
                self.model.head.head_series[0].class_logits.bias.fill_(float("inf"))
        whole_step(self)

    monkeypatch.setattr(TrainStep, "run_step", step)


def test_a_loss_that_is_not_finite_ends_the_run_and_can_be_repeated(tiny, tmp_path, capsys, broken_loss):
    message = error_of(capsys, "SOLVER.MAX_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 1, "OUTPUT_DIR", tmp_path)
    assert all(word in message for word in ("iteration 1: ", "loss_ce_0", "learning rate 0.0012", ".png", "--resume"))
    assert [path.name for path in tmp_path.glob("model_*")] == ["model_0000000.pth"]
    dump = tmp_path / "not_finite_0000001.pth"
    assert str(dump) in message
    step = replay(dump)
    assert not step.is_finite and step.iteration == 1
    assert str(step.repeated) == str(step.recorded)
    assert replay_batch.main([str(dump)]) == 1
    printed = capsys.readouterr().out
    assert "loss_ce_0" in printed and "2.png" in printed and "the step is not finite" in printed
    assert replay_batch.main([str(tmp_path / "model_0000000.pth")]) == 2


def test_steps_that_are_not_finite_may_be_skipped(tiny, tmp_path, monkeypatch, capsys):
    def handle(self):
        if self.iter in (1, 3):
            hook = self.optimizer.param_groups[0]["params"][0].register_hook(lambda gradient: gradient * float("nan"))
            try:
                whole_step(self)
            finally:
                hook.remove()
        else:
            whole_step(self)

    whole_step = TrainStep.run_step
    monkeypatch.setattr(TrainStep, "run_step", handle)
    options = ["SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINT_PERIOD", 1, "OUTPUT_DIR", tmp_path]
    message = error_of(capsys, *options, "SOLVER.MAX_SKIPPED_STEPS", 1)
    assert "iteration 3: the gradient is not finite" in message
    saved = [torch.load(tmp_path / f"model_000000{i}.pth", weights_only=True) for i in range(3)]
    assert [x["trainer"]["skipped_steps"] for x in saved] == [0, 1, 1]
    steps = [next(iter(x["trainer"]["_trainer"]["optimizer"]["state"].values()))["step"].item() for x in saved]
    assert steps == [1, 1, 2]
    assert "Skipped, 1 of 1" in (tmp_path / "log.txt").read_text()


def test_resume_without_a_checkpoint_starts_from_the_beginning(tiny, tmp_path):
    assert run("SOLVER.MAX_ITER", 2, "OUTPUT_DIR", tmp_path, flags=["--resume"]) == 0
    assert (tmp_path / "model_final.pth").is_file()


def test_evaluation_of_a_run_without_a_checkpoint(tiny, tmp_path, capsys):
    assert str(tmp_path) in error_of(capsys, "OUTPUT_DIR", tmp_path, flags=["--eval-only", "--resume"])


def test_predictions_that_are_not_finite_are_named_and_the_step_is_repeated(tiny, tmp_path, capsys):
    line = error_of(capsys, "SOLVER.MAX_ITER", 6, "SOLVER.BASE_LR", 1e30, "OUTPUT_DIR", tmp_path)
    assert "iteration " in line and "not finite" in line and "on images" in line
    (dump,) = tmp_path.glob("not_finite_*.pth")
    assert dump.name in line
    assert replay_batch.main([str(dump)]) == 1
    capsys.readouterr()
    # Settings that the step does not fit, and a flipped bit, are one line.
    content = bytearray(dump.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(content)
    for arguments in ([str(damaged)], [str(dump), "MODEL.SparseRCNN.NUM_HEADS", "3"]):
        assert replay_batch.main(arguments) == 2
        (error,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert error.startswith("error: ")
