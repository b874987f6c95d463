"""What training logs, sent to an experiment tracker by the tracker's own library, if `TRACKER` asks for one."""

import importlib
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from ..errors import InputError
from .events import WINDOW

TRACKERS = ("", "wandb", "mlflow", "trackio")
"""What `TRACKER` may say."""
PROJECT = "sparsercnn"


class Tracker(EventWriter):
    """Sends each logged value once, smoothed as in `metrics.json`. The run in the tracker begins with the first.

    Args:
        name: the library, one of `TRACKERS`.
        run: name of the run.
        settings: of the run, plain values by name.

    Raises:
        InputError: the library is not installed.
    """

    def __init__(self, name: str, run: str, settings: dict[str, Any]):
        try:
            self._library = importlib.import_module(name)
        except ImportError as error:
            raise InputError(f"TRACKER is {name!r}, which is not installed: pip install {name}") from error
        self._is_mlflow = name == "mlflow"
        self._run, self._settings = run, settings
        self._started = False
        self._last_written = -1

    def write(self) -> None:
        """Send the values of every iteration later than the last that was sent."""
        lines: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(WINDOW).items():
            if iteration > self._last_written:
                lines.setdefault(iteration, {})[name] = float(value)
        if lines and not self._started:
            self._start()
        for iteration in sorted(lines):
            if self._is_mlflow:
                self._library.log_metrics(lines[iteration], step=iteration)
            else:
                self._library.log(lines[iteration], step=iteration)
        self._last_written = max(lines, default=self._last_written)

    def _start(self) -> None:
        self._started = True
        if self._is_mlflow:
            self._library.set_experiment(PROJECT)
            self._library.start_run(run_name=self._run)
            self._library.log_params(self._settings)
        else:
            self._library.init(project=PROJECT, name=self._run, config=self._settings)

    def close(self) -> None:
        if self._started:
            (self._library.end_run if self._is_mlflow else self._library.finish)()


def build_trackers(cfg: CfgNode) -> list[EventWriter]:
    """The tracker that `TRACKER` names, with what decides about a training as its settings; empty for none.

    Raises:
        InputError: see `Tracker`.
    """
    if not cfg.TRACKER:
        return []
    sections = {"MODEL": cfg.MODEL, "SOLVER": cfg.SOLVER, "INPUT": cfg.INPUT}
    settings = {f"{name}.{key}": value for name, node in sections.items() for key, value in _plain(node).items()}
    return [Tracker(cfg.TRACKER, cfg.OUTPUT_DIR, settings)]


def _plain(node: CfgNode) -> dict[str, Any]:
    """The node's own values: whole sub-nodes would be thousands of settings that nobody sets."""
    return {key: value for key, value in node.items() if isinstance(value, str | int | float)}
