"""Whole models of two stages, and of the first stage alone.

Ren et al., Faster R-CNN, NeurIPS 2015.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.layers import move_device_like
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage
from detectron2.utils.visualizer import Visualizer

from ..backbone import Backbone, build_backbone
from ..postprocessing import detector_postprocess
from ..proposal_generator import build_proposal_generator
from ..roi_heads import build_roi_heads
from .build import META_ARCH_REGISTRY

__all__ = ["GeneralizedRCNN", "ProposalNetwork"]

# More boxes than this in one picture hide each other.
_MAX_DRAWN_PROPOSALS = 20


class _ImageNetwork(nn.Module):
    """What both models do to their input: bring it to the model's device, normalize and pad it.

    Args:
        backbone: says how images are to be padded.
        pixel_mean, pixel_std: mean and standard deviation of each channel.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, backbone: Backbone, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
        super().__init__()
        self.backbone = backbone
        # Not part of the state dict: they belong to the config.
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        assert self.pixel_mean.shape == self.pixel_std.shape, (
            f"{self.pixel_mean} and {self.pixel_std} have different shapes!"
        )

    @property
    def device(self) -> torch.device:
        """Where the model and its inputs are."""
        return self.pixel_mean.device

    def _move_to_current_device(self, x: Tensor) -> Tensor:
        return move_device_like(x, self.pixel_mean)

    def preprocess_image(self, batched_inputs: list[dict[str, Tensor]]) -> ImageList:
        """Normalize the images of the batch, each a (C, H, W) "image", and pad them to one size."""
        images = [self._move_to_current_device(x["image"]) for x in batched_inputs]
        return ImageList.from_tensors(
            [(x - self.pixel_mean) / self.pixel_std for x in images],
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )

    def _ground_truth(self, batched_inputs: list[dict]) -> list[Instances] | None:
        if "instances" not in batched_inputs[0]:
            return None
        return [x["instances"].to(self.device) for x in batched_inputs]


@META_ARCH_REGISTRY.register()
class GeneralizedRCNN(_ImageNetwork):
    """A backbone, a network that proposes regions, and heads that predict objects from the features of each.

    Args:
        backbone: makes the feature maps.
        proposal_generator: proposes, see `RPN`; None if the inputs bring their proposals.
        roi_heads: predicts, see `ROIHeads`.
        pixel_mean, pixel_std: mean and standard deviation of each channel of the images.
        input_format: how the channels are to be read when drawing, for example "RGB" or "BGR".
        vis_period: iterations between drawn training images; 0 draws none, any other needs `input_format`.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module | None,
        roi_heads: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str | None = None,
        vis_period: int = 0,
    ) -> None:
        super().__init__(backbone, pixel_mean, pixel_std)
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.input_format = input_format
        self.vis_period = vis_period
        if vis_period > 0:
            assert input_format is not None, "input_format is required for visualization!"

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, backbone.output_shape()),
            "roi_heads": build_roi_heads(cfg, backbone.output_shape()),
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses by name in training, otherwise what `inference` returns.

        Args:
            batched_inputs: one dict for each image: "image", (C, H, W) in the channel order and range of `pixel_mean`;
                in training "instances", with `gt_boxes` and `gt_classes`; without a proposal generator "proposals",
                with `proposal_boxes` and `objectness_logits`; outside of training maybe "height" and "width" of the
                output, by default those of the image.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        gt_instances = self._ground_truth(batched_inputs)
        features = self.backbone(images.tensor)
        proposals, proposal_losses = self._propose(images, features, batched_inputs, gt_instances)
        _, detector_losses = self.roi_heads(images, features, proposals, gt_instances)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        return {**detector_losses, **proposal_losses}

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict] | list[Instances]:
        """Detect objects.

        Args:
            batched_inputs: as for `forward`.
            detected_instances: boxes of each image, with `pred_boxes` and `pred_classes`, to predict for instead of
                finding any.
            do_postprocess: whether to scale detections to the output resolution.

        Returns:
            {"instances": Instances} for each image, in the output resolution; or with `do_postprocess=False`
            `Instances` in pixels of the network input.
        """
        assert not self.training
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if detected_instances is None:
            proposals, _ = self._propose(images, features, batched_inputs)
            results, _ = self.roi_heads(images, features, proposals, None)
        else:
            given = [x.to(self.device) for x in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(features, given)
        return self._postprocess(results, batched_inputs, images.image_sizes) if do_postprocess else results

    def _propose(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        batched_inputs: list[dict],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        if self.proposal_generator is not None:
            return self.proposal_generator(images, features, gt_instances)
        assert "proposals" in batched_inputs[0], "without a proposal generator, each input needs 'proposals'"
        return [x["proposals"].to(self.device) for x in batched_inputs], {}

    @staticmethod
    def _postprocess(
        instances: list[Instances], batched_inputs: list[dict], image_sizes: list[tuple[int, int]]
    ) -> list[dict]:
        """Scale the detections of each image to its output resolution."""
        return [{"instances": r} for r in _to_output_resolution(instances, batched_inputs, image_sizes)]

    def visualize_training(self, batched_inputs: list[dict], proposals: list[Instances]) -> None:
        """Put a picture into the event storage: the first image with its ground truth, and with its best proposals.

        Args:
            batched_inputs: as for `forward`, with ground truth.
            proposals: of each image, with `proposal_boxes`, best first.
        """
        image = convert_image_to_rgb(batched_inputs[0]["image"].permute(1, 2, 0), self.input_format)
        gt_boxes = batched_inputs[0]["instances"].gt_boxes
        proposal_boxes = proposals[0].proposal_boxes[:_MAX_DRAWN_PROPOSALS].tensor.cpu().numpy()
        halves = [
            Visualizer(image, None).overlay_instances(boxes=boxes).get_image() for boxes in (gt_boxes, proposal_boxes)
        ]
        picture = np.concatenate(halves, axis=1).transpose(2, 0, 1)
        get_event_storage().put_image("Left: GT bounding boxes;  Right: Predicted proposals", picture)


@META_ARCH_REGISTRY.register()
class ProposalNetwork(_ImageNetwork):
    """A backbone and a network that proposes regions: the first stage of a detector.

    Args:
        backbone: makes the feature maps.
        proposal_generator: proposes, see `RPN`.
        pixel_mean, pixel_std: mean and standard deviation of each channel of the images.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__(backbone, pixel_mean, pixel_std)
        self.proposal_generator = proposal_generator

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Propose regions, or in training compare with ground truth.

        Args:
            batched_inputs: as for `GeneralizedRCNN.forward`.

        Returns:
            Losses by name in training; otherwise {"proposals": Instances} for each image, with `proposal_boxes` in
            the output resolution and `objectness_logits`, best first.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        gt_instances = self._ground_truth(batched_inputs)
        proposals, losses = self.proposal_generator(images, features, gt_instances)
        if self.training:
            return losses
        return [{"proposals": r} for r in _to_output_resolution(proposals, batched_inputs, images.image_sizes)]


def _to_output_resolution(
    results: list[Instances], batched_inputs: list[dict], image_sizes: list[tuple[int, int]]
) -> list[Instances]:
    """Scale boxes to the "height" and "width" of each input; by default the size of its image."""
    return [
        detector_postprocess(result, x.get("height", size[0]), x.get("width", size[1]))
        for result, x, size in zip(results, batched_inputs, image_sizes, strict=True)
    ]
