"""Deterministic transforms beyond those of fvcore: resize, rotate, cut out with scaling, change colors."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import CropTransform, NoOpTransform, Transform, TransformList
from PIL import Image

__all__ = ["ExtentTransform", "ResizeTransform", "RotationTransform", "ColorTransform", "PILColorTransform"]

_INTERPOLATE_MODE = {Image.NEAREST: "nearest", Image.BILINEAR: "bilinear", Image.BICUBIC: "bicubic"}


def _through_pil(img: np.ndarray, op: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Apply `op` to an (H, W) or (H, W, C) array as a PIL image; one channel stays one channel."""
    if img.ndim > 2 and img.shape[2] == 1:
        return np.asarray(op(Image.fromarray(img[:, :, 0])))[:, :, np.newaxis]
    return np.asarray(op(Image.fromarray(img)))


class ExtentTransform(Transform):
    """Cuts a rectangle out of the image and scales it to a given size; pixels from outside the image are filled.

    Args:
        src_rect: (x0, y0, x1, y1) in pixels of the input; may reach beyond it.
        output_size: (h, w) of the output.
        interp: PIL interpolation method.
        fill: value of pixels from outside the image.
    """

    def __init__(
        self,
        src_rect: tuple[float, float, float, float],
        output_size: tuple[int, int],
        interp: int = Image.BILINEAR,
        fill: int = 0,
    ):
        super().__init__()
        self._set_attributes({"src_rect": src_rect, "output_size": output_size, "interp": interp, "fill": fill})

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        h, w = self.output_size
        return _through_pil(
            img,
            lambda image: image.transform(
                size=(w, h),
                method=Image.EXTENT,
                data=self.src_rect,
                resample=self.interp if interp is None else interp,
                fill=self.fill,
            ),
        )

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        h, w = self.output_size
        x0, y0, x1, y1 = self.src_rect
        moved = coords.astype(np.float32) - np.array([x0, y0], dtype=np.float32)
        return moved * np.array([w / (x1 - x0), h / (y1 - y0)], dtype=np.float32)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.NEAREST)


class ResizeTransform(Transform):
    """Resizes an image: uint8 with PIL, whose bilinear filter antialiases; other types with `interpolate`.

    Args:
        h, w: size of the input.
        new_h, new_w: size of the output.
        interp: PIL interpolation method, bilinear by default.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None):
        super().__init__()
        interp = Image.BILINEAR if interp is None else interp
        self._set_attributes({"h": h, "w": w, "new_h": new_h, "new_w": new_w, "interp": interp})

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        assert img.shape[:2] == (self.h, self.w), f"expected an image of {(self.h, self.w)}, got {img.shape[:2]}"
        assert len(img.shape) <= 4
        interp = self.interp if interp is None else interp
        if img.dtype == np.uint8:
            return _through_pil(img, lambda image: image.resize((self.new_w, self.new_h), interp))
        return self._interpolate(img, _INTERPOLATE_MODE[interp])

    def _interpolate(self, img: np.ndarray, mode: str) -> np.ndarray:
        trailing = img.shape[2:]
        flat = torch.from_numpy(np.ascontiguousarray(img)).view(self.h, self.w, -1).permute(2, 0, 1)[None]
        align_corners = None if mode == "nearest" else False
        flat = F.interpolate(flat, (self.new_h, self.new_w), mode=mode, align_corners=align_corners)
        return flat[0].permute(1, 2, 0).reshape(self.new_h, self.new_w, *trailing).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords[:, 0] = coords[:, 0] * (self.new_w * 1.0 / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h * 1.0 / self.h)
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.NEAREST)

    def inverse(self) -> Transform:
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class RotationTransform(Transform):
    """Rotates the image counter-clockwise. Needs OpenCV.

    Args:
        h, w: size of the input.
        angle: degrees.
        expand: whether the output grows to hold the whole rotated image; otherwise it has the input's size.
        center: (x, y) to rotate about, the middle of the image by default. Without effect if `expand`.
        interp: OpenCV interpolation method, linear by default.
    """

    def __init__(
        self,
        h: int,
        w: int,
        angle: float,
        expand: bool = True,
        center: tuple[float, float] | None = None,
        interp: int | None = None,
    ):
        import cv2  # optional: nothing else here needs it

        super().__init__()
        image_center = np.array((w / 2, h / 2))
        center = image_center if center is None else center
        interp = cv2.INTER_LINEAR if interp is None else interp
        abs_cos, abs_sin = abs(np.cos(np.deg2rad(angle))), abs(np.sin(np.deg2rad(angle)))
        if expand:
            bound_w, bound_h = np.rint([h * abs_sin + w * abs_cos, h * abs_cos + w * abs_sin]).astype(int)
        else:
            bound_w, bound_h = w, h
        attributes = {"h": h, "w": w, "angle": angle, "expand": expand, "center": center, "interp": interp}
        self._set_attributes(attributes | {"image_center": image_center, "bound_w": bound_w, "bound_h": bound_h})
        self.rm_coords = self.create_rotation_matrix()
        # OpenCV puts the center of the first pixel at 0, coordinates have it at 0.5.
        self.rm_image = self.create_rotation_matrix(offset=-0.5)

    def create_rotation_matrix(self, offset: float = 0) -> np.ndarray:
        """(2, 3) matrix from input to output coordinates, both shifted by `offset`."""
        import cv2

        center = (self.center[0] + offset, self.center[1] + offset)
        rm = cv2.getRotationMatrix2D(tuple(float(c) for c in center), float(self.angle), 1)
        if self.expand:
            rotated_center = rm[:, :2] @ (self.image_center + offset) + rm[:, 2]
            rm[:, 2] += np.array([self.bound_w / 2, self.bound_h / 2]) + offset - rotated_center
        return rm

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        import cv2

        if len(img) == 0 or self.angle % 360 == 0:
            return img
        assert img.shape[:2] == (self.h, self.w)
        interp = self.interp if interp is None else interp
        return cv2.warpAffine(img, self.rm_image, (int(self.bound_w), int(self.bound_h)), flags=interp)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords = np.asarray(coords, dtype=float)
        if len(coords) == 0 or self.angle % 360 == 0:
            return coords
        return coords @ self.rm_coords[:, :2].T + self.rm_coords[:, 2]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        import cv2

        return self.apply_image(segmentation, interp=cv2.INTER_NEAREST)

    def inverse(self) -> Transform:
        """Rotate back and crop to the original size; needs `expand`, without which parts of the image are lost."""
        if not self.expand:
            raise NotImplementedError("A rotation that does not expand the image has no inverse.")
        rotation = RotationTransform(self.bound_h, self.bound_w, -self.angle, True, None, self.interp)
        crop = CropTransform((rotation.bound_w - self.w) // 2, (rotation.bound_h - self.h) // 2, self.w, self.h)
        return TransformList([rotation, crop])


class ColorTransform(Transform):
    """Applies a function from image to image of the same size; coordinates and segmentations stay as they are.

    Args:
        op: maps an ndarray to an ndarray.
    """

    def __init__(self, op: Callable[[np.ndarray], np.ndarray]):
        if not callable(op):
            raise ValueError("op parameter should be callable")
        super().__init__()
        self._set_attributes({"op": op})

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def inverse(self) -> Transform:
        return NoOpTransform()


class PILColorTransform(ColorTransform):
    """`ColorTransform` with a function on PIL images, such as those of PIL's ImageOps and ImageEnhance.

    Args:
        op: maps a PIL image to a PIL image.
    """

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return np.asarray(super().apply_image(Image.fromarray(img)))
