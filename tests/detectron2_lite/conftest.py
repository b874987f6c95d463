import logging

import pytest


@pytest.fixture
def detectron2_log(caplog, monkeypatch):
    """`caplog` that also sees detectron2's records after some test has called `setup_logger`."""
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    caplog.set_level(logging.INFO, logger="detectron2")
    return caplog
