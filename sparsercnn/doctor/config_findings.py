"""What can be told from a config alone: values that are allowed, but with which hardly anything is learned."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from detectron2.config import CfgNode

from ..engine import check_model
from ..errors import InputError
from .finding import Finding

# A sparse head of the published width, or one of the small ones that learn faster.
WIDE = 256
# Fewer iterations than this many times what the average of the weights looks back over, and it holds the beginning.
EMA_SPANS = 3
# A prior far from the share of proposals that are objects floods the first iterations with loss.
PRIORS = (1e-4, 0.1)
HIGHEST_SCORE_THRESHOLD = 0.2
# Sizes of pictures in training and in tests differ by less.
SIZE_RATIO = 1.6


@dataclass(frozen=True)
class Rate:
    """Learning rates with which a kind of training is known to work.

    Attributes:
        applies: to which configs.
        per_image: the rate, divided by the images of a step, with which it was tuned.
        lowest, highest: factors of it that still work.
    """

    applies: Callable[[CfgNode], bool]
    per_image: float
    lowest: float
    highest: float


def _is_sparse(cfg: CfgNode) -> bool:
    return cfg.MODEL.META_ARCHITECTURE == "SparseRCNN"


# From the configs that come with the project: 0.02 for 16 images and 0.16 for 128 with SGD; 0.000025 for 16 with AdamW
# and the published width, 0.0001 for 4 at the highest; 0.0003 for 16 to 0.0012 for 4 with the small models.
RATES = (
    Rate(lambda cfg: cfg.SOLVER.OPTIMIZER == "SGD", 0.02 / 16, 1 / 8, 4),
    Rate(lambda cfg: _is_sparse(cfg) and cfg.MODEL.SparseRCNN.HIDDEN_DIM >= WIDE, 0.000025 / 16, 1 / 10, 32),
    Rate(lambda cfg: True, 0.0005 / 4, 1 / 16, 4),
)


def config_findings(cfg: CfgNode) -> list[Finding]:
    """All that is wrong with a config, whatever the data.

    Args:
        cfg: as `load_config` returns it.
    """
    try:
        check_model(cfg, with_weights=False)
    except InputError as error:
        return [Finding("config", str(error), "the key that the line names")]
    return values_findings(cfg)


def values_findings(cfg: CfgNode) -> list[Finding]:
    """What of the values of a config, of which a model can be built, hardly anything is learned with.

    Args:
        cfg: as `load_config` returns it.
    """
    parts = (_learning_rate, _schedule, _normalization, _pretrained, _head, _sizes, _data_sets)
    return [finding for part in parts for finding in part(cfg)]


def _learning_rate(cfg: CfgNode) -> Iterator[Finding]:
    images = cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATE
    rate = next(rate for rate in RATES if rate.applies(cfg))
    factor = cfg.SOLVER.BASE_LR / images / rate.per_image
    if not rate.lowest <= factor <= rate.highest:
        good = float(f"{rate.per_image * images:.2g}")
        how = f"{factor:.0f} times" if factor > 1 else f"1/{1 / factor:.0f} of"
        yield Finding(
            "learning rate",
            f"{cfg.SOLVER.BASE_LR:g} is {how} what works with {cfg.SOLVER.OPTIMIZER} and {images} images a step",
            f"SOLVER.BASE_LR {good:g}",
        )
    if _is_sparse(cfg) and not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        yield Finding(
            "gradients",
            "they are not clipped; the set loss has steps that throw the model back to its beginning",
            "SOLVER.CLIP_GRADIENTS.ENABLED True SOLVER.CLIP_GRADIENTS.CLIP_TYPE full_model",
        )


def _schedule(cfg: CfgNode) -> Iterator[Finding]:
    solver = cfg.SOLVER
    if solver.EMA_DECAY and 1 / (1 - solver.EMA_DECAY) * EMA_SPANS > solver.MAX_ITER:
        span = 1 / (1 - solver.EMA_DECAY)
        decay = round(1 - 20 / solver.MAX_ITER, 4) if solver.MAX_ITER > 40 else 0.0
        yield Finding(
            "average of the weights",
            f"it looks back over {span:.0f} iterations of {solver.MAX_ITER}: it holds the random start",
            f"SOLVER.EMA_DECAY {decay}",
        )
    if solver.WARMUP_ITERS >= solver.MAX_ITER / 2:
        yield Finding(
            "warm-up",
            f"it takes {solver.WARMUP_ITERS} of {solver.MAX_ITER} iterations, the learning rate is hardly reached",
            f"SOLVER.WARMUP_ITERS {max(1, solver.MAX_ITER // 10)}",
        )
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and solver.STEPS and min(solver.STEPS) < solver.MAX_ITER / 4:
        yield Finding(
            "schedule",
            f"the learning rate falls at {min(solver.STEPS)} of {solver.MAX_ITER} iterations, before much is learned",
            f"SOLVER.STEPS ({int(0.78 * solver.MAX_ITER)}, {int(0.93 * solver.MAX_ITER)})",
        )


def _normalization(cfg: CfgNode) -> Iterator[Finding]:
    mean, order = list(cfg.MODEL.PIXEL_MEAN), cfg.INPUT.FORMAT
    if max(map(abs, mean)) <= 1:
        yield Finding(
            "normalization",
            f"the mean is {mean}, as of pixels from 0 to 1; here they go from 0 to 255",
            f"MODEL.PIXEL_MEAN {[round(255 * value, 3) for value in mean]}, and PIXEL_STD likewise",
        )
    # Of photos red is brighter than blue; a data set's own mean may be otherwise, but not by these numbers.
    photo = [103.53, 116.28, 123.675]
    backwards = {"RGB": photo, "BGR": photo[::-1]}.get(order)
    if backwards and all(abs(a - b) < 2 for a, b in zip(mean, backwards, strict=False)):
        yield Finding(
            "channel order",
            f"INPUT.FORMAT is {order}, but MODEL.PIXEL_MEAN {mean} has the other order",
            f"MODEL.PIXEL_MEAN {mean[::-1]} MODEL.PIXEL_STD {list(cfg.MODEL.PIXEL_STD)[::-1]}",
        )


def _pretrained(cfg: CfgNode) -> Iterator[Finding]:
    """ImageNet weights want the pixels and the ResNet that they were trained with."""
    weights, std = cfg.MODEL.WEIGHTS, max(cfg.MODEL.PIXEL_STD)
    wanted = {"ImageNetPretrained/torchvision": ("RGB", False, 57.0), "ImageNetPretrained/MSRA": ("BGR", True, 1.0)}
    for name, (order, stride_in_1x1, deviation) in wanted.items():
        if name not in weights:
            continue
        if cfg.INPUT.FORMAT != order:
            problem = f"INPUT.FORMAT is {cfg.INPUT.FORMAT}, but {weights} was trained on {order} pixels"
            yield Finding("channel order", problem, f"INPUT.FORMAT {order}, with the mean in that order")
        if not deviation / 3 < std < 3 * deviation:
            good = "[58.395, 57.12, 57.375]" if deviation > 1 else "[1.0, 1.0, 1.0]"
            problem = f"the standard deviation is {list(cfg.MODEL.PIXEL_STD)}, but {weights} was trained with {good}"
            yield Finding("normalization", problem, f"MODEL.PIXEL_STD {good}")
        if cfg.MODEL.RESNETS.STRIDE_IN_1X1 != stride_in_1x1:
            problem = f"{weights} has its strides in the {'1×1' if stride_in_1x1 else '3×3'} convolutions"
            yield Finding("ResNet", problem, f"MODEL.RESNETS.STRIDE_IN_1X1 {stride_in_1x1}")


def _head(cfg: CfgNode) -> Iterator[Finding]:
    head = cfg.MODEL.SparseRCNN
    if _is_sparse(cfg) and head.USE_FOCAL and not PRIORS[0] <= head.PRIOR_PROB <= PRIORS[1]:
        problem = f"scores start at {head.PRIOR_PROB:g}, while nearly all proposals are background"
        yield Finding("loss at start", problem, "MODEL.SparseRCNN.PRIOR_PROB 0.01")
    threshold = cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" and threshold > HIGHEST_SCORE_THRESHOLD:
        problem = f"detections below {threshold} are thrown away before AP is computed, which counts them"
        yield Finding("score threshold", problem, "MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.05")


def _sizes(cfg: CfgNode) -> Iterator[Finding]:
    smallest, largest = min(cfg.INPUT.MIN_SIZE_TRAIN), max(cfg.INPUT.MIN_SIZE_TRAIN)
    test = cfg.INPUT.MIN_SIZE_TEST
    if not (smallest and test) or cfg.INPUT.SCALE_JITTER:
        return
    if test > SIZE_RATIO * largest or test < smallest / SIZE_RATIO:
        yield Finding(
            "input size",
            f"it is {smallest} to {largest} pixels in training, but {test} in tests: objects have another size there",
            f"INPUT.MIN_SIZE_TEST {largest} INPUT.MAX_SIZE_TEST {cfg.INPUT.MAX_SIZE_TRAIN}",
        )


def _data_sets(cfg: CfgNode) -> Iterator[Finding]:
    train, test = set(cfg.DATASETS.TRAIN), set(cfg.DATASETS.TEST)
    if test and test <= train:
        problem = f"{', '.join(sorted(test))} is trained on: its AP says nothing about other pictures"
        yield Finding("data sets", problem, "DATASETS.TEST, to a split that is not in DATASETS.TRAIN")
