#!/usr/bin/env python3
"""Train, resume and evaluate Sparse R-CNN.

    python train_net.py --config-file configs/quickstart.yaml
    python train_net.py --config-file configs/quickstart.yaml --resume
    python train_net.py --config-file configs/quickstart.yaml --eval-only MODEL.WEIGHTS model_final.pth
    python train_net.py --config-file configs/quickstart.yaml --num-gpus 2 SOLVER.BASE_LR 0.0001

`--num-gpus` counts processes: on a machine without GPUs they share the CPU. `torchrun` works too.
"""

import argparse
import os
import sys

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from sparsercnn import load_config
from sparsercnn.data import register_config_datasets
from sparsercnn.engine import SparseRCNNCheckpointer, Trainer, check_config
from sparsercnn.engine.launch import launch
from sparsercnn.errors import InputError


def read_config(args: argparse.Namespace) -> CfgNode:
    """The checked config of this run."""
    cfg = load_config(args.config_file, args.opts)
    processes = int(os.getenv("WORLD_SIZE", args.num_gpus * args.num_machines))  # torchrun sets the variable
    check_config(cfg, args.resume, args.eval_only, processes)
    cfg.freeze()
    return cfg


def run(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Train or evaluate, in each process."""
    default_setup(cfg, args)
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
    args = default_argument_parser(__doc__).parse_args(argv)
    try:
        cfg = read_config(args)
        launch(run, args, (args, cfg))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. Training that had begun continues with the same command and --resume.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
