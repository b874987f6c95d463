"""Models that a config describes, for training and for inference."""

import subprocess
import sys

import pytest
import torch

from sparsercnn import load_config
from sparsercnn.engine import build_inference_model, build_model
from sparsercnn.errors import InputError

from ..models import image, small_config, small_model

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


def test_precision_comes_from_the_config():
    cfg = small_config()
    cfg.TEST.PRECISION = "bfloat16"
    assert build_inference_model(cfg, small_model()).dtype == torch.bfloat16
    cfg.TEST.PRECISION = "half"
    with pytest.raises(InputError, match="TEST.PRECISION is 'half'; choose one of float32"):
        build_inference_model(cfg, small_model())


@torch.no_grad()
def test_preparation_is_a_switch():
    cfg = small_config()
    model = small_model()
    cfg.TEST.PREPARE = False
    plain = build_inference_model(cfg, model.train())
    assert model.training and not plain.training
    found = plain([{"image": image((64, 96))}])[0]["instances"]
    expected = model.eval()([{"image": image((64, 96))}])[0]["instances"]
    assert torch.equal(found.scores, expected.scores)


WITHOUT_FAST = """
import sys
sys.modules["sparsercnn.fast"] = None  # as if the folder were not there

import torch
from tests.sparsercnn.models import image, small_config, training_batch
from sparsercnn.engine.build import build_inference_model, build_model, prepare_for_training

torch.manual_seed(0)
cfg = small_config()
cfg.SOLVER.FAST = cfg.TEST.PREPARE = False
model = build_model(cfg).train()
prepare_for_training(cfg, model)
sum(model(training_batch()).values()).backward()
assert len(build_inference_model(cfg, model)([{"image": image((64, 96))}])[0]["instances"])
"""


def test_the_project_works_without_its_optional_speed():
    subprocess.run([sys.executable, "-c", WITHOUT_FAST], check=True)
