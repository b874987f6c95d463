"""A sample of `annotations.run`, and that it would notice."""

import pytest

from sparsercnn.data import coco_json
from sparsercnn.evaluation import coco

from .annotations import run


def test_every_damaged_file_loads_right_or_is_refused_by_name(tmp_path):
    outcomes = run(700, 0, tmp_path)
    assert sum(outcomes.values()) == 700 and outcomes["loaded"] + outcomes["refused"] == 700, outcomes
    assert outcomes["loaded"] > 200 and outcomes["refused"] > 200


@pytest.mark.parametrize(
    ("module", "name", "outcome"),
    [
        (coco_json, "_without_repetition", "silent_wrong"),
        (coco_json.EntryCheck, "_flags", "silent_wrong"),
        (coco_json.EntryCheck, "_box", "traces"),
        (coco, "_number_from_one", "silent_wrong"),
    ],
)
def test_a_missing_check_would_be_noticed(tmp_path, monkeypatch, capsys, module, name, outcome):
    monkeypatch.setattr(module, name, dict if name == "_without_repetition" else lambda *args: None)
    assert run(400, 1, tmp_path)[outcome] > 0
    assert f"{outcome}: seed 1, number" in capsys.readouterr().err
