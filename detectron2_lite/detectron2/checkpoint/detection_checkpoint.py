"""`DetectionCheckpointer`: fvcore's checkpointer that also reads the formats of model zoos."""

import logging
import pickle
from typing import Any
from urllib.parse import ParseResult, parse_qs, urlparse

import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from .c2_model_loading import align_and_update_state_dicts


class DetectionCheckpointer(Checkpointer):
    """A checkpointer that also loads

    - `.pkl` files of the detectron2 and Detectron (Caffe2) model zoos, with tensors as numpy arrays,
    - `.pyth` files of pycls,
    - `.pth` files with nothing but a state dict,
    - any of them by URL or `detectron2://`.

    A file that sets `matching_heuristics`, or a path that ends in `?matching_heuristics=True`, has its names matched to
    the model's by their longest common ending, so that a classification backbone can be loaded into a detector.

    These formats are pickles, and unpickling can run code: load only files that you trust.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ):
        """
        Args:
            model: the model; a data-parallel wrapper is taken off.
            save_dir: folder to save to and to resume from.
            save_to_disk: whether this process writes; only the main process by default.
            checkpointables: further objects with `state_dict` and `load_state_dict`, such as optimizer=...
        """
        if save_to_disk is None:
            save_to_disk = comm.is_main_process()
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager
        self._parsed_url_during_load: ParseResult | None = None

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load model and checkpointables from a path or URL; see `fvcore.common.checkpoint.Checkpointer.load`.

        Returns:
            What else the file holds, for example "iteration".
        """
        logging.getLogger(__name__).info(f"[DetectionCheckpointer] Loading from {path} ...")
        if path:
            self._parsed_url_during_load = urlparse(path)
            path = self.path_manager.get_local_path(self._parsed_url_during_load._replace(query="").geturl())
        try:
            return super().load(path, *args, **kwargs)
        finally:
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        """A dict with "model" and perhaps "matching_heuristics", whatever the format of the file."""
        if filename.endswith(".pkl"):
            return self._load_pickle(filename)
        if filename.endswith(".pyth"):
            return self._load_pycls(filename)
        loaded = self._torch_load(filename)
        if "model" not in loaded:
            loaded = {"model": loaded}
        assert self._parsed_url_during_load is not None, "`_load_file` must be called inside `load`"
        queries = parse_qs(self._parsed_url_during_load.query)
        if queries.pop("matching_heuristics", ["False"]) == ["True"]:
            loaded["matching_heuristics"] = True
        if queries:
            raise ValueError(
                f"Unsupported query remaining: {queries}, original filename: {self._parsed_url_during_load.geturl()}"
            )
        return loaded

    def _load_pickle(self, filename: str) -> dict[str, Any]:
        with self.path_manager.open(filename, "rb") as f:
            data = pickle.load(f, encoding="latin1")  # the older files were written by Python 2
        if "model" in data and "__author__" in data:
            self.logger.info(f"Reading a file from '{data['__author__']}'")
            return data
        weights = data.get("blobs", data)
        weights = {name: value for name, value in weights.items() if not name.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}

    def _load_pycls(self, filename: str) -> dict[str, Any]:
        data = self._torch_load(filename)
        assert "model_state" in data, (
            f"Cannot load .pyth file {filename}; pycls checkpoints must contain 'model_state'."
        )
        weights = {k: v for k, v in data["model_state"].items() if not k.endswith("num_batches_tracked")}
        return {"model": weights, "__author__": "pycls", "matching_heuristics": True}

    def _torch_load(self, filename: str) -> dict[str, Any]:
        # a training's state holds more than tensors, which torch would refuse by default
        return torch.load(filename, map_location="cpu", weights_only=False)

    def _load_model(self, checkpoint: dict[str, Any]):
        if checkpoint.pop("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            checkpoint["model"] = align_and_update_state_dicts(
                self.model.state_dict(), checkpoint["model"], c2_conversion=checkpoint.get("__author__") == "Caffe2"
            )
        incompatible = super()._load_model(checkpoint)
        # pixel statistics come from the config, and older models did not save them
        buffers = dict(self.model.named_buffers(recurse=False))
        for name in ("pixel_mean", "pixel_std"):
            if name in buffers and name in incompatible.missing_keys:
                incompatible.missing_keys.remove(name)
        # anchors are computed, and older models did save them
        for name in list(incompatible.unexpected_keys):
            if "anchor_generator.cell_anchors" in name:
                incompatible.unexpected_keys.remove(name)
        return incompatible
