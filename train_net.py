#!/usr/bin/env python3
"""Train, resume and evaluate Sparse R-CNN.

    python train_net.py --config-file configs/quickstart.yaml
    python train_net.py --config-file configs/quickstart.yaml --resume
    python train_net.py --config-file configs/quickstart.yaml --eval-only MODEL.WEIGHTS model_final.pth
    python train_net.py --config-file configs/quickstart.yaml --num-gpus 2 SOLVER.BASE_LR 0.0001

`--num-gpus` counts processes: on a machine without GPUs they share the CPU. `torchrun` works too; processes that it
starts again resume.

A training that was interrupted, in whatever way, continues with the same command and --resume, and ends as if nothing
had happened. State comes from the checkpoint, settings from the command: a changed learning rate or schedule applies
from there on, and the log names what changed. Without --resume, a folder that holds a run is left alone.

Exit status: 0 done; 2 a mistake or a training that cannot go on, with one line that says why; 1 a process failed or was
killed; 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP, with a checkpoint after the iteration that was running. A
second signal stops at once.
"""

import argparse
import contextlib
import logging
import os
import sys
from datetime import timedelta

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from sparsercnn import load_config
from sparsercnn.data import register_config_datasets
from sparsercnn.engine import SparseRCNNCheckpointer, Trainer, check_config
from sparsercnn.engine.distributed.launch import check_launch, launch
from sparsercnn.engine.distributed.ranks import ProcessFailedError
from sparsercnn.engine.interrupt import Stopped, forward_signals
from sparsercnn.engine.run_folder import changed_settings, check_run_folder, only_training, remove_run
from sparsercnn.engine.temporary import temporary_folder
from sparsercnn.errors import InputError
from sparsercnn.randomness import compute_deterministically


def read_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; processes that torchrun starts again resume the run that they began."""
    parser = default_argument_parser(__doc__)
    parser.add_argument("--overwrite", action="store_true", help="remove the run that OUTPUT_DIR holds, and start anew")
    args = parser.parse_args(argv)
    if int(os.getenv("TORCHELASTIC_RESTART_COUNT", 0)) and not args.eval_only:
        args.resume, args.overwrite = True, False
    return args


def read_config(args: argparse.Namespace) -> CfgNode:
    """The checked config of this run."""
    check_launch(args)
    cfg = load_config(args.config_file, args.opts)
    processes = int(os.getenv("WORLD_SIZE", args.num_gpus * args.num_machines))  # torchrun sets the variable
    if args.eval_only and args.overwrite:
        raise InputError("--eval-only overwrites no run: leave --overwrite out")
    if not args.eval_only:
        check_run_folder(cfg, args.resume, args.overwrite)
    check_config(cfg, args.resume, args.eval_only, processes)
    cfg.freeze()
    return cfg


def set_up(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Start log and config.yaml: of a training in its folder, of an evaluation beside its results."""
    if args.eval_only:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "inference")
    elif args.overwrite and comm.is_main_process():
        remove_run(cfg.OUTPUT_DIR)
    comm.synchronize()
    changes = changed_settings(cfg) if args.resume and not args.eval_only else []
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="sparsercnn")
    for change in changes:
        logging.getLogger("sparsercnn").warning(f"changed since the run was started or resumed last: {change}")


def run(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Train or evaluate, in each process."""
    alone = comm.is_main_process() and not args.eval_only
    with only_training(cfg.OUTPUT_DIR) if alone else contextlib.nullcontext():
        train_or_evaluate(args, cfg)


def train_or_evaluate(args: argparse.Namespace, cfg: CfgNode) -> None:
    """The same, once nobody else trains in OUTPUT_DIR."""
    set_up(args, cfg)
    if cfg.SOLVER.DETERMINISTIC:
        compute_deterministically()
    register_config_datasets(cfg)  # a spawned process starts without them
    if args.eval_only:
        model = Trainer.build_model(cfg)
        SparseRCNNCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def main(argv: list[str] | None = None) -> int:
    """Do what the command line asks for; returns the exit status."""
    args = read_arguments(argv)
    received: list[int] = []
    try:
        cfg = read_config(args)
        starts_others = args.num_gpus * args.num_machines > 1 and "RANK" not in os.environ
        with forward_signals() if starts_others else contextlib.nullcontext(received) as received:
            with temporary_folder(cfg.OUTPUT_DIR):
                launch(run, args, (args, cfg), timedelta(seconds=cfg.DISTRIBUTED.TIMEOUT))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ProcessFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        code = stop.code if isinstance(stop, Stopped) else 130
        return stopped(128 + received[0] if received else code)
    return 0


def stopped(code: int) -> int:
    print("\nStopped. Training that had begun continues with the same command and --resume.", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
