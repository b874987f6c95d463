"""A training of seconds with the real program: its command line, and what it left."""

import json
from pathlib import Path

import train_net

ROOT = Path(__file__).parent.parent
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
TINY = """
MODEL.DEVICE cpu MODEL.RESNETS.OUT_FEATURES ['res2','res3'] MODEL.NECK.IN_FEATURES ['res2','res3']
MODEL.ROI_HEADS.IN_FEATURES ['p2','p3'] MODEL.NECK.OUT_CHANNELS 16 MODEL.SparseRCNN.HIDDEN_DIM 16
MODEL.SparseRCNN.NUM_HEADS 2 MODEL.SparseRCNN.NUM_PROPOSALS 8 MODEL.SparseRCNN.DIM_FEEDFORWARD 16
MODEL.SparseRCNN.DIM_DYNAMIC 8 MODEL.SparseRCNN.PROPOSALS image
SOLVER.IMS_PER_BATCH 2 SOLVER.WARMUP_ITERS 1 DATALOADER.NUM_WORKERS 0 DATASETS.TRAIN ('tiny',) DATASETS.TEST ('tiny',)
INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64
""".split()


def run(*options, flags=()):
    return train_net.main(["--config-file", QUICKSTART, *flags, *TINY, *map(str, options)])


def read_results(output):
    return json.loads((output / "inference" / "tiny" / "metrics.json").read_text())


def error_of(capsys, *options, flags=()):
    assert run(*options, flags=flags) == 2
    message = capsys.readouterr().err
    errors = [line for line in message.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in message
    return errors[0]
