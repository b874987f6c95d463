"""A sample of the experiments with killed trainings: one of each kind, and a change of the number of workers."""

from .kills import run


def test_killed_trainings_end_as_if_nothing_had_happened(tmp_path):
    figures = run(3, 1, tmp_path)
    assert figures["kills"] == figures["equal"] == 3
