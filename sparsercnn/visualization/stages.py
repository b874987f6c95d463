"""How boxes converge: what a detector predicts after each of its refinement stages."""

import torch
from detectron2.structures import Boxes, Instances

from ..modeling.detector import SparseRCNN, output_size


@torch.no_grad()
def predict_stages(model: SparseRCNN, batched_inputs: list[dict]) -> list[list[Instances]]:
    """The proposals of a detector, and then its boxes after each refinement stage.

    Args:
        model: in evaluation mode.
        batched_inputs: as the detector takes them.

    Returns:
        For each image, S + 1 `Instances` in the output size. Row i is the same proposal in each. All have `pred_boxes`
        and `levels`, the (N,) pyramid level that each box reads; all but the first also `scores` and `pred_classes` of
        the best class.
    """
    images = model.preprocess_image(batched_inputs)
    features = model.backbone(images.tensor)
    proposals = model.propose(features, images)
    logits, boxes = model.refine(features, proposals)
    probabilities = logits.float().sigmoid() if model.use_focal else logits.float().softmax(-1)[..., :-1]
    scores, classes = probabilities.max(-1)
    all_boxes = torch.cat([proposals.boxes[None], boxes.float()])
    levels = model.head.routing.assign_levels(all_boxes)
    stages_of_images = []
    for i, (size, inputs) in enumerate(zip(images.image_sizes, batched_inputs, strict=True)):
        height, width = output_size(inputs)
        stages = []
        for stage_boxes, stage_levels in zip(all_boxes[:, i], levels[:, i], strict=True):
            output_boxes = Boxes(stage_boxes.clone())
            output_boxes.scale(width / size[1], height / size[0])
            output_boxes.clip((height, width))
            stages.append(Instances((height, width), pred_boxes=output_boxes, levels=stage_levels))
        for stage, s, c in zip(stages[1:], scores[:, i], classes[:, i], strict=True):
            stage.scores, stage.pred_classes = s, c
        stages_of_images.append(stages)
    return stages_of_images
