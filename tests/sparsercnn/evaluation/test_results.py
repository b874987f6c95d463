"""What an evaluation left, read back."""

import torch
from detectron2.structures import Boxes, BoxMode, Instances

from sparsercnn.evaluation.results import best_f1_threshold, image_result


def test_detections_of_score_zero_do_not_disturb_the_threshold():
    box = [10.0, 10.0, 30.0, 30.0]
    found = Instances(
        (64, 64),
        pred_boxes=Boxes(torch.tensor([box, box])),
        scores=torch.tensor([0.8, 0.0]),
        pred_classes=torch.tensor([0, 0]),
    )
    annotation = {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    result = image_result({"height": 64, "width": 64, "annotations": [annotation]}, found)
    assert 0 < best_f1_threshold([result]) < 0.8
