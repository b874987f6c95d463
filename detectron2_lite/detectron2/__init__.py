"""A pure-Python subset of the detectron2 API for bounding-box detection."""

__version__ = "0.6+lite"
