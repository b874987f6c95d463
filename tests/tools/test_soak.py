"""The program around the experiments; these have tests of their own in tests/reliability."""

import json
import tempfile

import pytest

from tools import soak
from tools.soak import Part


def ten(count, seed, folder):
    (folder / "something").touch()
    return {"things": count, "good_ones": 10}


def fail(count, seed, folder):
    raise AssertionError("a training ended")


@pytest.fixture
def parts(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def use(**parts):
        monkeypatch.setattr(soak, "PARTS", parts)

    return use


def all_good(figures):
    return figures["good_ones"] == figures["things"]


def test_a_part_is_done_once_and_what_fails_is_done_again(parts, tmp_path, capfd):
    parts(kept=Part(ten, 10, "all is well", all_good), missed=Part(ten, 11, "most is well", all_good))
    assert soak.main(["kept", "--output", str(tmp_path / "soak")]) == 0
    assert soak.main(["--output", str(tmp_path / "soak")]) == 1
    printed = capfd.readouterr().out
    assert "kept: done already" in printed and "things 11, good ones 10; NOT KEPT" in printed
    rows = [line for line in (tmp_path / "soak" / "figures.md").read_text().splitlines() if line.startswith("| `")]
    assert [row.split(" | ")[2] for row in rows] == ["yes", "**no**"]
    assert json.loads((tmp_path / "soak" / "kept.json").read_text())["figures"] == {"things": 10, "good_ones": 10}
    parts(missed=Part(fail, 11, "most is well", all_good))
    assert soak.main(["--output", str(tmp_path / "soak")]) == 1
    assert "a training ended" in capfd.readouterr().err


def test_an_unknown_part(capsys):
    with pytest.raises(SystemExit, match="2"):
        soak.main(["kill"])
    assert "kills" in capsys.readouterr().err
