import subprocess
import sys

import pytest

from tests.reliability.archives import run
from tests.reliability.hostile_pickles import PICKLES


def test_hostile_files_are_refused_by_name(tmp_path):
    expected = {"files": 20, "refused_by_name": 20, "loaded": 0, "traces": 0, "executed": 0, "over_1_gib": 0}
    assert run(20, 5, tmp_path) == expected


@pytest.mark.parametrize(
    "name", ["system", "eval_by_stack_global", "instance", "instance_of_object", "array_of_objects"]
)
def test_python_itself_would_run_what_is_in_them(tmp_path, name):
    """Otherwise nothing is shown by refusing them."""
    evidence = tmp_path / "evidence"
    code = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    subprocess.run([sys.executable, "-c", code], input=PICKLES[name](evidence), capture_output=True)
    assert evidence.exists()
