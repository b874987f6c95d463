"""Start the processes of one run: by ourselves, or as one of those that torchrun started."""

import argparse
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2.engine import launch as launch_processes
from detectron2.utils import comm
from torch.multiprocessing import ProcessRaisedException

from ..errors import InputError


def launch(main: Callable[..., None], args: argparse.Namespace, main_args: tuple) -> None:
    """Run `main(*main_args)` in every process of the run that the arguments, or torchrun, describe.

    Args:
        main: what every process does.
        args: of detectron2's `default_argument_parser`. Without GPUs, `num_gpus` processes share the CPU.
        main_args: arguments of `main`.

    Raises:
        InputError: there are fewer GPUs than asked for, or a process of ours raised one.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        return _run_under_torchrun(main, main_args)
    gpus = torch.cuda.device_count()
    if gpus and args.num_gpus > gpus:
        raise InputError(f"--num-gpus {args.num_gpus}, but this machine has {gpus}")
    processes = args.num_gpus, args.num_machines, args.machine_rank
    try:
        launch_processes(main, *processes, dist_url=args.dist_url, args=main_args)
    except ProcessRaisedException as error:
        # What comes back from another process is its printed traceback.
        _, found, message = str(error).rpartition(f"{InputError.__module__}.{InputError.__qualname__}: ")
        if found:
            raise InputError(message.strip()) from error
        raise


def _run_under_torchrun(main: Callable[..., None], main_args: tuple) -> None:
    local_rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])))
    try:
        main(*main_args)
    finally:
        dist.destroy_process_group()
