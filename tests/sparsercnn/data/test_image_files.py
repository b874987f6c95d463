"""Image files are those of the data set: there, readable, and inside of its folder."""

import numpy as np
import pytest
from PIL import Image

from sparsercnn.data.image_files import find_files, find_unreadable, some
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
    return find_files(str(folder), [name], [7], "truth.json")


@pytest.mark.parametrize("name", ["a.png", "sub/b.png", "sub/../a.png", "./a.png", "inner.png"])
def test_names_inside_of_the_folder(images, name):
    assert check(images, name) == ([f"{images}/{name}"], [])
    for folder in (f"{images}/", images.parent / "link to images"):
        assert check(folder, name)[1] == []


def test_an_absolute_name_may_lie_inside(images):
    assert check(images, str(images / "a.png")) == ([str(images / "a.png")], [])


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
    assert find_files(None, names, [1, 2], "truth.json") == (names, [])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone/c.png", "image 7 lies in a folder that is not there, .*gone"),
        ("a.png/c.png", "image 7 lies in a folder that is not there, .*a.png"),
        ("a\0.png", r"'a\\x00.png', has a name that no file can have"),
        ("\ud800/a.png", r"'\\ud800/a.png', has a name that no file can have"),
    ],
)
def test_names_without_a_folder_and_impossible_names(images, name, message):
    with pytest.raises(InputError, match=message) as error:
        check(images, name)
    assert str(error.value).isprintable()


def test_missing_files_are_found(images):
    names = ["a.png", "c.png", "", "a\n.png", "sub/a.png"]
    paths, missing = find_files(str(images), names, range(5), "truth.json")
    assert paths == [f"{images}/{name}" for name in names] and set(missing) == set(paths[1:])
    assert some(paths[3:4] * 7) == ", ".join([f"{images}/a\\n.png"] * 5) + ", …"


def test_sizes_are_those_of_the_annotations(images):
    def problems(sizes, max_pixels=2000):
        return list(find_unreadable([str(images / "a.png")], sizes, "truth.json", max_pixels))

    assert problems([(40, 30)]) == problems([]) == []
    assert problems([(30, 40)]) == [f"truth.json says that {images}/a.png has 30×40 pixels, but it has 40×30"]
    (problem,) = problems([(40, 30)], 1000)
    assert "a.png" in problem and "more than INPUT.MAX_PIXELS, which is 1000" in problem
