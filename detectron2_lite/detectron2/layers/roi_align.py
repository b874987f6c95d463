"""RoIAlign as a module.

He et al., Mask R-CNN, ICCV 2017, section 3.
"""

from torch import Tensor, nn
from torchvision.ops import roi_align

__all__ = ["ROIAlign", "roi_align"]


class ROIAlign(nn.Module):
    """Bilinear pooling of one feature map over boxes.

    Args:
        output_size: (height, width) of the pooled grid.
        spatial_scale: feature pixels per box unit, for example 1 / 16.
        sampling_ratio: samples per bin and axis; 0 takes as many as the bin is wide.
        aligned: shift by half a pixel, so that coordinates are continuous and pixel centers lie at .5.
            False is the original behavior, half a pixel off.
    """

    def __init__(
        self, output_size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool = True
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """
        Args:
            input: (B, C, H, W).
            rois: (N, 5), image index and xyxy of each box.

        Returns:
            (N, C, output height, output width).
        """
        assert rois.dim() == 2 and rois.size(1) == 5
        if input.is_quantized:
            input = input.dequantize()
        return roi_align(
            input,
            rois.to(dtype=input.dtype),
            self.output_size,
            self.spatial_scale,
            self.sampling_ratio,
            self.aligned,
        )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned})"
        )
