"""What a detector says about many images, as a few arrays that go between processes and onto disk."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

Arrays = dict[str, np.ndarray]


@dataclass
class ImageOutput:
    """What a detector says about one image.

    Args:
        position: of the image in the data set.
        image_id: its id.
        size: (height, width) that the boxes are in.
        fields: "KEY.FIELD" of the output's `Instances`, such as "instances.scores", to (n, …) arrays. Boxes are (n, 4),
            and "boxes" is in the name of their field.
    """

    position: int
    image_id: int | str
    size: tuple[int, int]
    fields: Arrays

    @classmethod
    def of(cls, position: int, image_id: int | str, output: dict[str, Instances]) -> "ImageOutput":
        """Take over a model's output; tensors on a GPU are copied from there."""
        fields = {}
        for key, instances in output.items():
            for name, value in instances.get_fields().items():
                tensor = value.tensor if isinstance(value, Boxes) else value
                fields[f"{key}.{name}"] = tensor.cpu().numpy()
        return cls(position, image_id, instances.image_size, fields)

    def to_output(self) -> dict[str, Instances]:
        """The model's output again, on the CPU."""
        output: dict[str, Instances] = {}
        for path, array in self.fields.items():
            key, name = path.split(".")
            tensor = torch.from_numpy(array)
            instances = output.setdefault(key, Instances(self.size))
            instances.set(name, Boxes(tensor) if "boxes" in name else tensor)
        return output


def pack(outputs: Sequence[ImageOutput]) -> Arrays:
    """Columns of all these outputs, without pickled objects."""
    arrays: Arrays = {
        "position": np.array([output.position for output in outputs], np.int64),
        "image_id": np.array([output.image_id for output in outputs]),
        "size": np.array([output.size for output in outputs], np.int64).reshape(-1, 2),
    }
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    for output in outputs:
        for name, array in output.fields.items():
            columns[name].append(array)
    for name, column in columns.items():
        arrays[f"{name}.lengths"] = np.array([len(array) for array in column], np.int64)
        arrays[f"{name}.values"] = np.concatenate(column)
    return arrays


def unpack(arrays: Arrays) -> Iterator[ImageOutput]:
    """The outputs that `pack` was given."""
    names = [name.removesuffix(".values") for name in arrays if name.endswith(".values")]
    split = {n: np.split(arrays[f"{n}.values"], np.cumsum(arrays[f"{n}.lengths"])[:-1]) for n in names}
    rows = zip(arrays["position"].tolist(), arrays["image_id"].tolist(), arrays["size"].tolist(), strict=True)
    for i, (position, image_id, (height, width)) in enumerate(rows):
        yield ImageOutput(position, image_id, (height, width), {name: split[name][i] for name in names})
