"""Where data sets and what is known about them are looked up by name."""

import copy
import logging
import types
from collections import UserDict
from collections.abc import Callable
from typing import Any

from detectron2.utils.logger import log_first_n

__all__ = ["DatasetCatalog", "MetadataCatalog", "Metadata"]


class _DatasetCatalog(UserDict):
    """Maps a data set's name to the function that loads it as a list of dicts in detectron2's standard format."""

    def register(self, name: str, func: Callable[[], Any]) -> None:
        """Make `func`, a callable without arguments, the loader of data set `name`, which must be new."""
        assert callable(func), "You must register a function with `DatasetCatalog.register`!"
        assert name not in self, f"Dataset '{name}' is already registered!"
        self[name] = func

    def get(self, name: str) -> Any:
        """Call the loader registered under `name` and return what it returns.

        Raises:
            KeyError: no data set has this name; the message lists those there are.
        """
        try:
            load = self[name]
        except KeyError as e:
            available = ", ".join(self)
            raise KeyError(f"Dataset '{name}' is not registered! Available datasets are: {available}") from e
        return load()

    def list(self) -> list[str]:
        return list(self)

    def remove(self, name: str) -> None:
        self.pop(name)

    def __str__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self)})"

    __repr__ = __str__


class Metadata(types.SimpleNamespace):
    """What is known about one data set: class names, colors, file locations, the evaluator to use.

    An attribute can be set once. Setting it again to another value is an error, because two parts of a program
    would then disagree about the same data set.
    """

    name: str = "N/A"

    _RENAMED = {
        "class_names": "thing_classes",
        "dataset_id_to_contiguous_id": "thing_dataset_id_to_contiguous_id",
        "stuff_class_names": "stuff_classes",
    }

    def _current_name(self, key: str) -> str:
        renamed = self._RENAMED[key]
        log_first_n(logging.WARNING, f"Metadata '{key}' was renamed to '{renamed}'!", n=10)
        return renamed

    def __getattr__(self, key: str) -> Any:
        if key in self._RENAMED:
            return getattr(self, self._current_name(key))
        problem = f"Attribute '{key}' does not exist in the metadata of dataset '{self.name}'"
        if len(self.__dict__) > 1:  # more than the name
            raise AttributeError(f"{problem}. Available keys are {self.__dict__.keys()}.")
        raise AttributeError(f"{problem}: metadata is empty.")

    def __setattr__(self, key: str, val: Any) -> None:
        if key in self._RENAMED:
            key = self._current_name(key)
        if hasattr(self, key):
            old = getattr(self, key)
            assert old == val, (
                f"Attribute '{key}' in the metadata of '{self.name}' cannot be set to a different value!\n"
                f"{old} != {val}"
            )
        else:
            super().__setattr__(key, val)

    def as_dict(self) -> dict[str, Any]:
        """All attributes in a new dict; changing the dict does not change the metadata."""
        return copy.copy(self.__dict__)

    def set(self, **kwargs: Any) -> "Metadata":
        """Set several attributes and return self."""
        for key, val in kwargs.items():
            setattr(self, key, val)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute, or `default` where there is none."""
        return getattr(self, key, default)


class _MetadataCatalog(UserDict):
    """Maps a data set's name to its `Metadata`, made on first request."""

    def get(self, name: str) -> Metadata:
        """The one `Metadata` of data set `name`, the same object at every call."""
        assert len(name), "A dataset needs a name"
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> list[str]:
        return list(self)

    def remove(self, name: str) -> None:
        self.pop(name)

    def __str__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self)})"

    __repr__ = __str__


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
