from tests.reliability.checkpoints import run


def test_damaged_checkpoints_are_refused_and_the_one_before_is_found(tmp_path):
    assert run(60, 1, tmp_path) == {"files": 60, "loaded_as_good": 0, "traces": 0, "fallback_found": 60}
