"""Processes that start in no time: forked from one that has imported the programs, which takes seconds."""

import multiprocessing
import os
import sys
from multiprocessing.context import BaseContext


def forkserver() -> BaseContext:
    """A context whose processes find everything imported, and nothing else of this one, as after a spawn."""
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_net", "necks", "torch.utils.tensorboard", "faster_coco_eval", "pytest"])
    return context
