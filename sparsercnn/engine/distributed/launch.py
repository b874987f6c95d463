"""Start the processes of one run: by ourselves, or as one of those that torchrun started."""

import argparse
import multiprocessing
import os
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from detectron2.engine import default_argument_parser

from ...errors import InputError
from ...processes import describe_loss, is_lost_connection, joined_processes
from ..interrupt import Stopped
from .machines import Machines, address
from .ranks import ProcessFailedError, Rank, Ranks


def launch(main: Callable[..., None], args: argparse.Namespace, main_args: tuple, timeout: timedelta) -> None:
    """Run `main(*main_args)` in every process of the run that the arguments, or torchrun, describe.

    When a process fails, the others end within a minute, and its error is the one that is raised.

    Args:
        main: what every process does; a function of a module, with arguments that can be pickled.
        args: of detectron2's `default_argument_parser`. Without GPUs, `num_gpus` processes share the CPU.
        main_args: arguments of `main`.
        timeout: how long processes wait for one that does not get on, and machines for one that does not come.

    Raises:
        InputError: the arguments cannot be, or a process raised one.
        ProcessFailedError: a process failed in another way, was killed, or stands still.
        Stopped: all processes were asked to stop, and have.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        return _run_under_torchrun(main, main_args, timeout)
    if args.num_gpus * args.num_machines == 1:
        return main(*main_args)
    alone = args.num_machines == 1 and args.dist_url in ("auto", default_argument_parser().get_default("dist_url"))
    url = None if alone else args.dist_url
    machines = Machines(url, args.num_machines, args.machine_rank, args.num_gpus, timeout)
    processes, first = args.num_gpus * args.num_machines, args.num_gpus * args.machine_rank
    start_method = multiprocessing.get_start_method()
    ranks = [
        Rank(first + i, processes, i, args.num_gpus, machines.host, machines.port, timeout, start_method)
        for i in range(args.num_gpus)
    ]
    try:
        Ranks(ranks, main, main_args, machines).wait()
    except Stopped:
        machines.leave()
        raise
    machines.leave()


def check_launch(args: argparse.Namespace) -> None:
    """Check how many processes a command line asks for, and where machines meet.

    Args:
        args: of detectron2's `default_argument_parser`.

    Raises:
        InputError: the first mistake.
    """
    gpus = torch.cuda.device_count()
    if args.num_gpus < 1 or (gpus and args.num_gpus > gpus):
        available = f", but this machine has {gpus}" if gpus else "; it counts the processes, at least 1"
        raise InputError(f"--num-gpus {args.num_gpus}{available}")
    if args.num_machines < 1:
        raise InputError(f"--num-machines {args.num_machines}; it must be at least 1")
    if not 0 <= args.machine_rank < args.num_machines:
        raise InputError(
            f"--machine-rank {args.machine_rank}, but with --num-machines {args.num_machines} ranks are 0 to "
            f"{args.num_machines - 1}"
        )
    if args.dist_url not in ("auto", default_argument_parser().get_default("dist_url")):
        address(args.dist_url)
    elif args.num_machines > 1:
        raise InputError(
            f"--num-machines {args.num_machines} needs --dist-url tcp://HOST:PORT, of the machine of rank 0"
        )


def _run_under_torchrun(main: Callable[..., None], main_args: tuple, timeout: timedelta) -> None:
    local_rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    try:
        store, rank, processes = next(dist.rendezvous("env://", timeout=timeout))
        # torchrun may start processes again with the store of those that failed.
        store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
        with joined_processes(store, rank, processes, local_processes, timeout):
            main(*main_args)
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise ProcessFailedError(f"process {os.environ['RANK']} {describe_loss(error, timeout)}") from error
