"""demo.py draws pictures and videos from end to end with a tiny untrained model, and names what it cannot read."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import demo
from sparsercnn.errors import InputError
from sparsercnn.visualization import media

CONFIG = str(Path(__file__).parent.parent / "configs" / "quickstart.yaml")
TINY = """
MODEL.DEVICE cpu MODEL.NECK.OUT_CHANNELS 16 MODEL.SparseRCNN.HIDDEN_DIM 16 MODEL.SparseRCNN.NUM_HEADS 1
MODEL.SparseRCNN.NUM_PROPOSALS 8 MODEL.SparseRCNN.DIM_FEEDFORWARD 16 MODEL.SparseRCNN.DIM_DYNAMIC 8
MODEL.SparseRCNN.NHEADS 1 INPUT.MIN_SIZE_TEST 64
""".split()


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    for name in ("a.png", "b.jpg"):
        Image.fromarray(noise).save(folder / name)
    return folder


def run(*args):
    flags = ["--config-file", CONFIG, "--confidence-threshold", "0", *map(str, args)]
    return demo.main([*flags, "--opts", *TINY])


def test_every_picture_of_a_folder_is_drawn_large_enough_for_labels(pictures, tmp_path):
    assert run("--input", pictures, "--output", tmp_path / "drawn") == 0
    for name in ("a.png", "b.jpg"):
        with Image.open(tmp_path / "drawn" / name) as drawn:
            assert drawn.size == (480, 360)


def test_tiles(pictures, tmp_path, capsys):
    tiles = ["--tile", 40, "--overlap", 0.25]
    assert run("--input", pictures / "a.png", "--output", tmp_path / "tiles.png", *tiles) == 0
    assert run("--input", pictures / "a.png", "--output", tmp_path / "tiles.png", "--stages", *tiles) == 2
    assert "show whole pictures: leave tiles out" in capsys.readouterr().err
    assert run("--input", pictures / "a.png", "--output", tmp_path / "tiles.png", "--tile", -1) == 2
    assert "TEST.TILE_SIZE is -1; it must be at least 0" in capsys.readouterr().err


def test_stages_stand_side_by_side(pictures, tmp_path):
    output = tmp_path / "stages.png"
    assert run("--input", pictures / "a.png", "--output", output, "--stages", "--color-by", "level") == 0
    with Image.open(output) as drawn:
        panel_width = 480  # enlarged from 64; the proposals and one stage
        assert drawn.width == 2 * panel_width


def test_a_broken_picture_is_named_and_the_others_are_drawn(pictures, tmp_path, capsys):
    (pictures / "a.png").write_bytes(b"")
    assert run("--input", pictures, "--output", tmp_path / "drawn") == 2
    message = capsys.readouterr().err
    assert f"cannot read image {pictures / 'a.png'}: it is empty" in message and "1 of 2 pictures" in message
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["b.jpg"]


def test_pictures_are_read_as_in_training_and_large_ones_drawn_smaller(pictures, monkeypatch):
    deep = np.full((40, 60), 128 * 256, np.uint16)  # another reader shows it white
    Image.fromarray(deep).save(pictures / "a.png")
    assert (media.read_picture(pictures / "a.png", 2400) == 128).all()
    monkeypatch.setattr(media, "MAX_DRAWN_PIXELS", 600)
    assert media.read_picture(pictures / "a.png", 2400).shape == (20, 30, 3)
    with pytest.raises(InputError, match="a.png.*more than INPUT.MAX_PIXELS, which is 2399"):
        media.read_picture(pictures / "a.png", 2399)


def test_results_stay_in_the_folder_that_was_named(pictures, tmp_path, capsys):
    (tmp_path / "precious.png").write_bytes(b"mine")
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "a.png").symlink_to("../precious.png")
    assert run("--input", pictures, "--output", tmp_path / "drawn") == 2
    assert "is a link to" in capsys.readouterr().err
    assert (tmp_path / "precious.png").read_bytes() == b"mine"


def test_a_video_keeps_its_frames(tmp_path):
    source = tmp_path / "in.avi"
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for value in (0, 120, 240):
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()
    assert run("--video-input", source, "--output", tmp_path / "out.avi") == 0
    drawn = cv2.VideoCapture(str(tmp_path / "out.avi"))
    frames = 0
    while drawn.read()[0]:
        frames += 1
    assert frames == 3


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--input", "gone.jpg"], "gone.jpg"),
        (["--input", "gone/*.jpg"], "no file matches"),
        (["--video-input", "gone.mp4"], "gone.mp4"),
    ],
)
def test_inputs_that_are_not_there(args, words, tmp_path, capsys):
    assert run(*args, "--output", tmp_path / "drawn") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and words in errors[0]
