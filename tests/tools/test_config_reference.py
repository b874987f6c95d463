"""docs/configuration.md says what the code says, of every key."""

from sparsercnn import load_config
from tools import config_reference


def test_the_page_is_up_to_date():
    assert config_reference.PAGE.read_text() == config_reference.page(), "python tools/config_reference.py"


def test_every_key_of_the_project_is_there():
    page = config_reference.page()
    cfg = load_config("", ["MODEL.DEVICE", "cpu"])
    for node in (
        cfg.MODEL.SparseRCNN,
        cfg.MODEL.NECK.BIFPN,
        cfg.MODEL.TIMM,
        cfg.MODEL.EFFICIENTDET,
        cfg.MODEL.ROI_ROUTING,
    ):
        assert all(f"`{key}` `" in page for key in node)
    assert "|  |" not in page  # a key without a word about it
