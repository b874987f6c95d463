"""A detector that stops after some of its stages."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sparsercnn import prepare_for_inference
from sparsercnn.errors import InputError
from sparsercnn.evaluation.stages import with_stages
from sparsercnn.visualization.stages import predict_stages

from ..models import image, small_model


@torch.no_grad()
def test_results_are_those_of_the_stage():
    model = small_model()
    names = list(model.state_dict())
    inputs = [{"image": image((64, 96))}]
    shorter = with_stages(model, 1)
    (first, *_), (both, *_) = predict_stages(shorter, inputs), predict_stages(model, inputs)
    assert len(first) == 2 and len(both) == 3
    # A sigmoid of one stage or of two at once: the last bit depends on the place in a vector register.
    assert_close(first[1].scores, both[1].scores, rtol=2e-7, atol=0)
    assert torch.equal(first[1].pred_boxes.tensor, both[1].pred_boxes.tensor)
    assert list(model.state_dict()) == names and len(model.head.head_series) == 2
    prepared = prepare_for_inference(shorter)(inputs)[0]["instances"]
    assert_close(prepared.scores, shorter(inputs)[0]["instances"].scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize("stages", [0, 3])
def test_numbers_of_stages_that_do_not_exist(stages):
    with pytest.raises(InputError, match=f"TEST.STAGES asks for {stages} refinement stages; the model has 1 to 2"):
        with_stages(small_model(), stages)


def test_a_model_without_stages():
    with pytest.raises(InputError, match="TEST.STAGES is for SparseRCNN, not Identity"):
        with_stages(nn.Identity(), 1)
