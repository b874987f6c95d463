"""Features of a frozen bottom-up network, computed once for all necks and seeds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def is_frozen(network: nn.Module) -> bool:
    """Whether training changes nothing in a network: neither parameters nor statistics of norms."""
    learns = any(parameter.requires_grad for parameter in network.parameters())
    measures = any(isinstance(module, _BatchNorm) and module.training for module in network.train().modules())
    return not (learns or measures)


class FeatureStore:
    """Feature maps of a data set's pictures, plain and mirrored, in files that all processes read.

    Args:
        folder: of the files, one for each level.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._maps: dict[str, np.ndarray] | None = None

    def create(self, pictures: int, features: dict[str, Tensor]) -> None:
        """Make room for so many pictures; `features` of one picture, (1, C, H, W) each, tell names and sizes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, x in features.items():
            shape = (pictures, 2, *x.shape[1:])
            np.lib.format.open_memmap(self.folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)

    def write(self, index: int, mirrored: bool, features: dict[str, Tensor]) -> None:
        """Store the features of one picture, (1, C, H, W) each."""
        for name, x in features.items():
            np.load(self.folder / f"{name}.npy", mmap_mode="r+")[index, int(mirrored)] = x[0].numpy()

    def read(self, requests: Sequence[tuple[int, bool]]) -> dict[str, Tensor]:
        """Features of a batch of (index, mirrored): {name: (B, C, H, W)}."""
        if self._maps is None:
            self._maps = {file.stem: np.load(file, mmap_mode="r") for file in sorted(self.folder.glob("*.npy"))}
        index, mirrored = (list(column) for column in zip(*requests, strict=True))
        return {name: torch.from_numpy(x[index, [int(m) for m in mirrored]]) for name, x in self._maps.items()}


class RememberedBackbone(Backbone):
    """Stands for a frozen bottom-up network whose features are in a `FeatureStore`.

    Args:
        network: that it stands for.
    """

    def __init__(self, network: Backbone):
        super().__init__()
        self._shapes = network.output_shape()
        self._size_divisibility = network.size_divisibility
        self._next: dict[str, Tensor] = {}

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    def look_up(self, store: FeatureStore, requests: Sequence[tuple[int, bool]]) -> None:
        """Read the features of the next batch: (index, mirrored) of each of its pictures."""
        self._next = store.read(requests)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The features that were looked up for these (B, 3, H, W) images."""
        return self._next
