#!/usr/bin/env python3
"""Convert weights of another code base into a checkpoint for a config, and back.

    python tools/convert_weights.py --from torchvision --config-file CONFIG resnet50.pth R-50.pth
    python tools/convert_weights.py --from effdet --config-file configs/efficientdet/d0.yaml IN.pth OUT.pth
    python tools/convert_weights.py --to mmdet model_final.pth OUT.pth
    python tools/convert_weights.py --to sparsercnn --half model_final.pth weights.safetensors

--from writes what MODEL.WEIGHTS takes:

torchvision, timm: a state dict of their ResNets (18, 34, 50, 101, 152), for configs on detectron2's ResNet.
detectron2: an ImageNet model of its zoo (R-50.pkl and the like). MODEL.WEIGHTS takes these as they are, too.
mmdet: a checkpoint of MMDetection's Sparse R-CNN.
effdet: a state dict of the `effdet` package's tf_efficientdet_* models. The files that it publishes are linked in its
README; models for COCO are converted to COCO's 80 classes.

--to reads a checkpoint of this project, the average of its weights where the training kept one, and writes it for the
other code base; of a detector for torchvision, timm and detectron2 the ResNet alone. sparsercnn: the weights alone, as
they are.

The ending of OUT says how it is written: .pth or .safetensors, and for detectron2 .pkl.
"""

import argparse
import os
import pickle
import sys
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import torch
from detectron2.config import CfgNode
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from sparsercnn import load_config
from sparsercnn.conversion import SOURCES, TARGETS
from sparsercnn.conversion.names import COUNTER, some
from sparsercnn.engine import build_model
from sparsercnn.engine.checkpoints.content import as_checkpoint
from sparsercnn.engine.checkpoints.files import read_tensors
from sparsercnn.engine.ema import use_average
from sparsercnn.errors import InputError
from sparsercnn.files import write_whole

# Under which of its entries a training's checkpoint holds the weights, the best first.
ENTRIES = ("state_dict_ema", "state_dict", "model")
# The entry in which programs of other code bases look for the weights; the others take the tensors alone.
ENTRY_OF = {"sparsercnn": "model", "mmdet": "state_dict"}
ENDINGS = (".pth", ".safetensors", ".pkl")


def convert_weights(source: str, config_file: str, path: str, output: str, half: bool = False) -> int:
    """Write a checkpoint for a config and return how many tensors it holds.

    Args:
        source: a key of `SOURCES`.
        config_file: of the model that the weights are for.
        path: of a file with the weights.
        output: path of the checkpoint, {"model": state dict}; it appears only when it is complete.
        half: write float16.

    Raises:
        InputError: a file cannot be read or written, or the weights do not fit the model or its settings.
    """
    cfg = load_config(config_file, ["MODEL.DEVICE", "cpu", "MODEL.TIMM.PRETRAINED", False])
    theirs = read_weights(path)
    ours = build_model(cfg).state_dict()
    kind = SOURCES[source]
    try:
        converted = kind.convert(theirs, ours)
        check_settings(cfg, kind.settings(theirs))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    check_fits(converted, kind.part(ours), f"{path} does not fit {config_file}")
    write_weights(converted, output, "sparsercnn", half)
    return len(converted)


def convert_back(target: str, path: str, output: str, half: bool = False) -> int:
    """Write the model in a checkpoint of this project for another code base and return how many tensors that is.

    Args:
        target: a key of `TARGETS`.
        path: of the checkpoint. Where it holds an average of the weights, that is taken.
        output: path of the file to write; it appears only when it is complete.
        half: write float16.

    Raises:
        InputError: a file cannot be read or written, or the other code base has no such model.
    """
    checkpoint = as_checkpoint(read_existing(path), path, match_endings=False)
    use_average(checkpoint)
    try:
        converted = TARGETS[target](checkpoint["model"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    write_weights(converted, output, target, half)
    return len(converted)


def read_existing(path: str) -> Any:
    """What a file of tensors holds.

    Raises:
        InputError: there is no such file, or no tensors in it.
    """
    if not os.path.isfile(path):
        raise InputError(f"there is no file {path}")
    return read_tensors(path)


def read_weights(path: str) -> dict[str, Tensor]:
    """The state dict in a file, which may be that of a training.

    Raises:
        InputError: there is no such file, or no state dict in it.
    """
    content = read_existing(path)
    for entry in ENTRIES:
        if isinstance(content, dict) and isinstance(content.get(entry), dict):
            content = content[entry]
    if path.endswith(".pkl"):
        content = as_checkpoint(content, path, match_endings=False)["model"]
    if not isinstance(content, dict) or not all(isinstance(x, Tensor) for x in content.values()):
        raise InputError(f"{path} holds no state dict: names of tensors and tensors")
    return content


def check_settings(cfg: CfgNode, settings: Mapping[str, Any]) -> None:
    """Check that a config feeds the weights what they were trained with.

    Raises:
        InputError: the first key that says something else.
    """
    for key, trained in settings.items():
        value = attrgetter(key)(cfg)
        if key.endswith("STRIDE_IN_1X1") and cfg.MODEL.RESNETS.DEPTH < 50:
            continue  # blocks of two 3×3 convolutions
        if (list(value) if isinstance(value, list | tuple) else value) != trained:
            raise InputError(f"these weights were trained with {key} {trained}, but the config says {value}")


def check_fits(converted: Mapping[str, Tensor], ours: Mapping[str, Tensor], what: str) -> None:
    """Check that two state dicts have the same names and shapes; counters of batch norms may be missing.

    Raises:
        InputError: `what`, followed by the first differences.
    """
    differences = [f"{name} is missing" for name in ours if name not in converted and not name.endswith(COUNTER)]
    differences += [f"{name} is not in the model" for name in converted if name not in ours]
    differences += [
        f"{name} has shape {tuple(x.shape)}, not {tuple(ours[name].shape)}"
        for name, x in converted.items()
        if name in ours and x.shape != ours[name].shape
    ]
    if differences:
        raise InputError(f"{what}: {some(differences)}")


def write_weights(state: Mapping[str, Tensor], output: str, target: str, half: bool) -> None:
    """Write weights as the ending of the file says, whole or not at all.

    Args:
        state: the weights.
        output: path that ends in ".safetensors", in ".pkl" for detectron2's zoo, or in ".pth".
        target: whose program reads the file, a key of `TARGETS`.
        half: write float16 where the weights are floating-point numbers.

    Raises:
        InputError: the ending is another, or the file cannot be written there.
    """
    ending = os.path.splitext(output)[1]
    if ending not in ENDINGS or (ending == ".pkl" and target != "detectron2"):
        raise InputError(f"{output} must end in .pth or .safetensors, or with --to detectron2 in .pkl")
    state = {name: _as_written(x, half) for name, x in state.items()}
    try:
        os.makedirs(os.path.dirname(output) or ".", exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error}") from error
    if ending == ".safetensors":
        write_whole(output, lambda file: file.write(safetensors_bytes(state)))
    elif ending == ".pkl":
        arrays = {name: x.numpy() for name, x in state.items()}
        zoo = {"model": arrays, "__author__": "sparsercnn", "matching_heuristics": True}
        write_whole(output, lambda file: pickle.dump(zoo, file))
    else:
        entry = ENTRY_OF.get(target)
        write_whole(output, lambda file: torch.save({entry: state} if entry else state, file))


def _as_written(x: Tensor, half: bool) -> Tensor:
    x = x.half() if half and x.is_floating_point() else x
    return x.contiguous().clone()  # files hold the tensor, not the storage that it is a part of


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument("--from", dest="source", choices=SOURCES, help="where the weights come from")
    direction.add_argument("--to", dest="target", choices=TARGETS, help="whose program is to read the weights")
    parser.add_argument("--config-file", metavar="FILE", help="with --from: config of the model to fill")
    parser.add_argument("--half", action="store_true", help="write float16, half the size")
    parser.add_argument("input", metavar="IN", help="file with the weights")
    parser.add_argument("output", metavar="OUT", help="file to write")
    args = parser.parse_args(argv)
    if bool(args.source) != bool(args.config_file):
        parser.error("--config-file goes with --from, and --from needs it")
    try:
        if args.source:
            count = convert_weights(args.source, args.config_file, args.input, args.output, args.half)
        else:
            count = convert_back(args.target, args.input, args.output, args.half)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    use = "; use it as MODEL.WEIGHTS" if args.source else ""
    print(f"{args.output}: {count} tensors{use}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
