"""Samples of the experiments that start whole programs again and again."""

import sys
import tempfile
from pathlib import Path

import pytest
import torch

from . import memory, ranks, scale

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are known by /proc"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="each process would take a GPU"),
]


@pytest.fixture
def folder():
    """Sockets do not fit in the long path of `tmp_path`."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        yield Path(short)


def test_who_is_killed_takes_the_other_down_and_a_restart_continues_exactly(folder):
    figures = ranks.run(1, 0, folder)
    assert [figures[name] for name in ("ended", "said_why", "nothing_left", "equal")] == [1, 1, 1, 1]


def test_memory_is_measured_and_nothing_is_left(folder):
    figures = memory.run(200, 0, folder)
    # Of so few iterations most are warm-up.
    assert figures["left"] == 0 and 100 < figures["mib_early"] < figures["peak_mib"] and figures["growth_percent"] < 20


def test_starts_are_measured(folder):
    figures = scale.run(1000, 0, folder)
    assert figures["boxes"] == 15000
    assert figures["first_start_gib"] > 0 and figures["first_start_seconds"] > 0
