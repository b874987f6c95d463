"""A sample of `images.run`, and that it would notice."""

import pytest
from PIL import ImageFile, PngImagePlugin

from .images import run

# pytest resets the filter of `sparsercnn.data.images`.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_every_damaged_picture_is_read_right_or_refused_by_name(tmp_path):
    outcomes = run(500, 0, tmp_path)
    assert outcomes["read"] + outcomes["read_as_altered"] + outcomes["refused"] == 500, outcomes
    assert outcomes["read"] > 40 and outcomes["refused"] > 200
    assert outcomes["peak_mib"] < 300


def test_pictures_that_are_cut_off_or_fail_their_checksum_would_be_noticed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "verify", lambda self: None)
    assert run(300, 0, tmp_path)["silent_wrong"] > 5
    assert "another picture" in capsys.readouterr().err
