"""Axis-aligned boxes, the formats they are stored in, and overlaps between them."""

import math
from enum import IntEnum, unique
from typing import TypeVar

import numpy as np
import torch
from torch import device

_RawBox = TypeVar("_RawBox", list[float], tuple[float, ...], torch.Tensor, np.ndarray)


@unique
class BoxMode(IntEnum):
    """How the numbers of a box are to be read. The values are part of dataset files, so they are fixed."""

    XYXY_ABS = 0
    """(x0, y0, x1, y1) in pixels."""
    XYWH_ABS = 1
    """(x0, y0, w, h) in pixels, as COCO stores boxes."""
    XYXY_REL = 2
    """(x0, y0, x1, y1) in [0, 1] of the image size. Not convertible."""
    XYWH_REL = 3
    """(x0, y0, w, h) in [0, 1] of the image size. Not convertible."""
    XYWHA_ABS = 4
    """(center x, center y, w, h, counter-clockwise angle in degrees) in pixels."""

    @staticmethod
    def convert(box: _RawBox, from_mode: "BoxMode", to_mode: "BoxMode") -> _RawBox:
        """Convert boxes between absolute formats.

        A rotated box becomes the axis-aligned box that encloses it.

        Args:
            box: one box as a list or tuple of 4 or 5 numbers, or an (N, 4) or (N, 5) array or tensor. Never changed.
            from_mode, to_mode: formats.

        Returns:
            The same type as `box`; arrays and tensors keep their dtype.

        Raises:
            AssertionError: a relative format, or a wrong number of values.
            NotImplementedError: a pair of formats between which nothing is defined.
        """
        if from_mode == to_mode:
            return box
        single = isinstance(box, (list, tuple))
        if single:
            assert len(box) in (4, 5), (
                "BoxMode.convert takes either a k-tuple/list or an Nxk array/tensor, where k == 4 or 5"
            )
            boxes = torch.tensor(box)[None, :]
        else:
            boxes = torch.from_numpy(np.asarray(box)).clone() if isinstance(box, np.ndarray) else box.clone()
        relative = (BoxMode.XYXY_REL, BoxMode.XYWH_REL)
        assert to_mode not in relative and from_mode not in relative, "Relative mode not yet supported!"

        boxes = _convert(boxes, from_mode, to_mode)
        if single:
            return type(box)(boxes.flatten().tolist())
        return boxes.numpy() if isinstance(box, np.ndarray) else boxes


def _convert(boxes: torch.Tensor, from_mode: BoxMode, to_mode: BoxMode) -> torch.Tensor:
    """`BoxMode.convert` for a tensor (N, 4 or 5) that may be overwritten."""
    if from_mode == BoxMode.XYWHA_ABS and to_mode == BoxMode.XYXY_ABS:
        assert boxes.shape[-1] == 5, "The last dimension of input shape must be 5 for XYWHA format"
        # double, because the sine and cosine of float32 angles lose digits that pixel coordinates need
        center, size, angle = boxes.double().split((2, 2, 1), dim=-1)
        cos, sin = (torch.abs(f(angle * (math.pi / 180.0))) for f in (torch.cos, torch.sin))
        enclosing = cos * size + sin * size.flip(-1)
        return torch.cat((center - enclosing / 2, center + enclosing / 2), dim=-1).to(boxes.dtype)
    if from_mode == BoxMode.XYWH_ABS and to_mode == BoxMode.XYWHA_ABS:
        corner, size = boxes.double().split(2, dim=-1)
        return torch.cat((corner + size / 2, size, torch.zeros_like(size[..., :1])), dim=-1).to(boxes.dtype)
    if from_mode == BoxMode.XYWH_ABS and to_mode == BoxMode.XYXY_ABS:
        boxes[:, 2:] += boxes[:, :2]
        return boxes
    if from_mode == BoxMode.XYXY_ABS and to_mode == BoxMode.XYWH_ABS:
        boxes[:, 2:] -= boxes[:, :2]
        return boxes
    raise NotImplementedError(
        f"Conversion from BoxMode {BoxMode(from_mode)!r} to {BoxMode(to_mode)!r} is not supported yet"
    )


class Boxes:
    """An (N, 4) float32 tensor of absolute xyxy boxes with the operations that detectors need.

    Behaves like a list of boxes: indexing and length work along the first axis.

    Attributes:
        tensor: (N, 4), on any device.
    """

    def __init__(self, tensor: torch.Tensor):
        """
        Args:
            tensor: (N, 4) tensor, or anything `torch.as_tensor` takes. Becomes float32.
        """
        if not isinstance(tensor, torch.Tensor):
            tensor = torch.as_tensor(tensor, dtype=torch.float32, device=torch.device("cpu"))
        else:
            tensor = tensor.to(torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape((-1, 4))
        assert tensor.dim() == 2 and tensor.size(-1) == 4, tensor.size()
        self.tensor = tensor

    def clone(self) -> "Boxes":
        """A copy with its own memory."""
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device):
        """The same boxes on another device."""
        return Boxes(self.tensor.to(device=device))

    def area(self) -> torch.Tensor:
        """(N,) areas in square pixels."""
        box = self.tensor
        return (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])

    def clip(self, box_size: tuple[int, int]) -> None:
        """Move coordinates, in place, into [0, width] and [0, height].

        Args:
            box_size: (height, width) in pixels.
        """
        assert torch.isfinite(self.tensor).all(), "Box tensor contains infinite or NaN!"
        h, w = box_size
        x0, y0, x1, y1 = self.tensor.unbind(dim=1)
        self.tensor = torch.stack(
            (x0.clamp(min=0, max=w), y0.clamp(min=0, max=h), x1.clamp(min=0, max=w), y1.clamp(min=0, max=h)), dim=-1
        )

    def nonempty(self, threshold: float = 0.0) -> torch.Tensor:
        """(N,) bool: both sides are longer than `threshold` pixels."""
        box = self.tensor
        return ((box[:, 2] - box[:, 0]) > threshold) & ((box[:, 3] - box[:, 1]) > threshold)

    def __getitem__(self, item) -> "Boxes":
        """Boxes chosen by an int (then N = 1), a slice, or an index or bool tensor. May share memory."""
        if isinstance(item, int):
            return Boxes(self.tensor[item].view(1, -1))
        chosen = self.tensor[item]
        assert chosen.dim() == 2, f"Indexing on Boxes with {item} failed to return a matrix!"
        return Boxes(chosen)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return "Boxes(" + str(self.tensor) + ")"

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> torch.Tensor:
        """(N,) bool: the box lies in an image of (height, width), give or take `boundary_threshold` pixels."""
        height, width = box_size
        box = self.tensor
        return (
            (box[:, 0] >= -boundary_threshold)
            & (box[:, 1] >= -boundary_threshold)
            & (box[:, 2] < width + boundary_threshold)
            & (box[:, 3] < height + boundary_threshold)
        )

    def get_centers(self) -> torch.Tensor:
        """(N, 2) centers (x, y)."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply the coordinates in place."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    @classmethod
    def cat(cls, boxes_list: list["Boxes"]) -> "Boxes":
        """Concatenate; an empty list gives no boxes."""
        assert isinstance(boxes_list, (list, tuple))
        if len(boxes_list) == 0:
            return cls(torch.empty(0))
        assert all(isinstance(boxes, Boxes) for boxes in boxes_list)
        # torch.cat of one tensor copies too, so the result never shares memory
        return cls(torch.cat([boxes.tensor for boxes in boxes_list], dim=0))

    @property
    def device(self) -> device:
        return self.tensor.device

    @torch.jit.unused
    def __iter__(self):
        """Yield one (4,) tensor after the other."""
        yield from self.tensor


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """(N, M) areas of overlap between every box of N and every box of M."""
    a, b = boxes1.tensor, boxes2.tensor
    overlap = torch.min(a[:, None, 2:], b[:, 2:]) - torch.max(a[:, None, :2], b[:, :2])
    return overlap.clamp_(min=0).prod(dim=2)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """(N, M) intersection over union; 0 where boxes do not overlap, also for boxes without area."""
    inter = pairwise_intersection(boxes1, boxes2)
    union = boxes1.area()[:, None] + boxes2.area() - inter
    return torch.where(inter > 0, inter / union, torch.zeros(1, dtype=inter.dtype, device=inter.device))


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """(N, M) intersection over the area of the second box, as crowd regions are matched."""
    inter = pairwise_intersection(boxes1, boxes2)
    return torch.where(inter > 0, inter / boxes2.area(), torch.zeros(1, dtype=inter.dtype, device=inter.device))


def pairwise_point_box_distance(points: torch.Tensor, boxes: Boxes) -> torch.Tensor:
    """Signed distances from points to the sides of boxes, positive inside.

    Args:
        points: (N, 2) of (x, y).
        boxes: M boxes.

    Returns:
        (N, M, 4): to the left, top, right and bottom side.
    """
    corner0, corner1 = boxes.tensor.split(2, dim=1)
    return torch.cat((points[:, None] - corner0, corner1 - points[:, None]), dim=2)


def matched_pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """(N,) intersection over union of the i-th box with the i-th box."""
    assert len(boxes1) == len(boxes2), (
        f"boxlists should have the same number of entries, got {len(boxes1)}, {len(boxes2)}"
    )
    a, b = boxes1.tensor, boxes2.tensor
    overlap = (torch.min(a[:, 2:], b[:, 2:]) - torch.max(a[:, :2], b[:, :2])).clamp(min=0)
    inter = overlap[:, 0] * overlap[:, 1]
    return inter / (boxes1.area() + boxes2.area() - inter)
