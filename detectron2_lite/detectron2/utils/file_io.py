"""`PathManager`, which opens local paths, URLs (downloaded once, then cached) and the model zoo's `detectron2://`."""

from iopath.common.file_io import HTTPURLHandler, OneDrivePathHandler, PathHandler
from iopath.common.file_io import PathManager as PathManagerBase

__all__ = ["PathManager", "PathHandler"]

PathManager = PathManagerBase()
"""Detectron2's own manager, separate from fvcore's, so that handlers registered by other libraries do not clash."""


class Detectron2Handler(PathHandler):
    """Reads `detectron2://path` from the server of the official model zoo."""

    PREFIX = "detectron2://"
    S3_DETECTRON2_PREFIX = "https://dl.fbaipublicfiles.com/detectron2/"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, **kwargs) -> str:
        return PathManager.get_local_path(self.S3_DETECTRON2_PREFIX + path[len(self.PREFIX) :], **kwargs)

    def _open(self, path: str, mode: str = "r", **kwargs):
        return PathManager.open(self.S3_DETECTRON2_PREFIX + path[len(self.PREFIX) :], mode, **kwargs)


PathManager.register_handler(HTTPURLHandler())
PathManager.register_handler(OneDrivePathHandler())
PathManager.register_handler(Detectron2Handler())
