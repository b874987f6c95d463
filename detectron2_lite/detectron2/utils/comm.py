"""Communication between processes. Everything also works, trivially, in a single process without torch.distributed."""

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

_LOCAL_PROCESS_GROUP: dist.ProcessGroup | None = None
_MISSING_LOCAL_PG_ERROR = (
    "Local process group is not yet created! Please use detectron2's `launch()` to start processes and initialize "
    "pytorch process group. If you need to start processes in other ways, please call "
    "comm.create_local_process_group(num_workers_per_machine) after calling torch.distributed.init_process_group()."
)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _distributed() else 1


def get_rank() -> int:
    """Number of this process among all."""
    return dist.get_rank() if _distributed() else 0


@functools.cache
def create_local_process_group(num_workers_per_machine: int) -> None:
    """Create the group of the processes on this machine, which the functions named `local` use.

    Every process must call it once, after `torch.distributed.init_process_group`; `engine.launch` does.

    Args:
        num_workers_per_machine: processes per machine, typically the number of its GPUs.
    """
    global _LOCAL_PROCESS_GROUP
    assert _LOCAL_PROCESS_GROUP is None
    assert get_world_size() % num_workers_per_machine == 0
    machine = get_rank() // num_workers_per_machine
    for i in range(get_world_size() // num_workers_per_machine):
        # torch wants every process to take part in making every group
        group = dist.new_group(list(range(i * num_workers_per_machine, (i + 1) * num_workers_per_machine)))
        if i == machine:
            _LOCAL_PROCESS_GROUP = group


def get_local_process_group() -> dist.ProcessGroup:
    """The group of the processes on this machine."""
    assert _LOCAL_PROCESS_GROUP is not None, _MISSING_LOCAL_PG_ERROR
    return _LOCAL_PROCESS_GROUP


def get_local_rank() -> int:
    """Number of this process among those on this machine."""
    if not _distributed():
        return 0
    return dist.get_rank(group=get_local_process_group())


def get_local_size() -> int:
    """Number of processes on this machine."""
    if not _distributed():
        return 1
    return dist.get_world_size(group=get_local_process_group())


def is_main_process() -> bool:
    """Whether this process is the first of all."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait until all processes are here."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


@functools.cache
def _get_global_gloo_group() -> dist.ProcessGroup:
    """All processes, connected on the CPU: pickled objects should not pass through GPU memory."""
    if dist.get_backend() == "nccl":
        return dist.new_group(backend="gloo")
    return dist.group.WORLD


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Picklable objects of every process, in the order of ranks."""
    if get_world_size() == 1:
        return [data]
    group = group or _get_global_gloo_group()
    world_size = dist.get_world_size(group)
    if world_size == 1:
        return [data]
    output = [None for _ in range(world_size)]
    dist.all_gather_object(output, data, group=group)
    return output


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Like `all_gather`, on process `dst` only; the others get an empty list."""
    if get_world_size() == 1:
        return [data]
    group = group or _get_global_gloo_group()
    world_size = dist.get_world_size(group=group)
    if world_size == 1:
        return [data]
    if dist.get_rank(group=group) == dst:
        output = [None for _ in range(world_size)]
        dist.gather_object(data, output, dst=dst, group=group)
        return output
    dist.gather_object(data, None, dst=dst, group=group)
    return []


def shared_random_seed() -> int:
    """A random number that is the same in all processes; all must call it."""
    return all_gather(np.random.randint(2**31))[0]


def reduce_dict(input_dict: dict[str, torch.Tensor], average: bool = True) -> dict[str, torch.Tensor]:
    """Sum or average the values of all processes.

    Args:
        input_dict: scalar tensors under the same names in every process.
        average: whether to divide by the number of processes.

    Returns:
        The result, valid on process 0 only.
    """
    world_size = get_world_size()
    if world_size < 2:
        return input_dict
    with torch.no_grad():
        names = sorted(input_dict)  # the same order in every process
        values = torch.stack([input_dict[name] for name in names], dim=0)
        dist.reduce(values, dst=0)
        if is_main_process() and average:
            values /= world_size
        return dict(zip(names, values, strict=True))
