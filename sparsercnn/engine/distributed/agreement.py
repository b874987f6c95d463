"""What the processes of a run tell each other in every step, so that all decide alike."""

import functools
from collections.abc import Sequence

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn


@functools.cache
def _group() -> dist.ProcessGroup | None:
    """All processes, connected on the CPU: a few numbers are not worth a round trip to the GPU."""
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def numbers_of_all(numbers: Sequence[float]) -> list[list[float]]:
    """The numbers of every process, in the order of ranks.

    Args:
        numbers: as many in every process. All must call this.
    """
    if comm.get_world_size() == 1:
        return [list(numbers)]
    mine = torch.tensor(numbers, dtype=torch.float64)
    everyone = [torch.empty_like(mine) for _ in range(comm.get_world_size())]
    dist.all_gather(everyone, mine, group=_group())
    return [numbers.tolist() for numbers in everyone]


def first_error(error: str | None) -> str | None:
    """The message of the first process that has one; None if no process has. All must call this."""
    if comm.get_world_size() == 1:
        return error
    if not any(failed for (failed,) in numbers_of_all([error is not None])):
        return None
    return next(message for message in comm.all_gather(error) if message is not None)


def share_buffers(model: nn.Module) -> None:
    """Give every process the buffers of the first one's model, whose checkpoints hold them. All must call this.

    Running statistics of norms are each process's own while it trains.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
