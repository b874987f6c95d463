"""Communication in one process, and in two that talk over gloo."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm


def test_one_process_needs_no_set_up():
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()) == (1, 0, 0, 1)
    assert comm.is_main_process()
    comm.synchronize()
    assert comm.all_gather("x") == ["x"] and comm.gather("x") == ["x"]
    values = {"a": torch.tensor(2.0)}
    assert comm.reduce_dict(values) == values
    assert 0 <= comm.shared_random_seed() < 2**31


def test_local_group_must_be_created_first():
    with pytest.raises(AssertionError, match="create_local_process_group"):
        comm.get_local_process_group()


def communicate(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    comm.create_local_process_group(1)  # two machines of one process
    reduced = comm.reduce_dict({"b": torch.tensor(float(rank)), "a": torch.tensor(10.0 * rank)})
    summed = comm.reduce_dict({"a": torch.tensor(10.0 * rank)}, average=False)
    comm.synchronize()
    result = {
        "ranks": (comm.get_rank(), comm.get_world_size(), comm.get_local_rank(), comm.get_local_size()),
        "main": comm.is_main_process(),
        "all": comm.all_gather({"rank": rank, "text": "x" * (rank + 1)}),
        "gathered": comm.gather(rank, dst=1),
        "seed": comm.shared_random_seed(),
        "reduced": {name: float(value) for name, value in reduced.items()},
        "summed": float(summed["a"]),
    }
    torch.save(result, f"{folder}/{rank}.pt")
    comm.synchronize()
    dist.destroy_process_group()


@pytest.mark.usefixtures("quick_processes")
def test_two_processes(tmp_path):
    mp.spawn(communicate, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["ranks"] == (0, 2, 0, 1) and second["ranks"] == (1, 2, 0, 1)
    assert first["main"] and not second["main"]
    assert first["all"] == second["all"] == [{"rank": 0, "text": "x"}, {"rank": 1, "text": "xx"}]
    assert first["gathered"] == [] and second["gathered"] == [0, 1]
    assert first["seed"] == second["seed"]
    assert first["reduced"] == {"a": 5.0, "b": 0.5}  # only valid on the main process
    assert first["summed"] == 10.0
