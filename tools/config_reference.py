#!/usr/bin/env python3
"""Write docs/configuration.md: every config key of this project, its default, and what the code says of it.

python tools/config_reference.py            # writes the page
python tools/config_reference.py --check    # exit status 1 if it is not what the code says
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from detectron2.config import CfgNode, get_cfg

import efficientdet.config
import necks.config
import sparsercnn.config
from sparsercnn.config import SPARSERCNN_DEFAULTS, add_keys

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"
ASSIGNMENT = re.compile(r"    (\w+)\.([\w.]+) = ")
# Variables that stand for any node; others are called as the node, in lower case.
ANY_NODE = ("node", "cfg")
LONGEST_VALUE = 70
HEAD = """# Configuration

Every key that this project adds to [detectron2's](https://detectron2.readthedocs.io/en/latest/modules/config.html#yaml-config-references),
with its default. `tools/config_reference.py` writes this page from the comments in
[`sparsercnn/config.py`](../sparsercnn/config.py), [`necks/config.py`](../necks/config.py) and
[`efficientdet/config.py`](../efficientdet/config.py).

A config is a YAML file, or KEY VALUE pairs at the end of a command, which have the last word. How the files of this
project inherit: [configs/README.md](../configs/README.md).
"""
DIFFERENT = """## Defaults of Sparse R-CNN that are not detectron2's

With `MODEL.META_ARCHITECTURE` `SparseRCNN`, where no file says otherwise:

| key | default |
| --- | --- |
"""


def page() -> str:
    """The page as Markdown."""
    cfg = get_cfg()
    sections: dict[str, list[str]] = {}
    for module, add in (
        (sparsercnn.config, add_keys),
        (necks.config, necks.config.add_neck_config),
        (efficientdet.config, efficientdet.config.add_efficientdet_config),
    ):
        for keys, text in _documented(module, _added(cfg, add)):
            node = keys[0].rpartition(".")[0]
            names = "<br>".join(f"`{key.rpartition('.')[2]}` {_shown(_value(cfg, key))}" for key in keys)
            sections.setdefault(node, []).append(f"| {names} | {text} |")
    parts = [HEAD]
    for node, rows in sections.items():
        parts.append("\n".join([f"## `{node}`", "", "| key and default | meaning |", "| --- | --- |", *rows, ""]))
    parts.append(DIFFERENT + "\n".join(f"| `{key}` | {_shown(value)} |" for key, value in SPARSERCNN_DEFAULTS.items()))
    return "\n".join(parts) + "\n"


def _added(cfg: CfgNode, add: Callable[[CfgNode], None]) -> list[str]:
    """The keys that a function adds to `cfg`, in order."""
    before = set(_leaves(cfg))
    add(cfg)
    return [key for key in _leaves(cfg) if key not in before]


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _documented(module: ModuleType, added: list[str]) -> Iterator[tuple[list[str], str]]:
    """Keys that share a comment, and the comment, in the order of the module's source.

    Raises:
        ValueError: a key has no comment, or an assignment could be to several keys.
    """
    missing = set(added)
    comment: list[str] = []
    keys: list[str] = []
    for line in [*inspect.getsource(module).splitlines(), ""]:
        is_comment = line.startswith("    # ")
        assigned = ASSIGNMENT.match(line)
        key = _key(assigned, added) if assigned else ""
        if keys and (is_comment or not line.strip()):
            yield keys, " ".join(comment)
            comment, keys = [], []
        if is_comment:
            comment.append(line.strip(" #"))
        elif key and comment:
            keys.append(key)
            missing.discard(key)
        elif not assigned and not keys:
            comment = []
    if missing:
        raise ValueError(f"{module.__name__} says nothing of {', '.join(sorted(missing))}")


def _key(assigned: re.Match, added: list[str]) -> str:
    """The added key that is assigned to, "" for none, such as a new node."""
    root, chain = assigned.groups()
    wanted = chain if root in ANY_NODE else f"{root.upper()}.{chain}"
    found = [key for key in added if key == wanted or key.endswith(f".{wanted}")]
    if len(found) > 1 and root == "node":
        found = [key for key in found if key.count(".") == 2]
    elif root == "cfg":
        found = [key for key in found if key == chain]
    return found[0] if found else ""


def _value(cfg: CfgNode, key: str) -> object:
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def _shown(value: object) -> str:
    text = repr(value).replace("'", '"')
    return f"`{text}`" if len(text) <= LONGEST_VALUE else f"`{text[:LONGEST_VALUE]}…`"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and say whether the page is up to date")
    args = parser.parse_args(argv)
    text = page()
    if not args.check:
        PAGE.write_text(text)
        print(PAGE)
        return 0
    if PAGE.is_file() and PAGE.read_text() == text:
        return 0
    print("docs/configuration.md is not what the code says: python tools/config_reference.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
