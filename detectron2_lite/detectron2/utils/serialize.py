"""Pickle what plain pickle cannot, such as lambdas and closures sent to worker processes."""

from typing import Any

import cloudpickle


class PicklableWrapper:
    """Behaves like the wrapped object, and is pickled with cloudpickle."""

    def __init__(self, obj: Any):
        while isinstance(obj, PicklableWrapper):
            obj = obj._obj
        self._obj = obj

    def __reduce__(self):
        return cloudpickle.loads, (cloudpickle.dumps(self._obj),)

    def __call__(self, *args, **kwargs):
        return self._obj(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "_obj":  # not set yet, or never
            raise AttributeError(name)
        return getattr(self._obj, name)
