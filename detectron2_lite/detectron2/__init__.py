"""A pure-Python subset of the detectron2 API for bounding-box detection."""

from .utils.env import setup_environment

setup_environment()

__version__ = "0.6+lite"
