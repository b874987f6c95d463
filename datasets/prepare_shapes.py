#!/usr/bin/env python3
"""Generate the `shapes` data set: scenes of circles, rectangles and triangles in COCO format.

    python datasets/prepare_shapes.py
    python datasets/prepare_shapes.py --kind shapes_scales

The same seed makes the same images and annotations on every machine. What is complete already is left as it is.
"""

import argparse
import os
import sys
from pathlib import Path

from sparsercnn.data.shapes import KINDS, SPLITS, prepare_shapes


def main(argv: list[str] | None = None) -> int:
    datasets = Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
    of_kinds = "; ".join(f"{name} {kind.size}, {kind.counts}" for name, kind in KINDS.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"Sizes and images unless asked for: {of_kinds}.",
    )
    parser.add_argument("--kind", choices=KINDS, default="shapes", help="what scenes to make (default: %(default)s)")
    parser.add_argument("--root", type=Path, help=f"folder to write (default: {datasets}/KIND)")
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=int, help=f"images of the split {split}")
    parser.add_argument("--size", type=int, help="width and height in pixels")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other scenes (default: %(default)s)")
    args = parser.parse_args(argv)
    asked = {split: count for split in SPLITS if (count := getattr(args, split)) is not None}
    if args.seed < 0 or min(asked.values(), default=1) < 1 or (args.size is not None and args.size < 32):
        parser.error("--size must be at least 32, --train, --val and --test at least 1, --seed not negative")
    root = args.root or datasets / args.kind
    try:
        written = prepare_shapes(root, {**KINDS[args.kind].counts, **asked}, args.size, args.seed, args.kind)
    except OSError as error:
        print(f"error: cannot write the data set: {error}", file=sys.stderr)
        return 2
    for split, is_new in written.items():
        print(f"{args.kind}_{split}: {'written to' if is_new else 'complete already in'} {root / split}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
