import pytest
import torch

from sparsercnn import load_config
from sparsercnn.engine.checkpoints.files import UnusableFileError
from sparsercnn.engine.checkpoints.metadata import METADATA, checked_metadata, run_metadata
from sparsercnn.engine.checkpoints.safe_pickle import check_plain


def test_a_run_describes_itself_in_plain_values():
    metadata = run_metadata(load_config(options=["DATASETS.TRAIN", "('coco_2017_train',)"]))
    assert len(metadata["class_names"]) == 80 and metadata["class_names"][0] == "person"
    check_plain(metadata)
    assert checked_metadata({METADATA: metadata}, "model.pth") is metadata
    assert run_metadata(load_config(options=["DATASETS.TRAIN", "()"]))["class_names"] is None


def test_other_files_say_nothing():
    for content in ({"model": {}}, [torch.ones(1)], None):
        assert checked_metadata(content, "model.pth") is None


@pytest.mark.parametrize(
    "metadata",
    [3, [], {"config": 1}, {"class_names": "cat"}, {"class_names": [1]}, {"score_threshold": "0.5"}, {"versions": []}],
)
def test_what_is_said_in_other_types_is_refused(metadata):
    with pytest.raises(UnusableFileError, match=r"^model.pth: "):
        checked_metadata({METADATA: metadata}, "model.pth")
