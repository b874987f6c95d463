"""Detection in tiles of a large picture, whose results are merged without duplicates."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torchvision.ops import box_iou

from ..data.tiles import tiles
from ..errors import InputError

# Two boxes from different tiles are of one object from this IoU on; and where one is cut by a border of its tile, if
# the other one holds so much of it.
SAME_OBJECT = 0.5
# Of a whole object, at least, relative to that of its part.
SCORE_OF_WHOLE = 0.5
# Pixels from a border up to which a box is cut by it.
BORDER = 2.0

Tile = tuple[int, int, int, int]


def detect_in_tiles(
    detect: Callable[[np.ndarray], Instances], picture: np.ndarray, size: int, overlap: float
) -> Instances:
    """What a detector finds in tiles of a picture, in the picture's pixels, best first; see `merge_tiles`.

    Args:
        detect: maps a part of the picture to its detections, in the pixels of the part.
        picture: (H, W, 3).
        size: side of a tile in pixels.
        overlap: share of its side that a tile has in common with the next one, at least. An object that is no larger
            than this is whole in one of them.
    """
    height, width = picture.shape[:2]
    places = tiles(height, width, size, overlap)
    found = [detect(np.ascontiguousarray(picture[y0:y1, x0:x1])).to("cpu") for x0, y0, x1, y1 in places]
    return merge_tiles(found, places, (height, width))


def merge_tiles(found: Sequence[Instances], places: Sequence[Tile], size: tuple[int, int]) -> Instances:
    """The detections of all tiles without those of one object from several tiles, in the picture, best first.

    A detection that ends at a border of its tile inside the picture is a part of an object. It gives way to one of its
    class from another tile that is none, has at least half of its score, and holds more than half of it. Of the rest a
    detection is left out if a better one of its class from another tile overlaps it by an IoU over 0.5 or, where it is
    a part, holds more than half of it. Within a tile nothing is left out.

    Args:
        found: detections of each tile in its pixels.
        places: (x0, y0, x1, y1) of each tile.
        size: height and width of the picture.
    """
    shifted = []
    for detections, (x0, y0, _, _) in zip(found, places, strict=True):
        boxes = detections.pred_boxes.tensor + torch.tensor([x0, y0, x0, y0]).to(detections.scores)
        shifted.append(
            Instances(size, pred_boxes=Boxes(boxes), scores=detections.scores, pred_classes=detections.pred_classes)
        )
    merged = Instances.cat(shifted)
    cut = torch.cat([_cut(x.pred_boxes.tensor, place, size) for x, place in zip(shifted, places, strict=True)])
    tile = torch.repeat_interleave(torch.tensor([len(x) for x in shifted]))
    order = merged.scores.argsort(descending=True, stable=True)
    merged = merged[order]
    return merged[_firsts(merged, tile[order], cut[order])]


def _cut(boxes: Tensor, place: Tile, size: tuple[int, int]) -> Tensor:
    """(N,) bool: which boxes, (N, 4) xyxy in the picture, end at a border of their tile that is none of the picture."""
    height, width = size
    inner = torch.tensor([place[0] > 0, place[1] > 0, place[2] < width, place[3] < height])
    near = (boxes - torch.tensor(place).to(boxes)).abs() <= BORDER
    return (near & inner).any(1)


def _firsts(found: Instances, tile: Tensor, cut: Tensor) -> Tensor:
    """(N,) bool: which detections, best first, stay; see `merge_tiles`."""
    boxes, scores, classes = found.pred_boxes.tensor, found.scores, found.pred_classes
    low, high = torch.max(boxes[:, None, :2], boxes[:, :2]), torch.min(boxes[:, None, 2:], boxes[:, 2:])
    inside = (high - low).clamp(min=0).prod(-1) / (boxes[:, 2:] - boxes[:, :2]).prod(-1).clamp(min=1e-7)
    comparable = (classes[:, None] == classes) & (tile[:, None] != tile)
    holds_part = comparable & cut & (inside > SAME_OBJECT)
    same = comparable & (box_iou(boxes, boxes) > SAME_OBJECT) | holds_part
    kept = ~(holds_part & ~cut[:, None] & (scores[:, None] >= SCORE_OF_WHOLE * scores)).any(0)
    for i in range(len(boxes)):
        if kept[i]:
            kept[i + 1 :] &= ~same[i, i + 1 :]
    return kept


class TiledModel(nn.Module):
    """Takes and returns what a detector does, for pictures in their own size that it sees tile by tile.

    Args:
        model: the detector.
        size, overlap: of tiles, see `detect_in_tiles`.
        resize: of each tile before the detector sees it.
    """

    def __init__(self, model: nn.Module, size: int, overlap: float, resize: ResizeShortestEdge):
        super().__init__()
        self.model = model
        self.size = size
        self.overlap = overlap
        self.resize = resize

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """{"instances": detections} for each input with an "image", (3, H, W) and not resized.

        Raises:
            InputError: the model finds proposals and no detections.
        """
        pictures = (x["image"].permute(1, 2, 0).cpu().numpy() for x in batched_inputs)
        return [{"instances": detect_in_tiles(self._detect, p, self.size, self.overlap)} for p in pictures]

    def _detect(self, part: np.ndarray) -> Instances:
        height, width = part.shape[:2]
        resized = self.resize.get_transform(part).apply_image(part)
        image = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        (output,) = self.model([{"image": image, "height": height, "width": width}])
        if "instances" not in output:
            raise InputError("TEST.TILE_SIZE is set, but this model gives proposals and no detections to merge")
        return output["instances"]
