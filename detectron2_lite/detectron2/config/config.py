"""`CfgNode`, the tree of settings, and `@configurable`, which lets a class be built from one."""

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

from fvcore.common.config import CfgNode as _CfgNode

from detectron2.utils.file_io import PathManager

__all__ = ["CfgNode", "configurable", "get_cfg", "global_cfg", "set_global_cfg"]


class CfgNode(_CfgNode):
    """fvcore's `CfgNode` (attribute access, `_BASE_`, freezing, type-checked merging) that knows versions of files.

    A file may state its `VERSION`. An older one is upgraded, a newer one is refused.
    """

    @classmethod
    def _open_cfg(cls, filename: str):
        return PathManager.open(filename, "r")

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        """Merge a YAML file, and first the files its `_BASE_` names (relative to the file), into this config.

        Args:
            cfg_filename: path or URL of the file.
            allow_unsafe: whether YAML tags that run code are accepted. Read files of strangers before merging them.

        Raises:
            AssertionError: the file does not exist, or its version is newer than this config's.
            KeyError: a key that this config does not have.
            ValueError: a value of another type than the default.
        """
        assert PathManager.isfile(cfg_filename), f"Config file '{cfg_filename}' does not exist!"
        loaded = type(self)(self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe))

        # imported late: these modules make CfgNodes themselves
        from .compat import downgrade_config, guess_version, upgrade_config
        from .defaults import _C

        latest = _C.VERSION
        assert latest == self.VERSION, "CfgNode.merge_from_file is only allowed on a config object of latest version!"
        version = loaded.get("VERSION", None)
        if version is None:
            version = guess_version(loaded, cfg_filename)
        assert version <= latest, f"Cannot merge a v{version} config into a v{latest} config."
        if version == latest:
            self.merge_from_other_cfg(loaded)
            return
        logging.getLogger(__name__).warning(
            f"Loading an old v{version} config file '{cfg_filename}' by automatically upgrading to v{latest}. "
            "See docs/CHANGELOG.md for instructions to update your files."
        )
        # A file states some keys only, so the others are made to have the names of its version first.
        old = downgrade_config(self, version)
        old.merge_from_other_cfg(loaded)
        upgraded = upgrade_config(old)
        self.clear()
        self.update(upgraded)

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """YAML text of the config with sorted keys; arguments go to `yaml.safe_dump`."""
        return super().dump(*args, **kwargs)


global_cfg = CfgNode()


def get_cfg() -> CfgNode:
    """A fresh, modifiable copy of the default config."""
    from .defaults import _C

    return _C.clone()


def set_global_cfg(cfg: CfgNode) -> None:
    """Make `detectron2.config.global_cfg` hold the keys of `cfg`.

    For code that cannot be given a config in any other way. Prefer an explicit argument.
    """
    global global_cfg
    global_cfg.clear()
    global_cfg.update(cfg)


def configurable(init_func: Callable | None = None, *, from_config: Callable | None = None) -> Callable:
    """Let a class or a function be called with a config instead of its explicit arguments.

    On `__init__`, the class must have a classmethod `from_config(cls, cfg, ...)` that returns the explicit arguments as
    a dict; on a function, that translator is given as `@configurable(from_config=...)`. A call whose first positional
    argument, or whose `cfg` keyword, is a config is translated; further arguments go to `from_config` as far as it
    names them, and override its result otherwise. Any other call is passed on untouched.

    ::

        class Head(nn.Module):
            @configurable
            def __init__(self, num_classes: int): ...

            @classmethod
            def from_config(cls, cfg):
                return {"num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES}

        Head(num_classes=3), Head(cfg), Head(cfg, num_classes=3)

    Raises:
        AttributeError, TypeError: when such an object is made from a class without a proper `from_config`.
    """
    if init_func is not None:
        assert inspect.isfunction(init_func) and from_config is None and init_func.__name__ == "__init__", (
            "Incorrect use of @configurable. Check API documentation for examples."
        )
        return _configurable_init(init_func)
    if from_config is None:
        return configurable  # "@configurable()" means the same as "@configurable"
    assert inspect.isfunction(from_config), "from_config argument of configurable must be a function!"
    return functools.partial(_configurable_function, from_config=from_config)


def _configurable_init(init_func: Callable) -> Callable:
    @functools.wraps(init_func)
    def wrapped(self, *args, **kwargs):
        try:
            translator = type(self).from_config
        except AttributeError as e:
            raise AttributeError("Class with @configurable must have a 'from_config' classmethod.") from e
        if not inspect.ismethod(translator):
            raise TypeError("Class with @configurable must have a 'from_config' classmethod.")
        if _called_with_cfg(*args, **kwargs):
            init_func(self, **_explicit_args(translator, *args, **kwargs))
        else:
            init_func(self, *args, **kwargs)

    return wrapped


def _configurable_function(function: Callable, from_config: Callable) -> Callable:
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        if _called_with_cfg(*args, **kwargs):
            return function(**_explicit_args(from_config, *args, **kwargs))
        return function(*args, **kwargs)

    wrapped.from_config = from_config
    return wrapped


def _called_with_cfg(*args, **kwargs) -> bool:
    return (len(args) > 0 and isinstance(args[0], _CfgNode)) or isinstance(kwargs.get("cfg"), _CfgNode)


def _explicit_args(from_config: Callable, *args, **kwargs) -> dict[str, Any]:
    """What `from_config` makes of the arguments, updated by the keywords that it does not name."""
    parameters = inspect.signature(from_config).parameters
    if next(iter(parameters), None) != "cfg":
        name = from_config.__name__ if inspect.isfunction(from_config) else f"{from_config.__self__}.from_config"
        raise TypeError(f"{name} must take 'cfg' as the first argument!")
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values()):
        return from_config(*args, **kwargs)
    named = {key: value for key, value in kwargs.items() if key in parameters}
    explicit = from_config(*args, **named)
    explicit.update({key: value for key, value in kwargs.items() if key not in parameters})
    return explicit
