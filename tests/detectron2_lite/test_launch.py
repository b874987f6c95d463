"""Two processes on the CPU, started by `launch`."""

import json
import os
from datetime import timedelta

import pytest
import torch
from detectron2.engine import launch
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def _report(folder):
    rank = comm.get_rank()
    model = DistributedDataParallel(nn.Linear(1, 1, bias=False))
    model(torch.full((1, 1), float(rank + 1))).sum().backward()
    report = {
        "backend": torch.distributed.get_backend(),
        "world_size": comm.get_world_size(),
        "local": [comm.get_local_rank(), comm.get_local_size()],
        "is_main": comm.is_main_process(),
        "all_gather": comm.all_gather({"rank": rank}),
        "gather": comm.gather(rank),
        "shared_seed": comm.shared_random_seed(),
        "gradient": model.module.weight.grad.item(),
    }
    comm.synchronize()
    with open(os.path.join(folder, f"{rank}.json"), "w") as f:
        json.dump(report, f)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA, processes use NCCL and one GPU each")
@pytest.mark.usefixtures("quick_processes")
def test_two_processes(tmp_path):
    launch(_report, 2, dist_url="auto", args=(str(tmp_path),), timeout=timedelta(minutes=2))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["backend"] == "gloo"
    assert first["world_size"] == second["world_size"] == 2
    assert (first["local"], second["local"]) == ([0, 2], [1, 2])
    assert (first["is_main"], second["is_main"]) == (True, False)
    assert first["all_gather"] == second["all_gather"] == [{"rank": 0}, {"rank": 1}]
    assert (first["gather"], second["gather"]) == ([0, 1], [])
    assert first["shared_seed"] == second["shared_seed"]
    assert first["gradient"] == second["gradient"] == 1.5


def test_one_process_runs_here():
    calls = []
    launch(lambda *args: calls.append((os.getpid(), args)), 1, args=(1, "two"))
    assert calls == [(os.getpid(), (1, "two"))]


def test_auto_url_is_for_one_machine():
    with pytest.raises(AssertionError, match="dist_url=auto not supported in multi-machine jobs"):
        launch(print, 2, num_machines=2, dist_url="auto")
