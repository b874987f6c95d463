"""Steps that dataset mappers are made of: reading images, transforming annotations, making `Instances`."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from detectron2.config import CfgNode
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.file_io import PathManager

from . import transforms as T
from .catalog import MetadataCatalog

__all__ = [
    "SizeMismatchError",
    "convert_PIL_to_numpy",
    "convert_image_to_rgb",
    "check_image_size",
    "transform_instance_annotations",
    "transform_proposals",
    "annotations_to_instances",
    "filter_empty_instances",
    "gen_crop_transform_with_instance",
    "check_metadata_consistency",
    "get_fed_loss_cls_weights",
    "build_augmentation",
    "build_transform_gen",
    "read_image",
]

# ITU-R BT.601.
_RGB_TO_YUV = np.array([[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]])
_YUV_TO_RGB = np.array([[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]])

_EXIF_ORIENTATION = 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class SizeMismatchError(ValueError):
    """An image has another width or height than its annotation says."""


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """A PIL image as an array: (H, W, C), or (H, W) for a gray image whose format is not given.

    Args:
        image: the image.
        format: a PIL mode such as "RGB" or "L", or "BGR", or "YUV-BT.601" (float in [0, 1]); None keeps the mode.
    """
    if format is None:
        return np.asarray(image)
    image = image.convert("RGB" if format in ("BGR", "YUV-BT.601") else format)
    array = np.asarray(image)
    if format == "L":
        return np.expand_dims(array, -1)
    if format == "BGR":
        return array[:, :, ::-1]
    if format == "YUV-BT.601":
        return np.dot(array / 255.0, _RGB_TO_YUV.T)
    return array


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """An (H, W, C) image of any format that `read_image` makes as (H, W, 3) RGB in [0, 255].

    The result is uint8, or floating point where the image is ("YUV-BT.601").
    """
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy()
    if format == "BGR":
        return image[:, :, [2, 1, 0]]
    if format == "YUV-BT.601":
        return np.dot(image, _YUV_TO_RGB.T) * 255.0
    if format == "L":
        image = image[:, :, 0]
    return np.asarray(Image.fromarray(image.astype(np.uint8)).convert("RGB"))


def _apply_exif_orientation(image: Image.Image) -> Image.Image:
    """Turn the image upright as its EXIF data says, without the copy that PIL's function makes of every other image."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # PIL raises many types on broken EXIF data, and an image without it is a good image
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an image file, upright, as uint8 (floating point for "YUV-BT.601").

    Args:
        file_name: path, or anything else that `PathManager` opens.
        format: see `convert_PIL_to_numpy`.

    Returns:
        (H, W, C), or (H, W) for a gray image whose format is not given.
    """
    with PathManager.open(file_name, "rb") as f:
        return convert_PIL_to_numpy(_apply_exif_orientation(Image.open(f)), format)


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Compare "width" and "height" with the image, and set those that are missing.

    Raises:
        SizeMismatchError: they differ.
    """
    h, w = image.shape[:2]
    if "width" in dataset_dict or "height" in dataset_dict:
        expected = (dataset_dict["width"], dataset_dict["height"])
        if (w, h) != expected:
            of_file = f" for image {dataset_dict['file_name']}" if "file_name" in dataset_dict else ""
            raise SizeMismatchError(
                f"Mismatched image shape{of_file}, got {(w, h)}, expect {expected}."
                " Please check the width/height in your annotation."
            )
    dataset_dict.setdefault("width", w)
    dataset_dict.setdefault("height", h)


def transform_instance_annotations(
    annotation: dict[str, Any], transforms: T.Transform | Sequence[T.Transform], image_size: tuple[int, int]
) -> dict[str, Any]:
    """Transform the box of one annotation, in place, and clip it to the image.

    Args:
        annotation: has "bbox" and "bbox_mode". Masks and keypoints are removed, as they would no longer fit.
        transforms: what was applied to the image.
        image_size: (h, w) of the transformed image.

    Returns:
        the same dict; "bbox" is a (4,) array, xyxy, absolute.
    """
    if isinstance(transforms, tuple | list):
        transforms = T.TransformList(transforms)
    bbox = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    bbox = transforms.apply_box(np.array([bbox]))[0].clip(min=0)
    h, w = image_size
    annotation["bbox"] = np.minimum(bbox, [w, h, w, h])
    annotation["bbox_mode"] = BoxMode.XYXY_ABS
    annotation.pop("segmentation", None)
    annotation.pop("keypoints", None)
    return annotation


def annotations_to_instances(annos: list[dict[str, Any]], image_size: tuple[int, int]) -> Instances:
    """`Instances` with `gt_boxes` ((N, 4) xyxy, absolute, float32) and `gt_classes` ((N,) int64).

    Args:
        annos: annotations of one image.
        image_size: (h, w).
    """
    boxes = [BoxMode.convert(anno["bbox"], anno["bbox_mode"], BoxMode.XYXY_ABS) for anno in annos]
    target = Instances(image_size)
    target.gt_boxes = Boxes(np.stack(boxes) if boxes else np.zeros((0, 4)))
    target.gt_classes = torch.tensor([int(anno["category_id"]) for anno in annos], dtype=torch.int64)
    return target


def filter_empty_instances(
    instances: Instances, by_box: bool = True, *, box_threshold: float = 1e-5, return_mask: bool = False
) -> Instances | tuple[Instances, torch.Tensor]:
    """Remove instances whose box has no area.

    Args:
        instances: has `gt_boxes`.
        by_box: whether to look at the boxes.
        box_threshold: a box narrower or lower than this is empty.
        return_mask: also return the (N,) bool mask of what is kept.
    """
    assert by_box
    keep = instances.gt_boxes.nonempty(threshold=box_threshold)
    return (instances[keep], keep) if return_mask else instances[keep]


def gen_crop_transform_with_instance(
    crop_size: tuple[int, int], image_size: tuple[int, int], instance: dict[str, Any]
) -> T.CropTransform:
    """A random crop that contains the center of the instance's box.

    Args:
        crop_size: (h, w) of the crop.
        image_size: (h, w) of the image.
        instance: annotation with "bbox" and "bbox_mode".
    """
    crop, size = np.asarray(crop_size, dtype=np.int32), np.asarray(image_size, dtype=np.int32)
    x0, y0, x1, y1 = BoxMode.convert(instance["bbox"], instance["bbox_mode"], BoxMode.XYXY_ABS)
    center = np.array([(y0 + y1) * 0.5, (x0 + x1) * 0.5])
    assert (size >= center).all(), "The annotation bounding box is outside of the image!"
    assert (size >= crop).all(), "Crop size is larger than image size!"
    low = np.maximum(np.floor(center).astype(np.int32) - crop, 0)
    high = np.minimum(np.maximum(size - crop, 0), np.ceil(center).astype(np.int32))
    y, x = (np.random.randint(lo, hi + 1) for lo, hi in zip(low, high, strict=True))
    return T.CropTransform(x, y, int(crop[1]), int(crop[0]))


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Check that metadata `key` is the same for all data sets.

    Raises:
        AttributeError: a data set has no such metadata.
        ValueError: they differ; the log says how.
    """
    logger = logging.getLogger(__name__)
    values = [getattr(MetadataCatalog.get(name), key) for name in dataset_names]
    different = [i for i, value in enumerate(values) if value != values[0]]
    for i in different:
        logger.error(f"Metadata '{key}' for dataset '{dataset_names[i]}' is '{values[i]}'")
        logger.error(f"Metadata '{key}' for dataset '{dataset_names[0]}' is '{values[0]}'")
    if different:
        raise ValueError(f"Datasets have different metadata '{key}'!")


def get_fed_loss_cls_weights(dataset_names: str | Sequence[str], freq_weight_power: float = 1.0) -> torch.Tensor:
    """Weights with which the classes of federated loss are drawn: powers of how many images each class is in.

    Args:
        dataset_names: a data set or several, with the same metadata "class_image_count", a list of
            {"id": of the category, "image_count": images}.
        freq_weight_power: the exponent.

    Returns:
        (K,) float32, in the order of the ids.
    """
    names = [dataset_names] if isinstance(dataset_names, str) else dataset_names
    check_metadata_consistency("class_image_count", names)
    counts = sorted(MetadataCatalog.get(names[0]).class_image_count, key=lambda count: count["id"])
    return torch.tensor([count["image_count"] for count in counts], dtype=torch.float32) ** freq_weight_power


def transform_proposals(
    dataset_dict: dict[str, Any],
    image_shape: tuple[int, int],
    transforms: T.Transform,
    *,
    proposal_topk: int,
    min_box_size: float = 0,
) -> None:
    """Replace precomputed proposals of the image file by those of the transformed image, in place.

    Args:
        dataset_dict: may have "proposal_boxes", "proposal_bbox_mode" and "proposal_objectness_logits" as
            `load_proposals_into_dataset` sets them. They become "proposals", `Instances` with `proposal_boxes` and
            `objectness_logits`.
        image_shape: (h, w) of the transformed image, to which the boxes are clipped.
        transforms: what was applied to the image.
        proposal_topk: how many are kept, the first ones.
        min_box_size: boxes that, once clipped, are not wider and higher than this many pixels are dropped.
    """
    if "proposal_boxes" not in dataset_dict:
        return
    boxes = BoxMode.convert(
        dataset_dict.pop("proposal_boxes"), dataset_dict.pop("proposal_bbox_mode"), BoxMode.XYXY_ABS
    )
    boxes = Boxes(transforms.apply_box(boxes))
    boxes.clip(image_shape)
    logits = torch.as_tensor(dataset_dict.pop("proposal_objectness_logits").astype("float32"))
    proposals = Instances(image_shape, proposal_boxes=boxes, objectness_logits=logits)
    dataset_dict["proposals"] = proposals[boxes.nonempty(threshold=min_box_size)][:proposal_topk]


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """The default augmentation: resizing by cfg.INPUT.{MIN,MAX}_SIZE_{TRAIN,TEST}, and in training a random flip."""
    if not is_train:
        return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
    direction = cfg.INPUT.RANDOM_FLIP
    if direction == "none":
        return [resize]
    return [resize, T.RandomFlip(horizontal=direction == "horizontal", vertical=direction == "vertical")]


build_transform_gen = build_augmentation  # the name before detectron2 0.3
