"""Proposals that depend on the image: the best distinct locations of a light dense branch on the pyramid.

Zhang et al., Dense Distinct Query for End-to-End Object Detection, CVPR 2023. A location is distinct if no better one
has nearly the same box, be that one distinct itself or not (Fast NMS: Bolya et al., YOLACT, ICCV 2019, section 4.2), so
that the number of operations does not depend on the data.
"""

import math
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from .boxes import image_whwh, paired_iou
from .criterion import SetCriterion

# At a location that has learned nothing the box reaches so many strides to each side: a level's usual size.
INITIAL_REACH = 2.0

# So many times the wanted number of locations are compared with each other.
CANDIDATES = 4


@dataclass(frozen=True)
class DensePredictions:
    """What the dense branch says at every location of B images, all levels end to end.

    Attributes:
        logits: (B, L, K).
        boxes: (B, L, 4) absolute xyxy, inside the image.
        features: (B, L, d).
        scores: (B, L) of the best class, without gradient; −1 outside of the image.
    """

    logits: Tensor
    boxes: Tensor
    features: Tensor
    scores: Tensor


class DenseQueries(nn.Module):
    """Scores and boxes at every location, and proposals from the best of them.

    A depthwise and a pointwise convolution, group norm and ReLU, then a linear layer for K class logits and the
    distances to the four sides, shared by all levels. A proposal takes over the location's box and, through a linear
    layer, its feature.

    Args:
        in_features: names of the pyramid levels that are read.
        strides: of these levels in pixels.
        channels: d of every level.
        num_classes: K.
        num_queries: proposals of an image; fewer if the image has fewer locations.
        criterion: the losses of dense predictions, as of one stage.
        prior_prob: score that every class starts with.
        distinct_overlap: largest IoU of a distinct box with a better one.
    """

    def __init__(
        self,
        in_features: list[str],
        strides: list[int],
        channels: int,
        num_classes: int,
        num_queries: int,
        criterion: SetCriterion,
        prior_prob: float = 0.01,
        distinct_overlap: float = 0.7,
    ):
        super().__init__()
        self.in_features = in_features
        self.strides = strides
        self.num_queries = num_queries
        self.criterion = criterion
        self.distinct_overlap = distinct_overlap
        self.tower = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.GroupNorm(math.gcd(32, channels), channels),
            nn.ReLU(),
        )
        self.class_logits = nn.Linear(channels, num_classes)
        self.distances = nn.Linear(channels, 4)
        self.feature = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels))
        nn.init.normal_(self.class_logits.weight, std=0.01)
        nn.init.constant_(self.class_logits.bias, -math.log((1 - prior_prob) / prior_prob))
        nn.init.normal_(self.distances.weight, std=0.01)
        nn.init.zeros_(self.distances.bias)

    def forward(self, features: dict[str, Tensor], image_sizes: list[tuple[int, int]]) -> DensePredictions:
        """Predictions at every location.

        Args:
            features: feature maps by name, (B, d, H, W) each.
            image_sizes: (height, width) of each image without padding.
        """
        maps = [self.tower(features[name]) for name in self.in_features]
        hidden = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
        centers, strides = self._locations(maps)
        logits = self.class_logits(hidden).float()
        # exp of 5 is more than any image at any stride; it keeps the first steps finite.
        reach = INITIAL_REACH * strides[:, None] * self.distances(hidden).float().clamp(max=5).exp()
        limit = image_whwh(image_sizes, centers)[:, None]
        boxes = torch.cat([centers - reach[..., :2], centers + reach[..., 2:]], dim=-1)
        boxes = torch.minimum(boxes.clamp(min=0), limit)
        outside = (centers > limit[..., :2]).any(-1)
        scores = logits.detach().amax(-1).sigmoid().masked_fill(outside, -1)
        return DensePredictions(logits, boxes, hidden, scores)

    def select(self, dense: DensePredictions) -> tuple[Tensor, Tensor]:
        """Boxes (B, N, 4), absolute xyxy and without gradient, and features (B, N, d) of the N best locations.

        Distinct ones come first, and where they are too few the best of the others.
        """
        locations = dense.scores.shape[1]
        scores, index = dense.scores.topk(min(CANDIDATES * self.num_queries, locations))
        boxes = _rows(dense.boxes.detach(), index)
        overlaps = paired_iou(boxes[:, :, None], boxes[:, None]).triu(diagonal=1)  # of better ones (rows) with each
        distinct = overlaps.amax(1) <= self.distinct_overlap
        best = (scores + distinct).topk(min(self.num_queries, locations)).indices
        return _rows(boxes, best), self.feature(_rows(dense.features, index.gather(1, best)))

    def losses(self, dense: DensePredictions, targets: list[Instances]) -> dict[str, Tensor]:
        """Weighted `loss_ce`, `loss_bbox` and `loss_giou` of all locations."""
        return self.criterion(dense.logits[None], dense.boxes[None], targets)

    def _locations(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Centers (L, 2), absolute xy, and strides (L,) of the locations of all levels."""
        centers, strides = [], []
        for m, stride in zip(maps, self.strides, strict=True):
            y, x = (torch.arange(size, device=m.device) * stride + stride / 2 for size in m.shape[2:])
            centers.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1))
            strides.append(torch.full_like(centers[-1][:, 0], stride))
        return torch.cat(centers), torch.cat(strides)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """(B, N, C) rows of a (B, L, C) table, by (B, N) indices."""
    return table.gather(1, index[..., None].expand(-1, -1, table.shape[-1]))
