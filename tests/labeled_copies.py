"""One small data set of generated shapes, written in the formats that people have."""

import csv
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import yaml
from PIL import Image

from sparsercnn.data.shapes import SHAPES_CLASSES, make_scene

SIZE = 64


class Labeled(NamedTuple):
    """A picture and what is in it: (class, xmin, ymin, xmax, ymax) each, pixels from 0, the ends not included."""

    name: str
    objects: list


def make_pictures(folder: Path, count: int, size: int = SIZE) -> list[Labeled]:
    folder.mkdir(parents=True)
    found = []
    for i in range(count):
        scene = make_scene(seed=7, split=0, index=i, size=size)
        name = f"scene{i:03d}.png"
        Image.fromarray(scene.image).save(folder / name)
        boxes = [[x, y, x + w, y + h] for x, y, w, h in scene.boxes.tolist()]
        found.append(Labeled(name, [(SHAPES_CLASSES[c], *box) for c, box in zip(scene.classes, boxes, strict=True)]))
    return found


def write_yolo(pictures: Path, labeled: list[Labeled], folder: Path) -> None:
    shutil.copytree(pictures, folder / "images")
    (folder / "labels").mkdir()
    # Another order of the classes than that of their names.
    names = ["triangle", "circle", "rectangle"]
    for name, objects in labeled:
        lines = []
        for label, x0, y0, x1, y1 in objects:
            values = ((x0 + x1) / 2 / SIZE, (y0 + y1) / 2 / SIZE, (x1 - x0) / SIZE, (y1 - y0) / SIZE)
            lines.append(" ".join([str(names.index(label)), *(f"{value:.6f}" for value in values)]))
        (folder / "labels" / f"{Path(name).stem}.txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text(yaml.safe_dump({"path": "/elsewhere", "train": "images", "names": names}))


def write_voc(pictures: Path, labeled: list[Labeled], folder: Path) -> None:
    shutil.copytree(pictures, folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    for name, objects in labeled:
        found = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax>"
            f"<ymax>{y1}</ymax></bndbox></object>"
            for label, x0, y0, x1, y1 in objects
        )
        text = f"<annotation><size><width>{SIZE}</width><height>{SIZE}</height></size>{found}</annotation>"
        (folder / "Annotations" / f"{Path(name).stem}.xml").write_text(text)


def write_coco(pictures: Path, labeled: list[Labeled], folder: Path) -> None:
    shutil.copytree(pictures, folder / "photos")
    ids = {label: 10 * i for i, label in enumerate(SHAPES_CLASSES)}
    images = [{"id": i, "file_name": x.name, "width": SIZE, "height": SIZE} for i, x in enumerate(labeled)]
    boxes = [(i, *found) for i, x in enumerate(labeled) for found in x.objects]
    annotations = [
        {"id": i, "image_id": image, "category_id": ids[label], "bbox": [x0, y0, x1 - x0, y1 - y0]}
        for i, (image, label, x0, y0, x1, y1) in enumerate(boxes)
    ]
    categories = [{"id": i, "name": name} for name, i in ids.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "labels.json").write_text(json.dumps(content))


def write_csv(pictures: Path, labeled: list[Labeled], folder: Path) -> None:
    shutil.copytree(pictures, folder / "pictures")
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_path", "xmin", "ymin", "xmax", "ymax", "label"])
        for name, objects in labeled:
            writer.writerows([name, *box, label] for label, *box in objects)
            if not objects:
                writer.writerow([name, "", "", "", "", ""])


WRITERS = {"yolo": write_yolo, "voc": write_voc, "coco": write_coco, "csv": write_csv}
