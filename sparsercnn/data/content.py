"""What a data set holds: its images, its classes, and how many of its annotations are objects to train on."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Counts the annotations of a data set by what becomes of them in training.

    Attributes:
        objects: annotations in all.
        crowds: regions of many objects, which training leaves out.
        empty: boxes without area.
        outside: boxes that lie outside of their image.
    """

    objects: int = 0
    crowds: int = 0
    empty: int = 0
    outside: int = 0

    def add(self, box: Sequence[float], size: Sequence[float], is_crowd: bool) -> None:
        """Count one annotation.

        Args:
            box: absolute xywh.
            size: width and height of its image.
            is_crowd: it is a region of many objects.
        """
        x, y, width, height = box
        self.objects += 1
        if is_crowd:
            self.crowds += 1
        elif not (width > 0 and height > 0):
            self.empty += 1
        elif not (x < size[0] and y < size[1] and x + width > 0 and y + height > 0):
            self.outside += 1

    @property
    def trained(self) -> int:
        """How many annotations are objects to train on."""
        return self.objects - self.crowds - self.empty - self.outside

    def left_out(self) -> str:
        """What is not trained on, such as "3 crowds, 1 box without area"; empty if that is nothing."""
        counts = {"crowd(s)": self.crowds, "box(es) without area": self.empty, "outside of the image": self.outside}
        return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)


@dataclass
class Content:
    """What an annotation file holds.

    Attributes:
        source: the file, for messages.
        files: file name of each image, relative to the image folder.
        ids: of each image.
        sizes: width and height of each image in pixels.
        classes: names of the classes in the order of the model's outputs.
        tally: the annotations.
        negatives: how many images show no objects: they have no annotations, or only crowds.
    """

    source: str
    files: list[str]
    ids: list[int | str]
    sizes: list[tuple[float, float]]
    classes: list[str]
    tally: Tally = field(default_factory=Tally)
    negatives: int = 0
