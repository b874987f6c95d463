"""Random numbers that follow from where a run is, not from what was drawn before.

A run that is to continue exactly, with any number of loading processes, cannot have generators that everybody draws
from. Whoever needs random numbers says for what, and gets generators that were just seeded with that.
"""

import contextlib
import os
import random
from collections.abc import Iterator
from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What random numbers are for: the same position has independent ones for each."""

    SAMPLE = 0
    MODEL = 1
    EVALUATION = 2


def _words(seed: int, purpose: Purpose, *position: int) -> list[int]:
    """Seeds of Python's, NumPy's and torch's generator."""
    # `SeedSequence` is the hash that NumPy made for this, the same in every version of it.
    state = np.random.SeedSequence((seed, purpose, *position)).generate_state(4, np.uint64)
    return [int(state[0]), int(state[1]) % 2**32, int(state[2]) >> 1]


def seed_generators(seed: int, purpose: Purpose, *position: int) -> None:
    """Seed the global generators of `random`, NumPy and torch, those of GPUs too.

    Args:
        seed: of the run, at least 0.
        purpose: what the numbers are for.
        position: where in the run, each number at least 0; as many numbers for every call with this purpose.
    """
    for_python, for_numpy, for_torch = _words(seed, purpose, *position)
    random.seed(for_python)
    np.random.seed(for_numpy)
    torch.manual_seed(for_torch)


def compute_deterministically() -> None:
    """Let torch use only operations that give the same bits each time, on GPUs too; one that has no such form raises.

    It costs time, and is for the whole process. Processors compute so anyway.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


@contextlib.contextmanager
def random_numbers(seed: int, purpose: Purpose, *position: int) -> Iterator[None]:
    """Inside, `random`, NumPy and torch (on the CPU) draw numbers that follow from the arguments alone.

    What was seeded or drawn before goes on afterwards as if nothing had been drawn inside.

    Args:
        seed, purpose, position: as for `seed_generators`.
    """
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for_python, for_numpy, for_torch = _words(seed, purpose, *position)
    random.seed(for_python)
    np.random.seed(for_numpy)
    torch.default_generator.manual_seed(for_torch)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
