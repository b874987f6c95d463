"""Data loaders for training and testing, built from a config or from explicit arguments."""

import itertools
import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from termcolor import colored
from torch.utils import data

from detectron2.config import CfgNode, configurable
from detectron2.utils.comm import get_world_size
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import _log_api_usage, log_first_n

from .catalog import DatasetCatalog, MetadataCatalog
from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper
from .detection_utils import check_metadata_consistency
from .proposals import load_proposals_into_dataset
from .samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)

logger = logging.getLogger(__name__)

__all__ = [
    "build_batch_data_loader",
    "build_detection_train_loader",
    "build_detection_test_loader",
    "get_detection_dataset_dicts",
    "load_proposals_into_dataset",
    "print_instances_class_histogram",
]


def filter_images_with_only_crowd_annotations(dataset_dicts: list[dict]) -> list[dict]:
    """Remove images that have no annotation, or only crowds."""
    kept = [d for d in dataset_dicts if any(anno.get("iscrowd", 0) == 0 for anno in d["annotations"])]
    logger.info(f"Removed {len(dataset_dicts) - len(kept)} images with no usable annotations. {len(kept)} images left.")
    return kept


def print_instances_class_histogram(dataset_dicts: list[dict], class_names: list[str]) -> None:
    """Log how many instances, crowds apart, each class has.

    Raises:
        AssertionError: a category id outside 0…K-1.
    """
    num_classes = len(class_names)
    classes = np.array(
        [anno["category_id"] for d in dataset_dicts for anno in d["annotations"] if not anno.get("iscrowd", 0)],
        dtype=int,
    )
    if len(classes):
        assert classes.min() >= 0, f"Got an invalid category_id={classes.min()}"
        assert classes.max() < num_classes, (
            f"Got an invalid category_id={classes.max()} for a dataset of {num_classes} classes"
        )
    counts = np.bincount(classes, minlength=num_classes).tolist()

    columns = min(6, num_classes * 2)
    cells: list[Any] = []
    for name, count in zip(class_names, counts, strict=True):
        cells += [name[:11] + ".." if len(name) > 13 else name, count]
    cells += [None] * (columns - len(cells) % columns)
    if num_classes > 1:
        cells += ["total", sum(counts)]
    table = tabulate(
        itertools.zip_longest(*[cells[i::columns] for i in range(columns)]),
        headers=["category", "#instances"] * (columns // 2),
        tablefmt="pipe",
        numalign="left",
        stralign="center",
    )
    log_first_n(
        logging.INFO,
        f"Distribution of instances among all {num_classes} categories:\n" + colored(table, "cyan"),
        key="message",
    )


def get_detection_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    *,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
) -> list[dict] | data.Dataset:
    """Load registered data sets as one list in detectron2's standard format.

    Args:
        names: a data set's name or several.
        filter_empty: whether to leave out images without annotations or with crowds only.
        proposal_files: for each data set, the file of its precomputed proposals; None for no proposals.
        check_consistency: whether to check that all data sets have the same classes.

    Returns:
        the list; or, where a data set is registered as a torch `Dataset`, that or the concatenation of them.
    """
    names = [names] if isinstance(names, str) else names
    assert len(names), names
    datasets = [DatasetCatalog.get(name) for name in names]
    if isinstance(datasets[0], data.Dataset):
        return data.ConcatDataset(datasets) if len(datasets) > 1 else datasets[0]
    for name, dicts in zip(names, datasets, strict=True):
        assert len(dicts), f"Dataset '{name}' is empty!"
    if proposal_files is not None:
        assert len(names) == len(proposal_files), f"{len(names)} data sets, but {len(proposal_files)} proposal files"
        datasets = [load_proposals_into_dataset(d, f) for d, f in zip(datasets, proposal_files, strict=True)]

    dataset_dicts = list(itertools.chain.from_iterable(datasets))
    if "annotations" in dataset_dicts[0]:
        if filter_empty:
            dataset_dicts = filter_images_with_only_crowd_annotations(dataset_dicts)
        class_names = MetadataCatalog.get(names[0]).get("thing_classes")
        if check_consistency and class_names is not None:
            check_metadata_consistency("thing_classes", names)
            print_instances_class_histogram(dataset_dicts, class_names)
    assert len(dataset_dicts), f"No valid data found in {','.join(names)}."
    return dataset_dicts


def trivial_batch_collator(batch: list) -> list:
    """The batch as the list it is: images of different sizes cannot be stacked."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed torch, numpy and random of a worker; only the first has a seed of its own in each worker by default."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)


def _batch_size_of_process(total_batch_size: int | None, single_gpu_batch_size: int | None) -> int:
    if single_gpu_batch_size:
        if total_batch_size:
            raise ValueError(
                "total_batch_size and single_gpu_batch_size are mutually incompatible. Please specify one."
            )
        return single_gpu_batch_size
    world_size = get_world_size()
    assert total_batch_size > 0 and total_batch_size % world_size == 0, (
        f"Total batch size ({total_batch_size}) must be divisible by the number of gpus ({world_size})."
    )
    return total_batch_size // world_size


def build_batch_data_loader(
    dataset: data.Dataset,
    sampler: data.Sampler | None,
    total_batch_size: int,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    drop_last: bool = True,
    single_gpu_batch_size: int | None = None,
    prefetch_factor: int = 2,
    persistent_workers: bool = False,
    pin_memory: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> Any:
    """A loader of batches for this process.

    Args:
        dataset: map-style or iterable.
        sampler: yields indices; None if `dataset` is iterable.
        total_batch_size: elements of a batch over all processes; a multiple of their number.
        aspect_ratio_grouping: whether to put images of similar shape together; elements need "width" and "height".
        num_workers: processes that load data.
        collate_fn: makes a batch of a list of elements; None leaves the list.
        drop_last: whether to drop the last batch if it is not full.
        single_gpu_batch_size: elements of a batch in this process, in place of `total_batch_size`.
        prefetch_factor, persistent_workers, pin_memory, kwargs: see torch's `DataLoader`.
        seed: of the worker processes' random numbers.
    """
    batch_size = _batch_size_of_process(total_batch_size, single_gpu_batch_size)
    if isinstance(dataset, data.IterableDataset):
        assert sampler is None, "sampler must be None if dataset is IterableDataset"
    else:
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)

    options = dict(
        num_workers=num_workers,
        worker_init_fn=worker_init_reset_seed,
        # torch refuses any number where there are no workers.
        prefetch_factor=prefetch_factor if num_workers > 0 else None,
        persistent_workers=persistent_workers,
        pin_memory=pin_memory,
        generator=None if seed is None else torch.Generator().manual_seed(seed),
        **kwargs,
    )
    if aspect_ratio_grouping:
        assert drop_last, "Aspect ratio grouping will drop incomplete batches."
        # The loader yields single elements, which are grouped here in the main process.
        loader = data.DataLoader(dataset, collate_fn=operator.itemgetter(0), **options)
        batches = AspectRatioGroupedDataset(loader, batch_size)
        return batches if collate_fn is None else MapDataset(batches, collate_fn)
    collate_fn = trivial_batch_collator if collate_fn is None else collate_fn
    return data.DataLoader(dataset, batch_size=batch_size, drop_last=drop_last, collate_fn=collate_fn, **options)


def _build_training_sampler(cfg: CfgNode, dataset: list[dict] | data.Dataset) -> data.Sampler | None:
    if isinstance(dataset, data.IterableDataset):
        logger.info("Not using any sampler since the dataset is IterableDataset.")
        return None
    name = cfg.DATALOADER.SAMPLER_TRAIN
    logger.info(f"Using training sampler {name}")
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset))
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        return RepeatFactorTrainingSampler(factors)
    if name == "RandomSubsetTrainingSampler":
        return RandomSubsetTrainingSampler(len(dataset), cfg.DATALOADER.RANDOM_SUBSET_RATIO)
    raise ValueError(f"Unknown training sampler: {name}")


def _train_loader_from_config(
    cfg: CfgNode,
    mapper: Callable[[dict], Any] | None = None,
    *,
    dataset: list[dict] | data.Dataset | None = None,
    sampler: data.Sampler | None = None,
) -> dict[str, Any]:
    if dataset is None:
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
        _log_api_usage("dataset." + cfg.DATASETS.TRAIN[0])
    return {
        "dataset": dataset,
        "sampler": _build_training_sampler(cfg, dataset) if sampler is None else sampler,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: list | data.Dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: data.Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    **kwargs: Any,
) -> Any:
    """An endless loader of training batches. Also called with a config: `(cfg, mapper=, dataset=, sampler=)`.

    Args:
        dataset: dicts in detectron2's standard format, or a torch data set, map-style or iterable.
        mapper: makes the model's input of an element; by default, from a config, `DatasetMapper(cfg, True)`.
        sampler: by default `TrainingSampler`; None if `dataset` is iterable.
        total_batch_size, aspect_ratio_grouping, num_workers, collate_fn, kwargs: see `build_batch_data_loader`.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    if isinstance(dataset, data.IterableDataset):
        assert sampler is None, "sampler must be None if dataset is IterableDataset"
    else:
        sampler = TrainingSampler(len(dataset)) if sampler is None else sampler
        assert isinstance(sampler, data.Sampler), f"Expect a Sampler but got {type(sampler)}"
    return build_batch_data_loader(
        dataset,
        sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )


def _test_loader_from_config(
    cfg: CfgNode, dataset_name: str | Sequence[str], mapper: Callable[[dict], Any] | None = None
) -> dict[str, Any]:
    names = [dataset_name] if isinstance(dataset_name, str) else dataset_name
    proposal_files = None
    if cfg.MODEL.LOAD_PROPOSALS:
        positions = [list(cfg.DATASETS.TEST).index(name) for name in names]
        proposal_files = [cfg.DATASETS.PROPOSAL_FILES_TEST[i] for i in positions]
    dataset = get_detection_dataset_dicts(names, filter_empty=False, proposal_files=proposal_files)
    return {
        "dataset": dataset,
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "sampler": None if isinstance(dataset, data.IterableDataset) else InferenceSampler(len(dataset)),
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: list | data.Dataset,
    *,
    mapper: Callable[[dict], Any],
    sampler: data.Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
) -> data.DataLoader:
    """A loader that goes through a data set once. Also called with a config: `(cfg, dataset_name, mapper=)`.

    Args:
        dataset: dicts in detectron2's standard format, or a torch data set, map-style or iterable.
        mapper: makes the model's input of an element; by default, from a config, `DatasetMapper(cfg, False)`.
        sampler: by default `InferenceSampler`; None if `dataset` is iterable.
        batch_size: elements of a batch in this process; the last one may be smaller.
        num_workers: processes that load data.
        collate_fn: makes a batch of a list of elements; None leaves the list.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    if isinstance(dataset, data.IterableDataset):
        assert sampler is None, "sampler must be None if dataset is IterableDataset"
    elif sampler is None:
        sampler = InferenceSampler(len(dataset))
    return data.DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=False,
        num_workers=num_workers,
        collate_fn=trivial_batch_collator if collate_fn is None else collate_fn,
    )
