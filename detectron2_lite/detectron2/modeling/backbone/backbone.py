"""What every backbone offers."""

from abc import ABCMeta, abstractmethod

from torch import nn

from detectron2.layers import ShapeSpec


class Backbone(nn.Module, metaclass=ABCMeta):
    """Maps images to named feature maps.

    A subclass sets `_out_features` (list of names), `_out_feature_channels` and `_out_feature_strides` (dicts by
    name), or overrides `output_shape`.
    """

    @abstractmethod
    def forward(self, *args):
        """
        Returns:
            dict[str, Tensor]: feature maps by name.
        """

    @property
    def size_divisibility(self) -> int:
        """Height and width of the input must be multiples of this; 0 if any size will do."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Further wishes about padding, in the form that `ImageList.from_tensors` takes, e.g. {"square_size": 1024}."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every output by name."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }
