"""Image files are those of the data set: there, readable, and inside of its folder."""

import numpy as np
import pytest
from PIL import Image

from sparsercnn.data.image_files import check_files, check_readable
from sparsercnn.errors import InputError


@pytest.fixture
def images(tmp_path):
    """A folder with two pictures, another beside it, and links."""
    for name in ("images/a.png", "images/sub/b.png", "secret.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "images" / "inner.png").symlink_to("sub/b.png")
    (tmp_path / "images" / "outer.png").symlink_to("../secret.png")
    (tmp_path / "images" / "up").symlink_to("..")
    (tmp_path / "link to images").symlink_to("images")
    return tmp_path / "images"


def check(folder, name):
    return check_files(str(folder), [name], [7], "truth.json")


@pytest.mark.parametrize("name", ["a.png", "sub/b.png", "sub/../a.png", "./a.png", "inner.png"])
def test_names_inside_of_the_folder(images, name):
    assert check(images, name) == [f"{images}/{name}"]
    assert check(f"{images}/", name) and check(images.parent / "link to images", name)


def test_an_absolute_name_may_lie_inside(images):
    assert check(images, str(images / "a.png")) == [str(images / "a.png")]


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png", "outer.png", "up/secret.png", "/etc/passwd"])
def test_names_that_leave_the_folder(images, name):
    with pytest.raises(InputError) as error:
        check(images, name)
    assert str(error.value).startswith(f"truth.json: the file of image 7, '{name}', leads out of the folder {images}")


def test_a_folder_whose_name_begins_alike_is_another_one(images):
    (images.parent / "images2").mkdir()
    (images.parent / "images2" / "c.png").touch()
    with pytest.raises(InputError, match="leads out of"):
        check(images, "../images2/c.png")


def test_without_a_folder_files_may_lie_anywhere(images, monkeypatch):
    monkeypatch.chdir(images)
    names = [str(images.parent / "secret.png"), "a.png"]
    assert check_files(None, names, [1, 2], "truth.json") == names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("c.png", "1 of 1 images are missing: .*c.png"),
        ("", "1 of 1 images are missing"),
        ("gone/c.png", "image 7 lies in a folder that is not there, .*gone"),
        ("a.png/c.png", "image 7 lies in a folder that is not there, .*a.png"),
        ("a\0.png", r"'a\\x00.png', has a name that no file can have"),
        ("\ud800/a.png", r"'\\ud800/a.png', has a name that no file can have"),
        ("a\n.png", r"missing: .*a\\n.png"),
    ],
)
def test_files_that_are_not_there(images, name, message):
    with pytest.raises(InputError, match=message) as error:
        check(images, name)
    assert str(error.value).isprintable()


def test_every_missing_file_counts_and_five_are_named(images):
    names = ["a.png", *(f"{i}.png" for i in range(7))]
    with pytest.raises(InputError, match=r"7 of 8 images are missing: .*/4.png, …$"):
        check_files(str(images), names, range(8), "truth.json")


def test_sizes_are_those_of_the_annotations(images):
    path = str(images / "a.png")
    check_readable([path], [(40, 30)], "truth.json", 2000)
    check_readable([path], [], "truth.json", 2000)
    with pytest.raises(InputError, match="truth.json says that .*a.png has 30×40 pixels, but it has 40×30"):
        check_readable([path], [(30, 40)], "truth.json", 2000)
    with pytest.raises(InputError, match="a.png.*more than INPUT.MAX_PIXELS, which is 1000"):
        check_readable([path], [(40, 30)], "truth.json", 1000)
