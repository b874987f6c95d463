"""What a detector predicts after each stage."""

import torch
from torch.testing import assert_close

from sparsercnn.visualization.stages import predict_stages

from ..models import image, small_model


def test_stages_begin_with_proposals_and_end_with_the_results():
    model = small_model()
    inputs = [{"image": image((64, 96)), "height": 128, "width": 192}]
    (stages,) = predict_stages(model, inputs)
    assert len(stages) == 3
    assert not stages[0].has("scores")
    assert torch.equal(stages[0].pred_boxes.tensor, torch.tensor([[0.0, 0, 192, 128]]).expand(10, 4))
    assert all(len(stage) == 10 and set(stage.levels.tolist()) <= {2, 3, 4, 5} for stage in stages)
    (result,) = model(inputs)
    last = stages[-1][stages[-1].pred_boxes.nonempty()]
    best = last.scores.argmax()
    assert_close(last.scores[best], result["instances"].scores[0])
    assert_close(last.pred_boxes.tensor[best], result["instances"].pred_boxes.tensor[0])
