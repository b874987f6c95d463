"""A detector that looks for more, or fewer, objects than it was trained to."""

import copy

from torch import nn

from ..errors import InputError
from ..modeling.detector import SparseRCNN
from ..modeling.more_proposals import resize_proposals


def with_proposals(model: nn.Module, count: int) -> SparseRCNN:
    """A detector with so many proposals, which shares the weights of `model`; that one keeps its own number.

    Dense queries take the best so many locations of an image. Of learned proposals extra ones are made, see
    `resize_proposals`.

    Raises:
        InputError: the model has no proposals, or too few to make so many of them.
    """
    if not isinstance(model, SparseRCNN):
        raise InputError(f"TEST.NUM_PROPOSALS is for SparseRCNN, not {type(model).__name__}")
    other = copy.copy(model)
    other._modules = dict(model._modules)
    other.num_proposals = count
    if model.dense_queries is not None:
        other.dense_queries = copy.copy(model.dense_queries)
        other.dense_queries.num_queries = count
        return other
    try:
        boxes, features = resize_proposals(model.init_proposal_boxes.weight, model.init_proposal_features.weight, count)
    except ValueError as error:
        raise InputError(f"TEST.NUM_PROPOSALS is {count}: {error}") from error
    other.init_proposal_boxes = nn.Embedding.from_pretrained(boxes.detach())
    other.init_proposal_features = nn.Embedding.from_pretrained(features.detach())
    return other
