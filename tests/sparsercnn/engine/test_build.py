import pytest

from sparsercnn import load_config
from sparsercnn.engine import build_model
from sparsercnn.errors import InputError

FPN_BACKBONE = ["MODEL.META_ARCHITECTURE", "SparseRCNN", "MODEL.BACKBONE.NAME", "build_neck_backbone"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.NECK.NAME", "FNP"),
        ("MODEL.NECK.IN_FEATURES", ["res3", "res5"]),
        ("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p9"]),
    ],
)
def test_whatever_is_wrong_in_the_config_is_one_kind_of_error_that_names_the_key(key, value):
    options = [*FPN_BACKBONE, "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"], key, value]
    with pytest.raises(InputError, match=key) as raised:
        build_model(load_config(options=options))
    assert "\n" not in str(raised.value)
