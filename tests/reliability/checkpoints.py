"""Checkpoints damaged at random: `run` counts what is loaded as good, what ends in a trace, and what is found instead.

python -m tests.reliability.checkpoints FOLDER [COUNT]
"""

import logging
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from sparsercnn.engine import SparseRCNNCheckpointer
from sparsercnn.errors import InputError

# (width, layers, batch norm, half precision, optimizer) of the models whose checkpoints are damaged.
KINDS = {
    "small": (4, 1, False, False, torch.optim.SGD),
    "with_statistics": (16, 4, True, False, torch.optim.AdamW),
    "half": (64, 2, False, True, torch.optim.SGD),
    "large": (256, 3, True, False, torch.optim.AdamW),
}
PREVIOUS, NEWEST = "model_0000001", "model_0000003"


class Training:
    """A training's state as detectron2's trainer has it, without data or hooks."""

    def __init__(self, kind: str):
        width, layers, norms, half, optimizer = KINDS[kind]
        parts = [nn.Sequential(nn.Linear(width, width), *[nn.BatchNorm1d(width)] * norms) for _ in range(layers)]
        self.model = nn.Sequential(*parts).to(torch.half if half else torch.float)
        self.optimizer = optimizer(self.model.parameters(), lr=0.1)
        self.iteration = 0

    def step(self) -> None:
        """Two iterations with random gradients."""
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self.iteration += 2

    def state_dict(self) -> dict:
        return {"iteration": self.iteration, "_trainer": {"optimizer": self.optimizer.state_dict()}}

    def load_state_dict(self, state: dict) -> None:
        self.optimizer.load_state_dict(state["_trainer"]["optimizer"])
        self.iteration = state["iteration"]

    def checkpointer(self, folder: Path) -> SparseRCNNCheckpointer:
        """Saves and loads this training."""
        metadata = {"config": "MODEL: {}\n" * 100, "class_names": ["cat", "dog"], "score_threshold": None}
        return SparseRCNNCheckpointer(self.model, str(folder), metadata=metadata, trainer=self)


def run(count: int, seed: int, folder: Path) -> dict[str, int]:
    """Damage the newest of two checkpoints, load it, and resume.

    Args:
        count: files to damage.
        seed: of the damage.
        folder: for the checkpoints.

    Returns:
        how many "files" there were, and how many were "loaded_as_good", ended in "traces", and let resuming find the
        previous checkpoint, bit for bit ("fallback_found").
    """
    logging.disable(logging.WARNING)
    try:
        return _run(count, random.Random(seed), folder)
    finally:
        logging.disable(logging.NOTSET)


def _run(count: int, rng: random.Random, folder: Path) -> dict[str, int]:
    torch.manual_seed(0)
    wholes = {kind: _write_whole(kind, folder / kind) for kind in KINDS}
    counts: Counter[str] = Counter(files=count, loaded_as_good=0, traces=0, fallback_found=0)
    for i in range(count):
        kind = rng.choice(list(KINDS))
        damaged = folder / f"{i:04d}_{kind}"
        shutil.copytree(folder / kind, damaged)
        file = damaged / f"{NEWEST}.pth"
        file.write_bytes(_damaged(file.read_bytes(), rng))
        _change_tag(damaged / "last_checkpoint", rng)
        outcomes = [_load(file, kind), _resume(damaged, kind, wholes[kind])]
        counts.update(outcome for outcome in outcomes if outcome)
        if outcomes != ["", "fallback_found"]:
            print(damaged, *outcomes, file=sys.stderr)
        else:
            shutil.rmtree(damaged)
    return dict(counts)


def _write_whole(kind: str, folder: Path) -> dict:
    """Write two checkpoints; returns the state of the first."""
    folder.mkdir(parents=True)
    training = Training(kind)
    training.step()
    training.checkpointer(folder).save(PREVIOUS, iteration=1)
    state = _state(training)
    training.step()
    training.checkpointer(folder).save(NEWEST, iteration=3)
    return state


def _state(training: Training) -> dict:
    """A copy of all that a checkpoint holds."""
    optimizer = training.optimizer.state_dict()["state"]
    moments = {
        f"{i}.{name}": value
        for i, values in optimizer.items()
        for name, value in values.items()
        if torch.is_tensor(value)
    }
    return {name: value.clone() for name, value in {**training.model.state_dict(), **moments}.items()}


def _damaged(content: bytes, rng: random.Random) -> bytes:
    """The content after one accident, which changed it."""
    changed = content
    while changed == content:
        accident = rng.choice([_flipped, _flipped, _cut, _zeroed, _overwritten])
        changed = bytes(accident(bytearray(content), rng))
    return changed


def _flipped(content: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice([1, 1, 2, 10])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def _cut(content: bytearray, rng: random.Random) -> bytearray:
    return content[: rng.choice([rng.randrange(len(content)), len(content) - rng.randrange(1, 200)])]


def _zeroed(content: bytearray, rng: random.Random) -> bytearray:
    return _overwrite(content, lambda length: bytes(length), rng)


def _overwritten(content: bytearray, rng: random.Random) -> bytearray:
    return _overwrite(content, rng.randbytes, rng)


def _overwrite(content: bytearray, make: Callable[[int], bytes], rng: random.Random) -> bytearray:
    start = rng.randrange(len(content))
    length = min(rng.choice([1, 16, 512, 4096, len(content)]), len(content) - start)
    content[start : start + length] = make(length)
    return content


def _change_tag(tag: Path, rng: random.Random) -> None:
    """Leave the tag, or damage it too."""
    contents = [None, tag.read_bytes(), tag.read_bytes(), b"", b"model_0000009.pth", b"../model.pth", b"\xff\0\xff"]
    content = rng.choice(contents)
    if content is None:
        tag.unlink()
    else:
        tag.write_bytes(content)


def _load(file: Path, kind: str) -> str:
    try:
        Training(kind).checkpointer(file.parent).load(str(file))
    except InputError as error:
        return "" if str(file) in str(error) and "\n" not in str(error) else "traces"
    except Exception:
        return "traces"
    return "loaded_as_good"


def _resume(folder: Path, kind: str, expected: dict) -> str:
    training = Training(kind)
    try:
        training.checkpointer(folder).resume_or_load("", resume=True)
    except Exception:
        return "traces"
    found = _state(training)
    same = found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    return "fallback_found" if same and training.iteration == 2 else "other_checkpoint"


if __name__ == "__main__":
    print(run(int(sys.argv[2]) if sys.argv[2:] else 200, 0, Path(sys.argv[1])))
