#!/usr/bin/env python3
"""Generate the `shapes` data set: scenes of circles, rectangles and triangles in COCO format.

    python datasets/prepare_shapes.py

The same seed makes the same images and annotations on every machine. What is complete already is left as it is.
"""

import argparse
import os
import sys
from pathlib import Path

from sparsercnn.data.shapes import prepare_shapes


def main(argv: list[str] | None = None) -> int:
    root = Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))) / "shapes"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=root, help="folder to write (default: %(default)s)")
    parser.add_argument("--train", type=int, default=400, help="training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=100, help="validation images (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="width and height in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other scenes (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.size < 32 or args.train < 1 or args.val < 1 or args.seed < 0:
        parser.error("--size must be at least 32, --train and --val at least 1, --seed not negative")
    try:
        written = prepare_shapes(args.root, {"train": args.train, "val": args.val}, args.size, args.seed)
    except OSError as error:
        print(f"error: cannot write the data set: {error}", file=sys.stderr)
        return 2
    for split, is_new in written.items():
        print(f"shapes_{split}: {'written to' if is_new else 'complete already in'} {args.root / split}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
