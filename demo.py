#!/usr/bin/env python3
"""Draw predictions on pictures or a video.

python demo.py --config-file configs/coco128.yaml --input photos/ --output drawn/ --opts MODEL.WEIGHTS model.pth
python demo.py --config-file configs/coco128.yaml --input 'photos/*.jpg' --stages --output drawn/
python demo.py --config-file configs/coco128.yaml --video-input street.mp4 --output drawn.mp4 --color-by level
"""

import argparse
import logging
import re
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from sparsercnn import load_config
from sparsercnn.engine import check_model
from sparsercnn.errors import InputError
from sparsercnn.predictor import Predictor, class_names
from sparsercnn.visualization.drawing import PredictionDrawer
from sparsercnn.visualization.media import (
    Stopped,
    VideoReader,
    VideoWriter,
    find_pictures,
    plan_outputs,
    plan_video_output,
    read_picture,
    show,
    write_picture,
)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line (that of the process if None)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path to config file")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="PATH", help="pictures, folders of pictures, or globs in quotes")
    source.add_argument("--video-input", metavar="FILE", help="a video")
    parser.add_argument("--output", metavar="PATH", help="a file, or a folder that is made where needed")
    parser.add_argument("--show", action="store_true", help="show the results in a window; Esc or q stops")
    parser.add_argument(
        "--confidence-threshold",
        type=_share,
        help="lowest score to draw (default: that of the best F1 after training, if the checkpoint says it, else 0.5)",
    )
    parser.add_argument("--tile", type=int, default=0, metavar="PIXELS", help="look at square tiles of this size")
    parser.add_argument(
        "--overlap", type=_share, help="least share that tiles have in common (default: TEST.TILE_OVERLAP)"
    )
    parser.add_argument("--stages", action="store_true", help="draw one panel per refinement stage")
    parser.add_argument(
        "--color-by", choices=["class", "level"], default="class", help="what box colors mean (default: class)"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config options, last on the line"
    )
    args = parser.parse_args(argv)
    if not (args.output or args.show):
        parser.error("say where the results go: --output PATH, --show, or both")
    return args


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def read_config(args: argparse.Namespace) -> CfgNode:
    """The checked config. The data sets it names need not be there: only their class names are used."""
    tiles = ["TEST.TILE_SIZE", args.tile] if args.tile else []
    tiles += [] if args.overlap is None else ["TEST.TILE_OVERLAP", args.overlap]
    cfg = load_config(args.config_file, [*args.opts, *tiles])
    check_model(cfg)
    if not cfg.MODEL.WEIGHTS:
        logging.getLogger("sparsercnn").warning("MODEL.WEIGHTS is empty: these are predictions of an untrained model.")
    cfg.freeze()
    return cfg


def make_draw(cfg: CfgNode, args: argparse.Namespace) -> Callable[[np.ndarray], np.ndarray]:
    """The function from a picture to the drawn picture, both (H, W, 3) uint8 RGB."""
    levels = tuple(int(re.sub(r"\D", "", name)) for name in cfg.MODEL.ROI_HEADS.IN_FEATURES)
    names = class_names(cfg)
    if names is None:
        logging.getLogger("sparsercnn").warning("Names of the classes are not known: labels show their numbers.")
    predictor = Predictor(cfg)
    threshold = predictor.threshold if args.confidence_threshold is None else args.confidence_threshold
    drawer = PredictionDrawer(names, threshold, args.color_by, levels)
    if (args.stages or args.color_by == "level") and not predictor.has_stages:
        raise InputError(f"--stages and --color-by level: {cfg.MODEL.META_ARCHITECTURE} has no refinement stages")

    if (args.stages or args.color_by == "level") and cfg.TEST.TILE_SIZE:
        raise InputError("--stages and --color-by level show whole pictures: leave tiles out")

    def draw(picture: np.ndarray) -> np.ndarray:
        if args.stages:
            return drawer.draw_stages(picture, predictor.stages(picture))
        if args.color_by == "level":
            return drawer.draw(picture, predictor.stages(picture)[-1])
        return drawer.draw(picture, predictor(picture))

    return draw


def draw_pictures(args: argparse.Namespace, max_pixels: int, make: Callable) -> None:
    """Draw every picture that can be read, with at most `max_pixels`, and report the others.

    Raises:
        InputError: after the rest is done, if any could not be read.
    """
    pictures = find_pictures(args.input)
    outputs = plan_outputs(pictures, args.output)
    draw = make()
    unreadable = 0
    for path, output in tqdm(list(zip(pictures, outputs, strict=True)), unit="picture", disable=len(pictures) == 1):
        try:
            picture = read_picture(path, max_pixels)
        except InputError as error:
            unreadable += 1
            tqdm.write(f"error: {error}", file=sys.stderr)
            continue
        drawn = draw(picture)
        if output:
            write_picture(output, drawn)
        if args.show:
            show(drawn, path.name, wait=True)
    if unreadable:
        raise InputError(f"{unreadable} of {len(pictures)} pictures could not be read (named above)")


def draw_video(args: argparse.Namespace, make: Callable) -> None:
    """Draw a video frame by frame."""
    reader = VideoReader(args.video_input)
    output = plan_video_output(reader.path, args.output)
    draw = make()
    with VideoWriter(output, reader.frames_per_second) as writer:
        for frame in tqdm(reader, total=len(reader), unit="frame"):
            drawn = draw(frame)
            writer.write(drawn)
            if args.show:
                show(drawn, reader.path.name, wait=False)


def main(argv: list[str] | None = None) -> int:
    """Do what the command line asks for; returns the exit status."""
    args = parse_args(argv)
    setup_logger(name="sparsercnn")
    try:
        cfg = read_config(args)
        make = partial(make_draw, cfg, args)
        if args.video_input:
            draw_video(args, make)
        else:
            draw_pictures(args, cfg.INPUT.MAX_PIXELS, make)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (Stopped, KeyboardInterrupt):
        print("Stopped.", file=sys.stderr)
        return 130
    if args.output:
        print(f"Results are in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
