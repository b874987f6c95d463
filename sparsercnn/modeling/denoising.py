"""Denoising: in training, noised copies of the annotated boxes are refined beside the proposals.

Each copy knows which object it must give back, so that it teaches the stages without waiting for a good assignment.
Li et al., DN-DETR: Accelerate DETR Training by Introducing Query DeNoising, CVPR 2022, section 4; there with anchors
as positions, here with boxes that pool features.
"""

from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor, nn
from torchvision.ops import box_convert

from .boxes import image_whwh
from .criterion import SetCriterion


@dataclass(frozen=True)
class NoisedObjects:
    """Noised copies of the objects of B images: G groups of M places, M the largest number of objects.

    Attributes:
        boxes: (B, G·M, 4) absolute xyxy.
        features: (B, G·M, d).
        present: (B, G·M) bool, places that hold an object of their image.
        groups: number G of groups.
    """

    boxes: Tensor
    features: Tensor
    present: Tensor
    groups: int

    def hidden_beside(self, num_proposals: int) -> Tensor:
        """What a row of N proposals and then G·M copies must not see, (B, N + G·M, N + G·M) bool.

        Proposals see each other alone: what they learn must not depend on answers that are missing at inference.
        Copies see proposals and those of their own group; an empty place is seen by itself alone.
        """
        batch, places = self.present.shape
        group = torch.arange(self.groups, device=self.present.device).repeat_interleave(places // self.groups)
        alone = torch.arange(self.groups, self.groups + places, device=self.present.device)
        proposals = self.present.new_full((batch, num_proposals), -1, dtype=torch.int64)
        ids = torch.cat([proposals, group.where(self.present, alone)], dim=1)
        row, column = ids[:, :, None], ids[:, None]
        return (column >= 0) & (column != row)

    def pairs(self, counts: list[int], stages: int) -> Tensor:
        """(4, P) stage, image, place and object of each copy, by stage; objects count on through the batch.

        Args:
            counts: objects of each image.
            stages: number of stages, all with the same pairs.
        """
        places = self.present.shape[1] // self.groups
        columns, first = [], 0
        for image, count in enumerate(counts):
            group, index = torch.meshgrid(torch.arange(self.groups), torch.arange(count), indexing="ij")
            place, target = (group * places + index).flatten(), (first + index).flatten()
            columns.append(torch.stack([torch.full_like(place, image), place, target]))
            first += count
        of_stage = torch.cat(columns, dim=1)
        stage = torch.arange(stages).repeat_interleave(of_stage.shape[1])
        return torch.cat([stage[None], of_stage.repeat(1, stages)])


class Denoising(nn.Module):
    """Makes noised copies of objects; it has no part in inference.

    A copy's center moves by up to `box_noise` / 2 of the box's size and its sides grow or shrink by up to `box_noise`
    of theirs. Its feature is a learned one of the object's class, or with the chance `label_noise` of a random class.

    Args:
        num_classes: K, the classes of objects.
        hidden_dim: width d of object features.
        queries: places to fill with groups of copies in each image; one group at least.
        box_noise: in [0, 1), see above.
        label_noise: in [0, 1], see above.
    """

    def __init__(
        self, num_classes: int, hidden_dim: int, queries: int = 20, box_noise: float = 0.4, label_noise: float = 0.2
    ):
        super().__init__()
        self.queries = queries
        self.box_noise = box_noise
        self.label_noise = label_noise
        self.class_features = nn.Embedding(num_classes, hidden_dim)

    def forward(self, targets: list[Instances]) -> NoisedObjects:
        """Noised copies of `gt_boxes` and `gt_classes`. In an empty place stands the whole image."""
        feature = self.class_features.weight
        # A place even for images without objects, so that every process has a gradient to exchange.
        most = max(1, *(len(t) for t in targets))
        groups = max(1, self.queries // most)
        boxes = image_whwh([t.image_size for t in targets], feature)[:, None].repeat(1, most, 1)
        boxes[..., :2] = 0
        classes = torch.zeros(len(targets), most, dtype=torch.int64, device=feature.device)
        present = torch.zeros(len(targets), most, dtype=torch.bool, device=feature.device)
        for i, target in enumerate(targets):
            boxes[i, : len(target)] = target.gt_boxes.tensor.to(boxes)
            classes[i, : len(target)] = target.gt_classes
            present[i, : len(target)] = True
        boxes, classes, present = boxes.repeat(1, groups, 1), classes.repeat(1, groups), present.repeat(1, groups)
        is_wrong = torch.rand(classes.shape, device=classes.device) < self.label_noise
        classes = torch.randint_like(classes, len(feature)).where(is_wrong, classes)
        center, size = box_convert(boxes, "xyxy", "cxcywh").split(2, dim=-1)
        shift, growth = (2 * torch.rand(2, *size.shape, device=size.device) - 1) * self.box_noise * size
        noised = box_convert(torch.cat([center + shift / 2, size + growth], dim=-1), "cxcywh", "xyxy")
        return NoisedObjects(noised.where(present[..., None], boxes), self.class_features(classes), present, groups)

    def losses(
        self, logits: Tensor, boxes: Tensor, noised: NoisedObjects, targets: list[Instances], criterion: SetCriterion
    ) -> dict[str, Tensor]:
        """Weighted losses of every stage, as `criterion` names them, each copy paired with its object.

        Args:
            logits: (S, B, G·M, K) of the copies.
            boxes: (S, B, G·M, 4) absolute xyxy.
            noised: the copies.
            targets: of which they are copies.
            criterion: gives the losses; the sigmoid variant.
        """
        logits, boxes = criterion.supervised(logits, boxes)
        pairs = noised.pairs([len(t) for t in targets], len(logits))
        return criterion.losses_of_pairs(logits, boxes, targets, pairs, noised.groups, noised.present)
