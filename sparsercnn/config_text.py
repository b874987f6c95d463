"""Checks of config files before they are merged: a stranger's file can be read without harm, a mistake has a line."""

import os

import yaml

from .errors import InputError, one_line

BASE = "_BASE_"
# A complete config has 10 kB.
LARGEST_FILE = 2**16
# Values that aliases and merge keys may multiply a file to; a complete config has 500.
LARGEST_CONFIG = 10_000
# What plain YAML consists of without tags, and lists that say so. Others make Python objects, or values of no config.
TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge")}
KEY_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "merge")}


def check_config_text(path: str) -> None:
    """Check a YAML file and, one after the other, the files that its `_BASE_` leads to.

    Nothing in them is run, fetched or multiplied: tags for Python objects, `_BASE_` on other machines, and aliases that
    stand for millions of values are refused.

    Raises:
        InputError: a file is missing, too large, not YAML, no mapping, names a key twice, or leads back to itself.
    """
    seen: list[str] = []
    while path:
        if os.path.realpath(path) in seen:
            raise InputError(f"the {BASE} of {one_line(path)} leads back to the file itself")
        seen.append(os.path.realpath(path))
        root = _compose(path)
        if not isinstance(root, yaml.MappingNode):
            raise InputError(f"the config in {one_line(path)} must be a mapping of keys to values")
        _NodeCheck(path).count(root)
        path = _base_of(root, path)


def _compose(path: str) -> yaml.Node | None:
    """The tree that a file describes, aliases not yet multiplied."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(LARGEST_FILE + 1)
        if len(text) > LARGEST_FILE:
            raise InputError(f"{one_line(path)} has more than {LARGEST_FILE} characters, which no config has")
        return yaml.SafeLoader(text).get_single_node()
    except OSError as error:
        raise InputError(f"the config in {one_line(path)} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the config in {one_line(path)} is not text in UTF-8: {error}") from error
    except RecursionError as error:
        raise InputError(f"the config in {one_line(path)} is nested too deeply") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = one_line(" ".join(str(getattr(error, "problem", error)).split()))
        raise InputError(f"malformed YAML in {one_line(path)}{line}: {problem}") from error


def _base_of(root: yaml.MappingNode, path: str) -> str:
    """The path that `_BASE_` names, "" if there is none."""
    base = next((value for key, value in root.value if key.value == BASE), None)
    if base is None:
        return ""
    if not isinstance(base, yaml.ScalarNode):
        raise InputError(f"{BASE} in {one_line(path)} must be the name of one file")
    if "://" in base.value:
        raise InputError(f"{BASE} in {one_line(path)} is {base.value!r}; it must be a file on this machine")
    target = os.path.join(os.path.dirname(path), os.path.expanduser(base.value))
    if not os.path.isfile(target):
        raise InputError(f"{one_line(target)}, the {BASE} in {one_line(path)}, does not exist")
    return target


class _NodeCheck:
    """Checks the values of one file; messages name it and the line."""

    def __init__(self, path: str):
        self.path = path
        self.sizes: dict[int, int] = {}

    def fail(self, node: yaml.Node, problem: str) -> InputError:
        return InputError(f"{one_line(self.path)}, line {node.start_mark.line + 1}: {problem}")

    def count(self, node: yaml.Node) -> int:
        """How many values `node` holds when every alias is replaced by what it stands for."""
        if id(node) in self.sizes:
            if not self.sizes[id(node)]:
                raise self.fail(node, "this value holds itself")
            return self.sizes[id(node)]
        if node.tag not in TAGS:
            raise self.fail(node, f"the tag {one_line(node.tag)} makes values that no config has")
        self.sizes[id(node)] = 0  # until it is known
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
            parts = [value for _, value in node.value]
        else:
            parts = node.value if isinstance(node, yaml.SequenceNode) else []
        self.sizes[id(node)] = size = 1 + sum(map(self.count, parts))
        if size > LARGEST_CONFIG:
            raise self.fail(node, f"aliases multiply to more than {LARGEST_CONFIG} values, which no config has")
        return size

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in KEY_TAGS:
                raise self.fail(key, "a key must be a word")
            if key.value in seen:
                raise self.fail(key, f"the key {one_line(key.value)} stands here a second time")
            seen.add(key.value)
