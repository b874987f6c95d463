"""effdet's weights under our names: nothing missing, nothing left over, each number in its place."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsercnn import load_config
from sparsercnn.conversion import from_effdet
from sparsercnn.engine import build_model
from sparsercnn.errors import InputError

ROOT = Path(__file__).parents[3]
NAMES = ROOT / "tests" / "golden" / "state_dict_tf_efficientdet_d0.json"


def effdet_weights() -> dict[str, Tensor]:
    """Random tensors with the names and shapes of the package's model."""
    torch.manual_seed(0)
    return {name: torch.rand(shape) for name, shape in json.loads(NAMES.read_text()).items()}


def our_weights(num_classes: int, phi: int = 0) -> dict[str, Tensor]:
    options = ["MODEL.DEVICE", "meta", "MODEL.TIMM.PRETRAINED", False, "MODEL.EFFICIENTDET.NUM_CLASSES", num_classes]
    with torch.device("meta"):
        return build_model(load_config(ROOT / "configs" / "efficientdet" / f"d{phi}.yaml", options)).state_dict()


@pytest.mark.parametrize("num_classes", [80, 90])
def test_names_and_shapes(num_classes):
    ours = our_weights(num_classes)
    converted = from_effdet(effdet_weights(), ours)
    assert {name: x.shape for name, x in converted.items()} == {name: x.shape for name, x in ours.items()}


def test_coco_classes_are_found_by_the_ids_of_their_categories():
    theirs = effdet_weights()
    bias = from_effdet(theirs, our_weights(80))["head.class_logits.pointwise.bias"].view(9, 80)
    expected = theirs["class_net.predict.conv_pw.bias"].view(9, 90)
    # person, stop sign, toothbrush: ids 1, 13 and 90, the eleventh being the first after a gap.
    assert torch.equal(bias[:, [0, 11, 79]], expected[:, [0, 12, 89]])


def test_deltas_are_x_first():
    theirs = effdet_weights()
    weight = from_effdet(theirs, our_weights(80))["head.box_deltas.pointwise.weight"].view(9, 4, 64)
    expected = theirs["box_net.predict.conv_pw.weight"].view(9, 4, 64)
    assert torch.equal(weight, expected[:, [1, 0, 3, 2]])


def test_biases_go_into_the_norms_of_every_level():
    theirs = effdet_weights()
    converted = from_effdet(theirs, our_weights(80))
    for level in range(5):
        mean = converted[f"head.box_tower.norms.{level}.1.running_mean"]
        expected = theirs[f"box_net.bn_rep.1.{level}.bn.running_mean"] - theirs["box_net.conv_rep.1.conv_pw.bias"]
        assert torch.equal(mean, expected)


def test_the_file_is_left_as_it_is():
    theirs = effdet_weights()
    before = {name: x.clone() for name, x in theirs.items()}
    from_effdet(theirs, our_weights(80))
    assert all(torch.equal(x, before[name]) for name, x in theirs.items())


def test_other_classes_are_refused():
    with pytest.raises(InputError, match="weights for 90 classes, but the model of the config has 3"):
        from_effdet(effdet_weights(), our_weights(3))


@pytest.mark.parametrize("without", ["box_net.conv_rep.0.conv_pw.bias", "box_net.bn_rep"])
def test_models_of_other_families_are_refused(without):
    theirs = {name: x for name, x in effdet_weights().items() if not name.startswith(without)}
    with pytest.raises(InputError, match="no weights of an effdet model with TensorFlow's padding"):
        from_effdet(theirs, our_weights(80))
