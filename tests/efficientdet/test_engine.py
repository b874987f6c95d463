"""The engine with EfficientDet: fine-tuning on other classes, foreign checkpoints, lower precision, costs."""

import pytest
import torch

from efficientdet import EfficientDet
from sparsercnn.engine import SparseRCNNCheckpointer
from sparsercnn.errors import InputError
from sparsercnn.evaluation.costs import count_gmacs, count_parameters

from .models import image, small_model, training_batch


def saved(folder, model: EfficientDet) -> str:
    SparseRCNNCheckpointer(model, str(folder)).save("model")
    return str(folder / "model.pth")


def test_fine_tuning_on_other_classes_keeps_all_but_the_class_layer(tmp_path):
    source, model = small_model(), small_model("MODEL.EFFICIENTDET.NUM_CLASSES", 5)
    torch.nn.init.normal_(source.head.box_deltas.pointwise.weight)
    own = model.head.class_logits.pointwise.weight.clone()
    SparseRCNNCheckpointer(model).load(saved(tmp_path, source))
    assert torch.equal(model.head.class_logits.pointwise.weight, own)
    assert torch.equal(model.head.box_deltas.pointwise.weight, source.head.box_deltas.pointwise.weight)


@pytest.mark.parametrize("options", [("MODEL.EFFICIENTDET.DEPTH", 3), ("MODEL.NECK.BIFPN.NUM_LAYERS", 2)])
def test_checkpoints_of_another_architecture_are_refused(tmp_path, options):
    path = saved(tmp_path, small_model())
    with pytest.raises(InputError, match="of another architecture.*\n.*not in the file"):
        SparseRCNNCheckpointer(small_model(*options)).load(path)


def test_losses_in_lower_precision_are_about_the_same():
    model = small_model().train()
    exact = model(training_batch())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(training_batch())
    for name, loss in exact.items():
        assert rounded[name].dtype == torch.float32
        assert rounded[name].item() == pytest.approx(loss.item(), rel=0.05)


def test_costs_are_counted_by_part():
    model = small_model()
    parameters, gmacs = count_parameters(model), count_gmacs(model, image((64, 96)).float())
    for costs in (parameters, gmacs):
        assert all(value > 0 for value in costs.values())
        assert costs["total"] == pytest.approx(costs["bottom-up"] + costs["neck"] + costs["head"], rel=0.01)
    assert parameters["head"] == pytest.approx(sum(p.numel() for p in model.head.parameters()) / 1e6)
