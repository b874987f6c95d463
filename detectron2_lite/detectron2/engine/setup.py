"""How a training program starts: its arguments, logging, random seed, metric writers and distributed model."""

from __future__ import annotations

import argparse
import os
import sys

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs) -> nn.Module:
    """`DistributedDataParallel` of the model if there is more than one process, else the model itself.

    Args:
        model: on the device of this process.
        fp16_compression: send gradients in half precision.
        kwargs: for `DistributedDataParallel`.
    """
    if comm.get_world_size() == 1:
        return model
    if "device_ids" not in kwargs and next(model.parameters()).is_cuda:
        kwargs["device_ids"] = [comm.get_local_rank()]
    ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        ddp.register_comm_hook(state=None, hook=fp16_compress_hook)
    return ddp


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The arguments of a detectron2 training program.

    Args:
        epilog: shown after the help; examples of use if None.
    """
    program = sys.argv[0]
    examples = f"""
Examples:

Run on single machine:
    $ {program} --num-gpus 8 --config-file cfg.yaml

Change some config options:
    $ {program} --config-file cfg.yaml MODEL.WEIGHTS /path/to/weight.pth SOLVER.BASE_LR 0.001

Run on multiple machines:
    (machine0)$ {program} --machine-rank 0 --num-machines 2 --dist-url <URL> [--other-flags]
    (machine1)$ {program} --machine-rank 1 --num-machines 2 --dist-url <URL> [--other-flags]
"""
    parser = argparse.ArgumentParser(epilog=epilog or examples, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", metavar="FILE", help="path to config file")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Whether to attempt to resume from the checkpoint directory. "
        "See documentation of `DefaultTrainer.resume_or_load()` for what it means.",
    )
    parser.add_argument("--eval-only", action="store_true", help="perform evaluation only")
    parser.add_argument("--num-gpus", type=int, default=1, help="number of gpus *per machine*")
    parser.add_argument("--num-machines", type=int, default=1, help="total number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="the rank of this machine (unique per machine)")
    # Several users of one machine must not meet on the same port by default.
    user = os.getuid() if sys.platform != "win32" else 1
    port = 2**15 + 2**14 + hash(user) % 2**14
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        help="initialization URL for pytorch distributed backend. See "
        "https://pytorch.org/docs/stable/distributed.html for details.",
    )
    parser.add_argument(
        "opts",
        help='Modify config options at the end of the command, as space-separated "PATH.KEY VALUE" pairs.',
        default=None,
        nargs=argparse.REMAINDER,
    )
    return parser


def default_setup(cfg: CfgNode, args) -> None:
    """What to do at the beginning of a job: logging, the environment and config in the log, the random seed.

    The full config is saved as `config.yaml` in `cfg.OUTPUT_DIR`.

    Args:
        cfg: the full config.
        args: the command line arguments, logged; of them `config_file` and `eval_only` are read if they exist.
    """
    output_dir = cfg.OUTPUT_DIR
    saves = comm.is_main_process() and output_dir
    if saves:
        PathManager.mkdirs(output_dir)
    rank = comm.get_rank()
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    logger = setup_logger(output_dir, distributed_rank=rank)

    logger.info(f"Rank of current process: {rank}. World size: {comm.get_world_size()}")
    logger.info("Environment info:\n" + collect_env_info())
    logger.info("Command line arguments: " + str(args))
    config_file = getattr(args, "config_file", "")
    if config_file != "":
        with PathManager.open(config_file, "r") as f:
            logger.info(f"Contents of args.config_file={config_file}:\n{f.read()}")
    if saves:
        path = os.path.join(output_dir, "config.yaml")
        logger.info(f"Running with full config:\n{cfg.dump()}")
        with PathManager.open(path, "w") as f:
            f.write(cfg.dump())
        logger.info(f"Full config saved to {path}")

    # Different in each process, yet the same in each run.
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if cfg.FLOAT32_PRECISION != "":
        logger.info(f"Set fp32 precision to {cfg.FLOAT32_PRECISION}")
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
    # Its search does not pay off in an evaluation, where every image has another size.
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Writers to the terminal, to `metrics.json` and to TensorBoard.

    Args:
        output_dir: folder of the JSON file and the TensorBoard events.
        max_iter: total number of iterations, for the ETA.
    """
    PathManager.mkdirs(output_dir)
    return [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
        TensorboardXWriter(output_dir),
    ]
