#!/usr/bin/env python3
"""How many of the objects of crowded pictures a detector finds as it was trained, with more proposals, and in tiles.

    python tools/measure_crowd.py --config-file configs/lite0.trees.yaml --proposals 600 --tile 400 \
        MODEL.WEIGHTS output/lite0.trees/model_final.pth

Looks at each picture of DATASETS.TEST in each way, and prints how many objects are found (IoU 0.5, scores over
--threshold), how many detections are wrong, and the time.
"""

import argparse
import sys
import time
from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from tabulate import tabulate

from sparsercnn import load_config
from sparsercnn.data.images import read_image
from sparsercnn.engine import check_model
from sparsercnn.errors import InputError
from sparsercnn.evaluation.matching import match_objects
from sparsercnn.evaluation.results import truth_of
from sparsercnn.predictor import Predictor


def measure(cfg: CfgNode, ways: dict[str, list], threshold: float) -> Iterator[tuple]:
    """A row for each picture and way.

    Args:
        cfg: the config with the weights.
        ways: config options of each way of looking, by name.
        threshold: detections of a higher score count.

    Yields:
        Name of the picture, objects in it, way, objects found, wrong detections, seconds.
    """
    predictors = {}
    for way, options in ways.items():
        changed = cfg.clone()
        changed.merge_from_list(options)
        check_model(changed)
        predictors[way] = Predictor(changed)
    for name in cfg.DATASETS.TEST:
        for record in DatasetCatalog.get(name):
            picture = read_image(record["file_name"], "RGB", cfg.INPUT.MAX_PIXELS)
            objects, crowds = (truth_of(record, is_crowd) for is_crowd in (False, True))
            for way, predictor in predictors.items():
                predictor(picture)  # the first pass over a size sets things up
                start = time.perf_counter()
                found = predictor(picture)
                seconds = time.perf_counter() - start
                matches = match_objects(found[found.scores > threshold], objects, crowds)
                counts = int(matches.is_found.sum()), int(matches.is_wrong.sum())
                yield record["file_name"].rpartition("/")[2], len(objects), way, *counts, seconds


def table(rows: list[tuple]) -> str:
    """The rows of `measure`, found also as a share of the objects."""
    cells = [
        (name, way, f"{found} of {objects} ({100 * found / max(objects, 1):.0f} %)", wrong, f"{seconds:.2f} s")
        for name, objects, way, found, wrong, seconds in rows
    ]
    return tabulate(cells, headers=["picture", "way", "found", "wrong", "time"], tablefmt="pipe")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path to config file")
    parser.add_argument("--proposals", type=int, default=600, help="more proposals (default: %(default)s)")
    parser.add_argument("--tile", type=int, default=640, help="side of tiles in pixels (default: %(default)s)")
    parser.add_argument("--threshold", type=float, default=0.3, help="lowest score that counts (default: %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config options")
    args = parser.parse_args(argv)
    try:
        cfg = load_config(args.config_file, args.opts)
        ways = {
            f"{cfg.MODEL.SparseRCNN.NUM_PROPOSALS} proposals": [],
            f"{args.proposals} proposals": ["TEST.NUM_PROPOSALS", args.proposals],
            f"tiles of {args.tile}": ["TEST.TILE_SIZE", args.tile],
        }
        print(table(list(measure(cfg, ways, args.threshold))))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
