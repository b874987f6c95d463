import pytest
import torch

from sparsercnn.modeling.more_proposals import resize_proposals


def proposals(count=10, width=4):
    torch.manual_seed(0)
    return torch.rand(count, 4), torch.randn(count, width)


def test_those_that_were_learned_come_first():
    boxes, features = proposals()
    for count in (3, 10, 100):
        more_boxes, more_features = resize_proposals(boxes, features, count)
        assert more_boxes.shape == (count, 4) and more_features.shape == (count, 4)
        kept = min(count, 10)
        assert torch.equal(more_boxes[:kept], boxes[:kept]) and torch.equal(more_features[:kept], features[:kept])


def test_an_extra_one_lies_between_a_proposal_and_one_of_its_nearest():
    boxes = torch.tensor([[0.1, 0.5, 0.2, 0.2], [0.2, 0.5, 0.4, 0.2], [0.9, 0.5, 0.2, 0.2]])
    features = torch.tensor([[0.0], [3.0], [30.0]])
    _, more = resize_proposals(boxes, features, 9)
    first_neighbors = [1.0, 2.0, 21.0]  # of 0: 1, of 1: 0, of 2: 1
    second_neighbors = [10.0, 12.0, 20.0]
    torch.testing.assert_close(more[3:].flatten(), torch.tensor(first_neighbors + second_neighbors))


def test_no_two_are_alike():
    boxes, features = resize_proposals(*proposals(), 100)
    assert len(torch.unique(torch.cat([boxes, features], dim=1), dim=0)) == 100


def test_there_is_an_end():
    with pytest.raises(ValueError, match="10 learned proposals give at most 100, not 101"):
        resize_proposals(*proposals(), 101)
