"""The pictures of a comparison, in memory: resized once, and for every neck in the same order with the same flips."""

from collections.abc import Iterator

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances

from sparsercnn.data import SparseRCNNDatasetMapper


class Pictures:
    """A data set as the detector takes it.

    Args:
        cfg: names the size, in tests, and the channel order of the detector's input.
        name: of the data set.

    Attributes:
        name: of the data set.
        records: its images in detectron2's format.
    """

    def __init__(self, cfg: CfgNode, name: str):
        cfg = cfg.clone()
        cfg.defrost()
        # As in a test, but with the annotations.
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (cfg.INPUT.MIN_SIZE_TEST,), cfg.INPUT.MAX_SIZE_TEST
        cfg.INPUT.RANDOM_FLIP = "none"
        cfg.INPUT.CROP.ENABLED = False
        cfg.INPUT.SCALE_JITTER = []
        self.name = name
        self.records: list[dict] = DatasetCatalog.get(name)
        self._mapper = SparseRCNNDatasetMapper(cfg, is_train=True)
        self._samples: dict[int, dict] = {}

    @classmethod
    def of(cls, cfg: CfgNode, name: str) -> "Pictures":
        """The same, but a process reads a data set once."""
        key = name, CfgNode({"INPUT": cfg.INPUT}).dump()
        if key not in _kept:
            _kept[key] = cls(cfg, name)
        return _kept[key]

    def __len__(self) -> int:
        return len(self.records)

    def sample(self, index: int, mirrored: bool = False) -> dict:
        """The input of the detector for a picture, with `instances`; `height` and `width` are those of the file."""
        if index not in self._samples:
            self._samples[index] = self._mapper(self.records[index])
        sample = self._samples[index]
        return mirror(sample) if mirrored else sample

    def have_one_size(self) -> bool:
        """Whether all pictures have equally many pixels, in files and so for the detector."""
        return len({(record["height"], record["width"]) for record in self.records}) == 1


_kept: dict[tuple[str, str], Pictures] = {}


def mirror(sample: dict) -> dict:
    """A sample with left and right exchanged, in the picture and in its boxes."""
    instances = sample["instances"]
    width = instances.image_size[1]
    boxes = instances.gt_boxes.tensor.clone()
    boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    flipped = Instances(instances.image_size, gt_boxes=Boxes(boxes), gt_classes=instances.gt_classes)
    return {**sample, "image": sample["image"].flip(2), "instances": flipped}


def draw_order(pictures: int, seed: int) -> Iterator[tuple[int, bool]]:
    """Endless (index, mirrored): all pictures in random order, again and again, half of them mirrored on average.

    It follows from the seed alone, whatever else draws random numbers.
    """
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(pictures)
        yield from zip(order.tolist(), (random.random(pictures) < 0.5).tolist(), strict=True)
