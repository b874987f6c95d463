"""Proposals that some other network computed, from files."""

import logging
import pickle

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager


def load_proposals_into_dataset(dataset_dicts: list[dict], proposal_file: str) -> list[dict]:
    """Add to the description of each image the proposals that were computed for it.

    Args:
        dataset_dicts: in detectron2's standard format, with "image_id". They get "proposal_boxes", (N, 4), and
            "proposal_objectness_logits", (N,), best first, and "proposal_bbox_mode".
        proposal_file: a pickle of {"ids": image ids, "boxes": an (N, 4) array for each, "objectness_logits": an (N,)
            array for each, "bbox_mode": see `BoxMode`, xyxy by default}. Detectron's (Caffe2) names "indexes" and
            "scores" are understood. Unpickling can run code: load only files that you trust.

    Returns:
        The same list.

    Raises:
        KeyError: the file has no proposals for an image.
    """
    logging.getLogger(__name__).info(f"Loading proposals from: {proposal_file}")
    with PathManager.open(proposal_file, "rb") as f:
        proposals = pickle.load(f, encoding="latin1")
    for old, new in {"indexes": "ids", "scores": "objectness_logits"}.items():
        if old in proposals:
            proposals[new] = proposals.pop(old)
    # Ids are numbers in some files and strings in others.
    index_of = {str(image_id): i for i, image_id in enumerate(proposals["ids"])}
    mode = BoxMode(proposals.get("bbox_mode", BoxMode.XYXY_ABS))
    for record in dataset_dicts:
        i = index_of[str(record["image_id"])]
        logits = proposals["objectness_logits"][i]
        order = logits.argsort()[::-1]
        record["proposal_boxes"] = proposals["boxes"][i][order]
        record["proposal_objectness_logits"] = logits[order]
        record["proposal_bbox_mode"] = mode
    return dataset_dicts
