"""Evaluation of a model on a data set by any number of processes; one that is killed continues where it was."""

import logging
from collections.abc import Sequence

from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from ..data.sheltered_loader import ShelteredLoader
from ..processes import report_progress, reporting_progress, wait_for_all
from .outputs import ImageOutput, pack, unpack
from .unfinished import UnfinishedEvaluation

logger = logging.getLogger(__name__)


def evaluate(
    model: nn.Module, loader: DataLoader, evaluator: DatasetEvaluator, unfinished: UnfinishedEvaluation
) -> dict:
    """Run a model on a data set and evaluate what it says; all processes of the run must call this.

    Each image is seen once, by one process. The main process gets all outputs and gives them to its evaluator in the
    order of the data set, so that results do not depend on the number of processes, nor on interruptions.

    Args:
        model: maps a batch to a list of outputs, `Instances` by name, that depend on nothing else.
        loader: of this process's share of the data set, as detectron2's `build_detection_test_loader` makes it.
        evaluator: sees "image_id" of the inputs alone.
        unfinished: where outputs are kept until all is done.

    Returns:
        What `evaluator.evaluate()` returns in the main process, {} in others.
    """
    before = unfinished.read() if comm.is_main_process() else []
    done = comm.all_gather({output.position for output in before})[0]
    positions: Sequence[int] = list(loader.sampler)
    if done:
        size = len(loader.dataset)  # type: ignore[arg-type]  # data sets that are evaluated have a length
        logger.info(f"{len(done)} of {size} images were evaluated before an interruption; going on with the others")
        missing = [i for i in range(size) if i not in done]
        positions = missing[comm.get_rank() :: comm.get_world_size()]
    collector = _Collector(positions, unfinished)
    inference_on_dataset(model, _part(loader, positions), collector)
    wait_for_all()
    gathered = comm.gather(pack(before + collector.outputs))
    evaluator.reset()
    with reporting_progress():
        for output in sorted((o for arrays in gathered for o in unpack(arrays)), key=lambda o: o.position):
            evaluator.process([{"image_id": output.image_id}], [output.to_output()])
        results = evaluator.evaluate()
        wait_for_all()
    unfinished.remove()
    return results or {}


class _Collector(DatasetEvaluator):
    """Takes in outputs for the images at these positions of the data set, in this order."""

    def __init__(self, positions: Sequence[int], unfinished: UnfinishedEvaluation):
        self.positions = positions
        self.unfinished = unfinished
        self.outputs: list[ImageOutput] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        start = len(self.outputs)
        positions = self.positions[start : start + len(inputs)]
        batch = zip(positions, inputs, outputs, strict=True)
        new = [ImageOutput.of(position, x["image_id"], output) for position, x, output in batch]
        self.outputs += new
        self.unfinished.add(new)
        report_progress()


def _part(loader: DataLoader, positions: Sequence[int]) -> DataLoader:
    """A loader like this one, of these images."""
    return ShelteredLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=positions,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
    )
