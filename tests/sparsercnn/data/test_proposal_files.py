"""Files with precomputed proposals hold arrays, or are refused before code in them could run."""

import pickle

import numpy as np
import pytest
from detectron2.data import load_proposals_into_dataset

from sparsercnn.data.proposal_files import check_proposal_file
from sparsercnn.errors import InputError


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


def write(folder, protocol=2, **changes):
    content = {
        "ids": [3, 5],
        "boxes": [np.float32([[0, 0, 9, 9]]), np.zeros((0, 4))],
        "objectness_logits": [np.float32([0.5]), np.zeros(0)],
        "bbox_mode": 0,
    }
    path = folder / "proposals.pkl"
    path.write_bytes(pickle.dumps({**content, **changes}, protocol))
    return str(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_good_file_passes_and_loads(tmp_path, protocol):
    path = write(tmp_path, protocol)
    check_proposal_file(path, [5, 3])
    (image,) = load_proposals_into_dataset([{"image_id": 3}], path)
    assert image["proposal_boxes"].tolist() == [[0, 0, 9, 9]]


def test_code_in_a_file_is_not_run(tmp_path):
    target = tmp_path / "evidence"
    path = write(tmp_path, extra=Hostile(str(target)))
    with pytest.raises(InputError, match="proposals.pkl cannot be used: .*io.open, which could run any code"):
        check_proposal_file(path, [3])
    assert not target.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": None}, "cannot be used"),
        ({"boxes": [np.zeros((1, 5)), np.zeros((0, 4))]}, "boxes must be"),
        ({"ids": [3]}, "1 ids, but proposals of 2 images"),
        ({"ids": [3, 4]}, "has no proposals for 1 images: 5"),
    ],
)
def test_what_is_missing_is_named(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        check_proposal_file(write(tmp_path, **changes), [3, 5])


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04 nothing")
    for name in ("a.pkl", "gone.pkl"):
        with pytest.raises(InputError, match=f"proposals .*{name} cannot be used"):
            check_proposal_file(str(tmp_path / name), [3])
