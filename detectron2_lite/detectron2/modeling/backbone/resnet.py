"""ResNet, optionally with grouped, dilated or deformable convolutions.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
"""

import torch
from torch import Tensor, nn

from detectron2.layers import CNNBlockBase, ShapeSpec

from .backbone import Backbone
from .build import BACKBONE_REGISTRY
from .resnet_blocks import BasicBlock, BasicStem, BottleneckBlock, DeformBottleneckBlock

__all__ = [
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "DeformBottleneckBlock",
    "ResNet",
    "ResNetBlockBase",
    "build_resnet_backbone",
    "make_stage",
]

ResNetBlockBase = CNNBlockBase

_BLOCKS_PER_STAGE = {
    18: [2, 2, 2, 2],
    34: [3, 4, 6, 3],
    50: [3, 4, 6, 3],
    101: [3, 4, 23, 3],
    152: [3, 8, 36, 3],
}


class ResNet(Backbone):
    """A stem and stages res2, res3, ... of residual blocks.

    Args:
        stem: the first block, named "stem".
        stages: the blocks of each stage, usually four.
        num_classes: add average pooling and a linear layer, named "linear", with so many outputs.
        out_features: names of the outputs; by default the last of "stem", "res2", ..., "linear". Stages above the
            highest one named are not kept.
        freeze_at: freeze that many of stem and stages, see `freeze`.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: list[list[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: list[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.num_classes = num_classes
        stride = stem.stride
        self._out_feature_strides = {"stem": stride}
        self._out_feature_channels = {"stem": stem.out_channels}

        if out_features is not None:
            # Parameters without gradients are memory for nothing, and an error under DistributedDataParallel.
            stages = stages[: max({"res2": 1, "res3": 2, "res4": 3, "res5": 4}.get(f, 0) for f in out_features)]
        name, stage_names, self.stages = "stem", [], []
        for i, blocks in enumerate(stages):
            assert len(blocks) > 0, len(blocks)
            for block in blocks:
                assert isinstance(block, CNNBlockBase), block
                stride *= block.stride
            name = f"res{i + 2}"
            stage = nn.Sequential(*blocks)
            self.add_module(name, stage)
            stage_names.append(name)
            self.stages.append(stage)
            self._out_feature_strides[name] = stride
            self._out_feature_channels[name] = blocks[-1].out_channels
        self.stage_names = tuple(stage_names)

        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.linear = nn.Linear(self._out_feature_channels[name], num_classes)
            # Goyal et al., Accurate, Large Minibatch SGD, 2017, section 5.1.
            nn.init.normal_(self.linear.weight, std=0.01)
            name = "linear"

        self._out_features = [name] if out_features is None else out_features
        assert len(self._out_features)
        children = [name for name, _ in self.named_children()]
        for feature in self._out_features:
            assert feature in children, f"Available children: {', '.join(children)} does not include {feature}"
        self.freeze(freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (B, C, H, W).

        Returns:
            Feature maps by name; (B, num_classes) logits for "linear".
        """
        assert x.dim() == 4, f"ResNet takes an input of shape (N, C, H, W). Got {x.shape} instead!"
        outputs = {}
        x = self.stem(x)
        if "stem" in self._out_features:
            outputs["stem"] = x
        for name, stage in self.named_children():  # TorchScript does not know plain lists of modules
            if name in self.stage_names:
                x = stage(x)
                if name in self._out_features:
                    outputs[name] = x
        if self.num_classes is not None:
            x = self.linear(torch.flatten(self.avgpool(x), 1))
            if "linear" in self._out_features:
                outputs["linear"] = x
        return outputs

    def output_shape(self) -> dict[str, ShapeSpec]:
        return super().output_shape()

    def freeze(self, freeze_at: int = 0) -> "ResNet":
        """Freeze the lowest layers, which fine-tuning rarely improves.

        Args:
            freeze_at: 1 freezes the stem, 2 the stem and res2, and so on.

        Returns:
            The network itself.
        """
        if freeze_at >= 1:
            self.stem.freeze()
        for i, stage in enumerate(self.stages, start=2):
            if freeze_at >= i:
                for block in stage.children():
                    block.freeze()
        return self

    @staticmethod
    def make_stage(
        block_class: type[CNNBlockBase], num_blocks: int, *, in_channels: int, out_channels: int, **kwargs
    ) -> list[CNNBlockBase]:
        """Make the blocks of one stage.

        Args:
            block_class: class of every block.
            num_blocks: number of blocks.
            in_channels: channels of the stage's input.
            out_channels: channels of every block's output.
            **kwargs: arguments of `block_class`. `NAME_per_block` is a list with the argument NAME of each block.
        """
        shared = {k: v for k, v in kwargs.items() if not k.endswith("_per_block")}
        per_block = {k.removesuffix("_per_block"): v for k, v in kwargs.items() if k.endswith("_per_block")}
        for name, values in per_block.items():
            assert len(values) == num_blocks, (
                f"Argument '{name}_per_block' of make_stage should have the same length as num_blocks={num_blocks}."
            )
            assert name not in shared, f"Cannot call make_stage with both {name}_per_block and {name}!"
        blocks = []
        for i in range(num_blocks):
            own = {name: values[i] for name, values in per_block.items()}
            blocks.append(block_class(in_channels=in_channels, out_channels=out_channels, **shared, **own))
            in_channels = out_channels
        return blocks

    @staticmethod
    def make_default_stages(
        depth: int, block_class: type[CNNBlockBase] | None = None, **kwargs
    ) -> list[list[CNNBlockBase]]:
        """Make the four stages of a standard ResNet.

        Args:
            depth: 18, 34, 50, 101 or 152.
            block_class: by default `BasicBlock` below depth 50, else `BottleneckBlock`.
            **kwargs: further arguments of `make_stage` for every stage (channels and strides are the standard ones).
        """
        bottleneck = depth >= 50
        if block_class is None:
            block_class = BottleneckBlock if bottleneck else BasicBlock
        in_channels = 64
        stages = []
        for i, num_blocks in enumerate(_BLOCKS_PER_STAGE[depth]):
            out_channels = (256 if bottleneck else 64) * 2**i
            if bottleneck:
                kwargs["bottleneck_channels"] = out_channels // 4
            stages.append(
                ResNet.make_stage(
                    block_class,
                    num_blocks,
                    stride_per_block=[1 if i == 0 else 2] + [1] * (num_blocks - 1),
                    in_channels=in_channels,
                    out_channels=out_channels,
                    **kwargs,
                )
            )
            in_channels = out_channels
        return stages


def make_stage(*args, **kwargs) -> list[CNNBlockBase]:
    """The same as `ResNet.make_stage`."""
    return ResNet.make_stage(*args, **kwargs)


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg, input_shape: ShapeSpec) -> ResNet:
    """Build the ResNet that `cfg.MODEL.RESNETS` and `cfg.MODEL.BACKBONE.FREEZE_AT` describe."""
    resnets = cfg.MODEL.RESNETS
    depth, res5_dilation = resnets.DEPTH, resnets.RES5_DILATION
    assert res5_dilation in {1, 2}, f"res5_dilation cannot be {res5_dilation}."
    if depth in [18, 34]:
        assert resnets.RES2_OUT_CHANNELS == 64, "Must set MODEL.RESNETS.RES2_OUT_CHANNELS = 64 for R18/R34"
        assert not any(resnets.DEFORM_ON_PER_STAGE), "MODEL.RESNETS.DEFORM_ON_PER_STAGE unsupported for R18/R34"
        assert res5_dilation == 1, "Must set MODEL.RESNETS.RES5_DILATION = 1 for R18/R34"
        assert resnets.NUM_GROUPS == 1, "Must set MODEL.RESNETS.NUM_GROUPS = 1 for R18/R34"

    # Before the stages, because it is drawn before them: see resnet_blocks._initialize.
    stem = BasicStem(in_channels=input_shape.channels, out_channels=resnets.STEM_OUT_CHANNELS, norm=resnets.NORM)
    in_channels = resnets.STEM_OUT_CHANNELS
    stages = []
    for i, num_blocks in enumerate(_BLOCKS_PER_STAGE[depth]):
        dilation = res5_dilation if i == 3 else 1
        first_stride = 1 if i == 0 or dilation == 2 else 2
        out_channels = resnets.RES2_OUT_CHANNELS * 2**i
        kwargs = {
            "num_blocks": num_blocks,
            "stride_per_block": [first_stride] + [1] * (num_blocks - 1),
            "in_channels": in_channels,
            "out_channels": out_channels,
            "norm": resnets.NORM,
        }
        if depth in [18, 34]:
            block_class = BasicBlock
        else:
            block_class = BottleneckBlock
            kwargs["bottleneck_channels"] = resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP * 2**i
            kwargs["stride_in_1x1"] = resnets.STRIDE_IN_1X1
            kwargs["dilation"] = dilation
            kwargs["num_groups"] = resnets.NUM_GROUPS
            if resnets.DEFORM_ON_PER_STAGE[i]:
                block_class = DeformBottleneckBlock
                kwargs["deform_modulated"] = resnets.DEFORM_MODULATED
                kwargs["deform_num_groups"] = resnets.DEFORM_NUM_GROUPS
        stages.append(ResNet.make_stage(block_class, **kwargs))
        in_channels = out_channels

    return ResNet(stem, stages, out_features=resnets.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
