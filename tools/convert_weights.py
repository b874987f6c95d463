#!/usr/bin/env python3
"""Convert weights of another code base into a checkpoint for a config.

    python tools/convert_weights.py --from effdet --config-file configs/efficientdet/d0.yaml IN.pth OUT.pth

effdet: a state dict of the `effdet` package's tf_efficientdet_* models. The files that it publishes are linked in its
README; models for COCO are converted to COCO's 80 classes.
"""

import argparse
import os
import sys
from collections.abc import Mapping

import torch
from torch import Tensor

from sparsercnn import load_config
from sparsercnn.conversion import CONVERTERS
from sparsercnn.engine import build_model
from sparsercnn.engine.checkpoints.files import read_tensors
from sparsercnn.errors import InputError
from sparsercnn.files import write_whole

NAMES_SHOWN = 5
# Under which of its entries a training's checkpoint holds the weights, the best first.
ENTRIES = ("state_dict_ema", "state_dict", "model")


def convert_weights(source: str, config_file: str, path: str, output: str) -> int:
    """Write the checkpoint and return how many tensors it holds.

    Args:
        source: a key of `CONVERTERS`.
        config_file: of the model that the weights are for.
        path: of a `.pth` file with the weights.
        output: path of the checkpoint, {"model": state dict}; it appears only when it is complete.

    Raises:
        InputError: a file cannot be read or written, or the weights do not fit the model.
    """
    cfg = load_config(config_file, ["MODEL.DEVICE", "cpu", "MODEL.TIMM.PRETRAINED", False])
    theirs = read_weights(path)
    ours = build_model(cfg).state_dict()
    try:
        converted = CONVERTERS[source](theirs, ours)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    check_fits(converted, ours, f"{path} does not fit {config_file}")
    write_checkpoint(converted, output)
    return len(converted)


def read_weights(path: str) -> dict[str, Tensor]:
    """The state dict in a `.pth` file, which may be that of a training.

    Raises:
        InputError: there is no such file, or no state dict in it.
    """
    if not os.path.isfile(path):
        raise InputError(f"there is no file {path}")
    content = read_tensors(path)
    for entry in ENTRIES:
        if isinstance(content, dict) and isinstance(content.get(entry), dict):
            content = content[entry]
    if not isinstance(content, dict) or not all(isinstance(x, Tensor) for x in content.values()):
        raise InputError(f"{path} holds no state dict: names of tensors and tensors")
    return content


def check_fits(converted: Mapping[str, Tensor], ours: Mapping[str, Tensor], what: str) -> None:
    """Check that two state dicts have the same names and shapes.

    Raises:
        InputError: `what`, followed by the first differences.
    """
    differences = [f"{name} is missing" for name in ours if name not in converted]
    differences += [f"{name} is not in the model" for name in converted if name not in ours]
    differences += [
        f"{name} has shape {tuple(x.shape)}, not {tuple(ours[name].shape)}"
        for name, x in converted.items()
        if name in ours and x.shape != ours[name].shape
    ]
    if differences:
        more = f", and {len(differences) - NAMES_SHOWN} more" if len(differences) > NAMES_SHOWN else ""
        raise InputError(f"{what}: {', '.join(differences[:NAMES_SHOWN])}{more}")


def write_checkpoint(state: Mapping[str, Tensor], output: str) -> None:
    """Write {"model": state}, whole or not at all.

    Raises:
        InputError: it cannot be written there.
    """
    try:
        os.makedirs(os.path.dirname(output) or ".", exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error}") from error
    write_whole(output, lambda file: torch.save({"model": dict(state)}, file))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", required=True, choices=CONVERTERS, help="where the weights come from")
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the model to fill")
    parser.add_argument("input", metavar="IN", help="file with the weights")
    parser.add_argument("output", metavar="OUT", help="checkpoint to write")
    args = parser.parse_args(argv)
    try:
        count = convert_weights(args.source, args.config_file, args.input, args.output)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: {count} tensors; use it as MODEL.WEIGHTS")
    return 0


if __name__ == "__main__":
    sys.exit(main())
