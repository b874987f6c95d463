"""The cascade of dynamic-interaction heads that refines proposals.

Sun et al., Sparse R-CNN: End-to-End Object Detection with Learnable Proposals, CVPR 2021, section 3.2.
"""

import math
from collections.abc import Callable

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..errors import InputError
from .roi_routing import LevelRouting, build_roi_routing

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class DynamicConv(nn.Module):
    """A linear layer makes two matrices from each object feature, and these filter the object's RoI feature in turn.

    Args:
        hidden_dim: channels d of object and RoI features.
        dim_dynamic: inner width of the two generated matrices, d × inner and inner × d.
        bins: bins of a RoI feature, resolution² = 49.
    """

    def __init__(self, hidden_dim: int, dim_dynamic: int, bins: int):
        super().__init__()
        self.dim_dynamic = dim_dynamic
        self.dynamic_layer = nn.Linear(hidden_dim, 2 * hidden_dim * dim_dynamic)
        self.norm1 = nn.LayerNorm(dim_dynamic)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.out_layer = nn.Linear(hidden_dim * bins, hidden_dim)
        self.norm3 = nn.LayerNorm(hidden_dim)

    def forward(self, objects: Tensor, roi_features: Tensor) -> Tensor:
        """(B, N, d) object features and (B·N, bins, d) RoI features to (B, N, d)."""
        first, second = self.matrices(objects)
        x = F.relu(self.norm1(torch.bmm(roi_features, first)))
        x = F.relu(self.norm2(torch.bmm(x, second)))
        x = F.relu(self.norm3(self.out_layer(x.flatten(1))))
        return x.view_as(objects)

    def matrices(self, objects: Tensor) -> tuple[Tensor, Tensor]:
        """The matrices (B·N, d, inner) and (B·N, inner, d) that the features (B, N, d) of objects generate."""
        first, second = self.dynamic_layer(objects).flatten(0, 1).chunk(2, dim=-1)
        return first.unflatten(-1, (-1, self.dim_dynamic)), second.unflatten(-1, (self.dim_dynamic, -1))


class RefinementStage(nn.Module):
    """One stage: self-attention among objects, dynamic interaction, feed-forward layer, class logits and box deltas.

    Args:
        hidden_dim: width d of object features.
        num_logits: K, or K + 1 for the softmax variant.
        nheads: number of attention heads.
        dim_feedforward: width of the feed-forward layer.
        dim_dynamic: inner width of the dynamic interaction.
        num_cls, num_reg: linear + LayerNorm + ReLU layers before the logits and before the deltas; may be 0.
        bins: bins of a RoI feature, resolution² = 49.
        dropout: probability of dropout in the attention and after each part of the stage.
        activation: "relu" or "gelu", in the feed-forward layer.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_logits: int,
        nheads: int,
        dim_feedforward: int,
        dim_dynamic: int,
        num_cls: int,
        num_reg: int,
        bins: int = 49,
        dropout: float = 0.0,
        activation: str = "relu",
    ):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(hidden_dim, nheads, dropout=dropout, batch_first=True)
        self.inst_interact = DynamicConv(hidden_dim, dim_dynamic, bins)
        self.linear1 = nn.Linear(hidden_dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.norm3 = nn.LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.activation = ACTIVATIONS[activation]
        self.cls_module = _tower(hidden_dim, num_cls)
        self.reg_module = _tower(hidden_dim, num_reg)
        self.class_logits = nn.Linear(hidden_dim, num_logits)
        self.bboxes_delta = nn.Linear(hidden_dim, 4)

    def forward(
        self, objects: Tensor, roi_features: Tensor, hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Refine object features by what the boxes show, and predict classes and deltas from them.

        Args:
            objects: (B, N, d) object features of the previous stage.
            roi_features: (B·N, bins, d).
            hidden: (B, N, N) bool, True where the row's object must not see the column's; None if all see all.

        Returns:
            Logits (B, N, K), box deltas (B, N, 4) and the new object features (B, N, d).
        """
        objects = self.attend(objects, hidden)
        interaction = self.inst_interact(objects, roi_features)
        objects = self.norm2(objects + self.dropout(interaction))
        # Half precision is too coarse for scores and for the position of boxes, and for the feed-forward layer, whose
        # rounded results would be added to the objects that all later stages build on.
        with torch.autocast(objects.device.type, enabled=False):
            objects = objects.to(self.class_logits.weight.dtype)
            forwarded = self.linear2(self.dropout(self.activation(self.linear1(objects))))
            objects = self.norm3(objects + self.dropout(forwarded))
            return self.class_logits(self.cls_module(objects)), self.bboxes_delta(self.reg_module(objects)), objects

    def attend(self, objects: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Self-attention among the objects of an image, (B, N, d) to (B, N, d). It does not look at the image.

        Args:
            objects: (B, N, d).
            hidden: (B, N, N) bool, what a row's object must not see; None if all see all.
        """
        if hidden is not None:
            hidden = hidden.repeat_interleave(self.self_attn.num_heads, dim=0)
        attended = self.self_attn(objects, objects, objects, attn_mask=hidden)[0]
        return self.norm1(objects + self.dropout(attended))

    def full_precision_layers(self) -> list[nn.Module]:
        """The layers that `forward` runs in the precision of their weights, also under autocast."""
        return [self.linear1, self.linear2, self.cls_module, self.reg_module, self.class_logits, self.bboxes_delta]


class DynamicHead(nn.Module):
    """Refinement stages; each reads the boxes and object features of the one before.

    Args:
        routing: makes the RoI features of boxes from the pyramid.
        stages: one `RefinementStage` or more. The same one several times shares its weights.
        prior_prob: score that every class starts with; None for the softmax variant.
    """

    @configurable
    def __init__(self, *, routing: LevelRouting, stages: list[RefinementStage], prior_prob: float | None = 0.01):
        super().__init__()
        self.routing = routing
        self.head_series = nn.ModuleList(stages)
        self.grad_checkpointing = False
        # As published: dx and dy are divided by 2, and in one stage no side grows more than 100000 / 16 times.
        self.box_transform = Box2BoxTransform(weights=(2.0, 2.0, 1.0, 1.0), scale_clamp=math.log(100000.0 / 16))
        self._initialize(prior_prob)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.SparseRCNN
        if node.NUM_DYNAMIC != 2:
            raise InputError(f"MODEL.SparseRCNN.NUM_DYNAMIC is {node.NUM_DYNAMIC}; the interaction has 2 matrices.")
        if node.ACTIVATION not in ACTIVATIONS:
            raise InputError(f"MODEL.SparseRCNN.ACTIVATION is '{node.ACTIVATION}'; choose relu or gelu.")
        if node.HIDDEN_DIM % node.NHEADS:
            raise InputError(
                f"MODEL.SparseRCNN.HIDDEN_DIM {node.HIDDEN_DIM} must be a multiple of its NHEADS {node.NHEADS}."
            )
        count = 1 if node.SHARED_STAGES else node.NUM_HEADS
        stages = [
            RefinementStage(
                hidden_dim=node.HIDDEN_DIM,
                num_logits=node.NUM_CLASSES if node.USE_FOCAL else node.NUM_CLASSES + 1,
                nheads=node.NHEADS,
                dim_feedforward=node.DIM_FEEDFORWARD,
                dim_dynamic=node.DIM_DYNAMIC,
                num_cls=node.NUM_CLS,
                num_reg=node.NUM_REG,
                bins=cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION**2,
                dropout=node.DROPOUT,
                activation=node.ACTIVATION,
            )
            for _ in range(count)
        ]
        return {
            "routing": build_roi_routing(cfg, input_shape),
            "stages": stages * (node.NUM_HEADS // count),
            "prior_prob": node.PRIOR_PROB if node.USE_FOCAL else None,
        }

    def _initialize(self, prior_prob: float | None) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        if prior_prob is not None:
            # Or the many proposals on background would swamp the first steps (Lin et al., Focal Loss, ICCV 2017,
            # section 4.1). No other bias is a score: they keep PyTorch's initialization.
            for stage in self.head_series:
                assert isinstance(stage, RefinementStage)
                nn.init.constant_(stage.class_logits.bias, -math.log((1 - prior_prob) / prior_prob))

    def forward(
        self, features: list[Tensor], boxes: Tensor, proposal_features: Tensor, hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Refine proposals through all stages.

        Args:
            features: (B, d, H, W) of each level, lowest first.
            boxes: (B, N, 4) proposal boxes, absolute xyxy.
            proposal_features: (N, d), or (B, N, d) where each image has its own.
            hidden: (B, N, N) bool, True where the row's proposal must not see the column's; None if all see all.

        Returns:
            Logits (S, B, N, K) and boxes (S, B, N, 4), absolute xyxy, after each of S stages.
        """
        pyramid = self.routing.pooler.prepare(features)
        objects = proposal_features.expand(boxes.shape[0], -1, -1)
        all_logits, all_boxes = [], []
        for stage in self.head_series:
            roi_features = self.routing(pyramid, boxes)
            if self.grad_checkpointing and torch.is_grad_enabled():
                logits, deltas, objects = checkpoint(stage, objects, roi_features, hidden, use_reentrant=False)
            else:
                logits, deltas, objects = stage(objects, roi_features, hidden)
            boxes = self.box_transform.apply_deltas(deltas.flatten(0, 1), boxes.flatten(0, 1)).view_as(boxes)
            all_logits.append(logits)
            all_boxes.append(boxes)
            boxes = boxes.detach()  # each stage learns from its own losses alone
        return torch.stack(all_logits), torch.stack(all_boxes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of stages for the backward pass and compute the rest again: less memory, more time.

        Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016. The name is timm's.
        """
        self.grad_checkpointing = enable


def _tower(width: int, depth: int) -> nn.Sequential:
    """`depth` times a linear layer without bias, LayerNorm and ReLU."""
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width, bias=False), nn.LayerNorm(width), nn.ReLU())]
    return nn.Sequential(*layers)
