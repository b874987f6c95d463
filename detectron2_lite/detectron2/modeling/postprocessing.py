"""From the resolution that the network saw to the resolution that the user asked for."""

import torch

from detectron2.structures import Instances


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Scale boxes to the output resolution, clip them to it, and drop those without area.

    Args:
        results: detections of one image, with `pred_boxes` or `proposal_boxes`; its boxes are scaled in place.
        output_height, output_width: the resolution wanted.
        mask_threshold: for masks, which detections here do not have.

    Returns:
        Instances of size (output_height, output_width).
    """
    if isinstance(output_width, torch.Tensor):
        # While tracing, the size is part of the graph; division must stay in floating point.
        new_size = torch.stack([output_height, output_width])
        width, height = output_width.float(), output_height.float()
    else:
        new_size = (output_height, output_width)
        width, height = output_width, output_height
    scale_x, scale_y = width / results.image_size[1], height / results.image_size[0]
    results = Instances(new_size, **results.get_fields())

    assert results.has("pred_boxes") or results.has("proposal_boxes"), "Predictions must contain boxes!"
    output_boxes = results.pred_boxes if results.has("pred_boxes") else results.proposal_boxes
    output_boxes.scale(scale_x, scale_y)
    output_boxes.clip(results.image_size)
    return results[output_boxes.nonempty()]
