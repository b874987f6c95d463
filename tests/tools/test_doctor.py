"""tools/doctor.py: the report, the exit status, and one line for a config that cannot be read."""

import pytest

from tests.tiny_run import QUICKSTART, TINY
from tools import doctor


@pytest.fixture
def said(tiny, loggers, capsys):
    def run(*options):
        status = doctor.main(["--config-file", QUICKSTART, "--seconds", "0", *TINY, *map(str, options)])
        return status, capsys.readouterr()

    return run


def test_findings_come_with_the_line_to_change(said):
    status, output = said("SOLVER.BASE_LR", 0.02, "DATASETS.TEST", "()")
    assert status == 1
    assert "learning rate: 0.02 is " in output.out and "    change: SOLVER.BASE_LR 0.00025" in output.out
    assert "backbone.bottom_up" in output.out


def test_a_mistake_is_one_line(said):
    status, output = said("SOLVER.BASE_LRR", 1)
    assert status == 2 and output.err.startswith("error: unknown config key") and output.err.count("\n") == 1
