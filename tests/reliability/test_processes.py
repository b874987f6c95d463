"""Two processes that train together: they stop together, lose nothing, and continue exactly."""

import signal
import socket
import time

import pytest
import torch

from sparsercnn.data.shapes import prepare_shapes

from .kills import IMAGES, SECONDS_WAITED, differing, start

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="each process would take a GPU")
OPTIONS = ("SOLVER.MAX_ITER", "14", "TEST.EVAL_PERIOD", "7")
FIRST_CHECKPOINT, SECOND_CHECKPOINT = "model_0000004.pth", "model_0000009.pth"


@pytest.fixture
def data(tmp_path):
    prepare_shapes(tmp_path / "shapes", IMAGES, size=40)
    return tmp_path / "shapes"


def start_two(data, output, **environment):
    """As torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [{**common, **environment, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    return [start(data, output, 1, options=OPTIONS, environment=rank) for rank in ranks]


def statuses(processes):
    for process in processes:
        process.join(SECONDS_WAITED)
        process.kill()
    return [process.exitcode for process in processes]


def wait_for(file):
    end = time.monotonic() + SECONDS_WAITED
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.01)


def last_iteration(output):
    return torch.load(output / (output / "last_checkpoint").read_text(), weights_only=True)["iteration"]


def test_one_is_killed_or_asked_to_stop_and_restarts_continue_exactly(data, tmp_path):
    assert statuses(start_two(data, tmp_path / "undisturbed")) == [0, 0]
    output = tmp_path / "disturbed"
    processes = start_two(data, output)
    wait_for(output / FIRST_CHECKPOINT)
    processes[0].kill()
    assert statuses(processes) == [-signal.SIGKILL, 1]
    assert "error: process 1 lost the connection to another process" in (tmp_path / "disturbed.txt").read_text()
    processes = start_two(data, output, TORCHELASTIC_RESTART_COUNT="1")
    wait_for(output / SECOND_CHECKPOINT)
    processes[1].terminate()
    assert statuses(processes) == [128 + signal.SIGTERM] * 2
    assert 9 < last_iteration(output) < 13
    assert statuses(start_two(data, output, TORCHELASTIC_RESTART_COUNT="2")) == [0, 0]
    assert differing(tmp_path / "undisturbed", output) == []
    assert "Traceback" not in (tmp_path / "disturbed.txt").read_text()


def test_an_image_that_one_cannot_read_stops_both_with_a_checkpoint(data, tmp_path):
    output = tmp_path / "run"
    processes = start_two(data, output)
    wait_for(output / FIRST_CHECKPOINT)
    for image in (data / "train").iterdir():
        image.write_bytes(b"no image")
    assert statuses(processes) == [2, 2]
    assert 4 <= last_iteration(output) < 13
    assert (tmp_path / "run.txt").read_text().count("error: cannot read image") == 2
