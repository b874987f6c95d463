#!/usr/bin/env python3
"""Make a data set of trees from the air out of the pictures that the Python package `deepforest` brings.

    pip install deepforest --no-deps --target deepforest
    python datasets/prepare_trees.py deepforest

Two of them are large: 1249×1035 pixels with 279 trees and 2299×2472 with 574. `trees_whole.json` names these as they
are; `trees_tiles.json` names tiles of all pictures, 400 pixels wide, to train on. The package is MIT licensed; its
folder is left as it is.
"""

import argparse
import json
import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
from PIL import Image

from sparsercnn.data.images import read_image
from sparsercnn.data.tiles import tiles

TILE, OVERLAP = 400, 0.2
# A tree is in a tile if so much of its area is.
VISIBLE = 0.5
LARGE = 1000  # pixels


def read_boxes(path: Path) -> np.ndarray:
    """(N, 4) xyxy of the trees in a VOC file."""
    sides = ("xmin", "ymin", "xmax", "ymax")
    objects = ET.parse(path).getroot().iter("object")
    return np.array([[float(tree.findtext(f"bndbox/{side}", "nan")) for side in sides] for tree in objects])


def cut(boxes: np.ndarray, tile: tuple[int, int, int, int]) -> np.ndarray:
    """The boxes, (N, 4) xyxy, of which enough is inside a tile, in its pixels and cut at its borders."""
    x0, y0, x1, y1 = tile
    inside = boxes.clip([x0, y0, x0, y0], [x1, y1, x1, y1])
    area, whole = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (inside, boxes))
    return inside[area > VISIBLE * whole] - [x0, y0, x0, y0]


def coco(images: list[tuple[str, tuple[int, int], np.ndarray]]) -> dict:
    """COCO's format of pictures: file name, (height, width) and boxes (N, 4) xyxy each."""
    content: dict = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "tree"}]}
    for number, (name, (height, width), boxes) in enumerate(images, 1):
        content["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        for x0, y0, x1, y1 in boxes.tolist():
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": number, "category_id": 1, **box}
            )
    return content


def main(argv: list[str] | None = None) -> int:
    datasets = Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="folder that pip installed deepforest into")
    parser.add_argument("--root", type=Path, default=datasets / "trees", help="folder to write (default: %(default)s)")
    args = parser.parse_args(argv)
    files = sorted((args.package / "deepforest" / "data").glob("*.xml"))
    if not files:
        print(f"error: {args.package} holds no deepforest/data/*.xml: see --help", file=sys.stderr)
        return 2
    (args.root / "images").mkdir(parents=True, exist_ok=True)
    whole, parts = [], []
    for file in files:
        picture, boxes = read_image(str(file.with_suffix(".png")), "RGB"), read_boxes(file)
        height, width = picture.shape[:2]
        if min(height, width) > LARGE:
            whole.append((f"{file.stem}.png", (height, width), boxes))
            Image.fromarray(picture).save(args.root / "images" / whole[-1][0])
        for tile in tiles(height, width, TILE, OVERLAP):
            x0, y0, x1, y1 = tile
            parts.append((f"{file.stem}_{x0}_{y0}.png", (y1 - y0, x1 - x0), cut(boxes, tile)))
            Image.fromarray(picture[y0:y1, x0:x1]).save(args.root / "images" / parts[-1][0])
    for name, images in (("whole", whole), ("tiles", parts)):
        (args.root / f"trees_{name}.json").write_text(json.dumps(coco(images)))
        print(f"{args.root}/trees_{name}.json: {len(images)} pictures, {sum(len(b) for *_, b in images)} trees")
    return 0


if __name__ == "__main__":
    sys.exit(main())
