"""Training data: samples in a planned order, loaded by any number of processes with the same result."""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.detection_utils import check_metadata_consistency
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch.utils.data import ConcatDataset, Dataset

from ..errors import InputError, check_choice
from ..randomness import Purpose, random_numbers
from . import order
from .coco_dataset import CocoDataset, is_large, open_for_training
from .mosaic import Mosaic
from .sheltered_loader import ShelteredLoader

SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler")
BAD_IMAGES = ("stop", "skip")
"""What `DATALOADER.BAD_IMAGES` may say."""
REPLACED = "replaced_images"
"""Key of a sample: [file name, what is wrong with it] of each image in whose place it stands."""
# So many in a row are no damaged images, but a disk that is gone.
BAD_IN_A_ROW = 100

Mapper = Callable[[dict], dict]


def training_dataset(cfg: CfgNode) -> Sequence[dict]:
    """The images of `DATASETS.TRAIN` in detectron2's format, without those that nothing can be learned from."""
    names, filter_empty = cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    if cfg.MODEL.LOAD_PROPOSALS or not any(map(is_large, names)):
        files = cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None
        return _in_memory(get_detection_dataset_dicts(names, filter_empty=filter_empty, proposal_files=files))
    parts = [
        open_for_training(name, cfg.OUTPUT_DIR, filter_empty)
        if is_large(name)
        else _in_memory(get_detection_dataset_dicts(name, filter_empty=filter_empty))
        for name in names
    ]
    check_metadata_consistency("thing_classes", names)
    return parts[0] if len(parts) == 1 else cast(Sequence[dict], ConcatDataset(cast(list[Dataset], parts)))


def _in_memory(records: Any) -> Sequence[dict]:
    return cast(Sequence[dict], DatasetFromList(records, copy=False))


def build_training_batches(cfg: CfgNode, mapper: Mapper) -> "TrainingBatches":
    """The batches that this process trains on.

    Args:
        cfg: the config, of which `DATASETS`, `DATALOADER`, `INPUT.MOSAIC` and `SOLVER.IMS_PER_BATCH` are read.
        mapper: makes the model's input of an image's description; must draw random numbers from the global generators
            of `random`, NumPy and torch only.

    Raises:
        InputError: `DATALOADER.SAMPLER_TRAIN` or `BAD_IMAGES` is unknown.
    """
    loader = cfg.DATALOADER
    check_choice("DATALOADER.SAMPLER_TRAIN", loader.SAMPLER_TRAIN, SAMPLERS)
    check_choice("DATALOADER.BAD_IMAGES", loader.BAD_IMAGES, BAD_IMAGES)
    dataset = training_dataset(cfg)
    if cfg.INPUT.MOSAIC:
        mapper = Mosaic(mapper, dataset, cfg.INPUT.MOSAIC)
    return TrainingBatches(
        dataset,
        mapper,
        _passes(cfg, dataset),
        cfg.SOLVER.IMS_PER_BATCH,
        groups=is_wide(dataset) if loader.ASPECT_RATIO_GROUPING else None,
        num_workers=loader.NUM_WORKERS,
        skip_bad_images=loader.BAD_IMAGES == "skip",
        # Only from page-locked memory can a GPU fetch images while it computes.
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),
    )


def _passes(cfg: CfgNode, dataset: Sequence[dict]) -> Callable[[int], order.Epoch]:
    """From the seed of a run to what one pass over the data set is, as `DATALOADER.SAMPLER_TRAIN` says."""
    loader, size = cfg.DATALOADER, len(dataset)
    if loader.SAMPLER_TRAIN == "TrainingSampler":
        return lambda seed: order.shuffled(size)
    if loader.SAMPLER_TRAIN == "RandomSubsetTrainingSampler":
        return lambda seed: order.shuffled_subset(size, loader.RANDOM_SUBSET_RATIO, seed)
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        cast(Any, dataset), loader.REPEAT_THRESHOLD
    )
    return lambda seed: order.repeated(factors)


def is_wide(dataset: Sequence[dict]) -> bytes:
    """For each image 1 if it is wider than high, else 0."""
    if isinstance(dataset, ConcatDataset):
        return b"".join(map(is_wide, cast(list[Sequence[dict]], dataset.datasets)))
    if isinstance(dataset, CocoDataset):
        return dataset.is_wide().tobytes()
    return bytes(dataset[i]["width"] > dataset[i]["height"] for i in range(len(dataset)))


class TrainingBatches:
    """Endless batches of this process: lists of samples, in an order and with pixels that follow from the seed alone.

    The number of workers changes nothing. Nor does the number of processes: together they have the same batches, of
    which process r of w has members r, r + w, r + 2w, … Batches of images of one shape are made of the images of all
    processes together.

    Args:
        dataset: images in detectron2's format.
        mapper: makes the model's input of an image's description. It may draw from the global random generators.
        passes: makes of the seed what a pass over the data set is.
        total_batch_size: images of a batch, over all processes, whose number must divide it.
        groups: for each image which of two groups, 0 or 1, it belongs to, if a batch is to hold one group only.
        num_workers: processes that load for this one; 0 to load in this process.
        skip_bad_images: an image that cannot be read (on which `mapper` raises `InputError`) is replaced by the next
            one of the data set that can; the sample then has `REPLACED`. Otherwise the error is raised.
        pin_memory: copy the images into page-locked memory.

    Attributes:
        seed: of the run.
        start: number of the batch that iterating begins with; that many before it are skipped without reading images.
    """

    def __init__(
        self,
        dataset: Sequence[dict],
        mapper: Mapper,
        passes: Callable[[int], order.Epoch],
        total_batch_size: int,
        *,
        groups: Sequence[int] | None = None,
        num_workers: int = 0,
        skip_bad_images: bool = False,
        pin_memory: bool = False,
    ):
        self.dataset = dataset
        self.mapper = mapper
        self.passes = passes
        self.total_batch_size = total_batch_size
        self.groups = groups
        self.num_workers = num_workers
        self.skip_bad_images = skip_bad_images
        self.pin_memory = pin_memory
        self.seed = 0
        self.start = 0

    def __iter__(self) -> Iterator[list[dict]]:
        loader = ShelteredLoader(
            Samples(self.dataset, self.mapper, self.seed, self.skip_bad_images),
            batch_sampler=self.plan(),
            num_workers=self.num_workers,
            collate_fn=list,
            pin_memory=self.pin_memory,
            # It would draw a seed for its workers, which they do not use, from the global generator.
            generator=torch.Generator(),
        )
        return iter(loader)

    def plan(self) -> Iterator[list[tuple[int, int]]]:
        """(position in the run, index in the data set) of each sample of this process, batch by batch."""
        size, rank, processes = self.total_batch_size, comm.get_rank(), comm.get_world_size()
        stream = order.indices(self.passes(self.seed), self.seed)
        planned = itertools.islice(order.batches(stream, size, self.groups), self.start, None)
        for number, batch in enumerate(planned, self.start):
            yield list(enumerate(batch, number * size))[rank::processes]


class Samples(Dataset):
    """The sample at each position of a run.

    Args:
        dataset, mapper, skip_bad_images: as for `TrainingBatches`.
        seed: of the run; each sample's random numbers follow from it and from the sample's position.
    """

    def __init__(self, dataset: Sequence[dict], mapper: Mapper, seed: int, skip_bad_images: bool = False):
        self.dataset = dataset
        self.mapper = mapper
        self.seed = seed
        self.skip_bad_images = skip_bad_images

    def __getitem__(self, request: tuple[int, int]) -> dict:
        """The sample at a position of the run, of the image with this index in the data set.

        Raises:
            InputError: the image cannot be read; with `skip_bad_images`, neither can any of those after it.
        """
        position, index = request
        replaced: list[tuple[str, str]] = []
        for step in range(min(len(self.dataset), BAD_IN_A_ROW)):
            record = self.dataset[(index + step) % len(self.dataset)]
            try:
                with random_numbers(self.seed, Purpose.SAMPLE, position):
                    sample = self.mapper(record)
            except InputError as error:
                if not self.skip_bad_images:
                    raise
                replaced.append((record["file_name"], str(error)))
                continue
            return {**sample, REPLACED: replaced} if replaced else sample
        raise InputError(f"{len(replaced)} images in a row cannot be read; the first: {replaced[0][1]}")


class ReplacedImages:
    """Counts the samples that stand in place of images that cannot be read, and names each such image once in the log.

    Attributes:
        count: of images replaced since the run began, by all processes.
    """

    def __init__(self) -> None:
        self.count = 0
        self.named: set[str] = set()
        self.logger = logging.getLogger(__name__)

    def report(self, images: Sequence[tuple[str, str]]) -> None:
        """Count images, (file name, what is wrong) each, and log those not seen before."""
        for name, problem in images:
            self.count += 1
            if name not in self.named:
                self.named.add(name)
                self.logger.warning(
                    f"{problem}; skipped, another image stands in for it ({len(self.named)} bad images so far)"
                )

    def state_dict(self) -> dict:
        return {"count": self.count, "named": sorted(self.named)}

    def load_state_dict(self, state: dict) -> None:
        self.count, self.named = state["count"], set(state["named"])


def take_replaced(samples: Sequence[dict]) -> list[tuple[str, str]]:
    """Remove `REPLACED` from samples, and return all that it listed."""
    return [image for sample in samples for image in sample.pop(REPLACED, [])]
