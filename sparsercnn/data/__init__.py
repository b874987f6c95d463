"""Data sets, the dataset mapper and the checks of both."""

from . import builtin  # noqa: F401  registers data sets
from .checks import check_datasets
from .custom import register_config_datasets
from .mapper import SparseRCNNDatasetMapper

__all__ = ["SparseRCNNDatasetMapper", "check_datasets", "register_config_datasets"]
