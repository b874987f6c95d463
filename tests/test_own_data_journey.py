"""From a folder of labeled pictures to a detector, by the commands that are printed and with no network."""

import importlib
import json
import shlex
import socket
from pathlib import Path

import pytest

from tools import prepare_dataset

ROOT = Path(__file__).parent.parent
SHORT = """
MODEL.DEVICE cpu SOLVER.MAX_ITER 2 SOLVER.WARMUP_ITERS 1 SOLVER.EMA_DECAY 0.0 SOLVER.CHECKPOINT_PERIOD 2
TEST.EVAL_PERIOD 0 DATALOADER.NUM_WORKERS 0 MODEL.SparseRCNN.NUM_HEADS 1
""".split()


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a network connection was asked for")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)


def printed_commands(source, output, capsys):
    assert prepare_dataset.main([str(source), "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("  python ")]


def run(command):
    """Run a printed command in this process, with a short training; gives its exit status."""
    program, *arguments = command
    module = importlib.import_module(program.removesuffix(".py").replace("/", "."))
    if program == "tools/doctor.py":
        arguments += ["--seconds", "0"]
    takes_options = program != "tools/analyze_results.py"
    return module.main([*arguments, *(SHORT if takes_options else [])])


def metrics(folder):
    rows = map(json.loads, (folder / "run" / "metrics.json").read_text().splitlines())
    return [{key: value for key, value in row.items() if key.startswith("loss_") or "AP" in key} for row in rows]


def test_the_printed_commands_run_and_formats_make_no_difference(copies, tmp_path, capsys, loggers, no_network):
    commands = printed_commands(copies["csv"], tmp_path / "journey_csv", capsys)
    programs = [command[0] for command in commands]
    assert programs == [
        *("tools/check_dataset.py", "tools/doctor.py", "train_net.py", "train_net.py"),
        *("tools/analyze_results.py", "demo.py"),
    ]
    for command in commands:
        assert set(command) & {"--config-file"} or command[0] == "tools/analyze_results.py"
        if (ROOT / command[0]).is_file():
            allowed = (0, 1) if command[0] in ("tools/check_dataset.py", "tools/doctor.py") else (0,)
            assert run(command) in allowed, command
    assert len(list((tmp_path / "journey_csv" / "drawn").iterdir())) == 16
    (train,) = [
        c for c in printed_commands(copies["yolo"], tmp_path / "journey_yolo", capsys) if c[0] == "train_net.py"
    ][:1]
    assert run(train) == 0
    ours, theirs = (repr(metrics(tmp_path / f"journey_{kind}")) for kind in ("csv", "yolo"))
    assert ours == theirs and "loss_ce" in ours and "bbox/AP50" in ours
