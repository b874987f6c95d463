"""Data set wrappers: compact storage, mapping, iteration by a sampler, batches of similar shape."""

import copy
import itertools
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils import data
from torch.utils.data.sampler import Sampler

from detectron2.utils.serialize import PicklableWrapper

__all__ = ["MapDataset", "DatasetFromList", "AspectRatioGroupedDataset", "ToIterableDataset"]

logger = logging.getLogger(__name__)


class MapDataset(data.Dataset):
    """A data set with a function applied to every element.

    An element for which the function returns None is skipped: replaced by a random other one in a map-style data
    set, left out in an iterable one.

    Args:
        dataset: a map-style or iterable data set; the result is of the same style.
        map_func: maps an element; may be a lambda.
    """

    def __new__(cls, dataset: data.Dataset, map_func: Callable[[Any], Any]) -> data.Dataset:
        if isinstance(dataset, data.IterableDataset):
            return _MapIterableDataset(dataset, map_func)
        return super().__new__(cls)

    def __getnewargs__(self) -> tuple:
        return self._dataset, self._map_func

    def __init__(self, dataset: data.Dataset, map_func: Callable[[Any], Any]):
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)
        self._rng = random.Random(42)
        self._fallback_candidates = set(range(len(dataset)))

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        current = int(idx)
        for retry in itertools.count(1):
            mapped = self._map_func(self._dataset[current])
            if mapped is not None:
                self._fallback_candidates.add(current)
                return mapped
            if retry % 3 == 0:
                logger.warning(f"Failed to apply `_map_func` for idx: {idx}, retry count: {retry}")
            self._fallback_candidates.discard(current)
            current = self._rng.sample(sorted(self._fallback_candidates), k=1)[0]


class _MapIterableDataset(data.IterableDataset):
    def __init__(self, dataset: data.IterableDataset, map_func: Callable[[Any], Any]):
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Any]:
        for element in map(self._map_func, self._dataset):
            if element is not None:
                yield element


class _TorchSerializedList:
    """A list as one tensor of pickled bytes, whose memory data loader workers share.

    Forked workers do because reading it, unlike reading Python objects, writes no reference counts; spawned ones
    because torch moves tensors that are sent to another process into shared memory.
    """

    def __init__(self, lst: list):
        logger.info(f"Serializing {len(lst)} elements to byte tensors and concatenating them all ...")
        pickled = [np.frombuffer(pickle.dumps(element, protocol=-1), dtype=np.uint8) for element in lst]
        self._ends = torch.from_numpy(np.cumsum([len(p) for p in pickled], dtype=np.int64))
        self._bytes = torch.from_numpy(np.concatenate(pickled) if pickled else np.zeros(0, dtype=np.uint8))
        logger.info(f"Serialized dataset takes {len(self._bytes) / 1024**2:.2f} MiB")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, idx: int) -> Any:
        start = 0 if idx == 0 else self._ends[idx - 1].item()
        return pickle.loads(memoryview(self._bytes[start : self._ends[idx].item()].numpy()))


_default_serialize_method: Callable[[list], Sequence] = _TorchSerializedList


@contextmanager
def set_default_dataset_from_list_serialize_method(new: Callable[[list], Sequence]) -> Iterator[None]:
    """Make `DatasetFromList(..., serialize=True)` use another function within a `with` block.

    Args:
        new: makes from a list something with length and elements.
    """
    global _default_serialize_method
    previous, _default_serialize_method = _default_serialize_method, new
    try:
        yield
    finally:
        _default_serialize_method = previous


class DatasetFromList(data.Dataset):
    """A list as a data set.

    Args:
        lst: the elements.
        copy: whether to return copies of them, so that changing one does not change the data set. Without meaning
            if they are serialized.
        serialize: whether to hold them as pickled bytes, which worker processes share; or a function that makes
            from the list something with length and elements.
    """

    def __init__(self, lst: list, copy: bool = True, serialize: bool | Callable[[list], Sequence] = True):
        self._copy = copy
        if serialize is True:
            serialize = _default_serialize_method
        self._serialized = bool(serialize)
        if serialize:
            logger.info(f"Serializing the dataset using: {serialize}")
            lst = serialize(lst)
        self._lst = lst

    def __len__(self) -> int:
        return len(self._lst)

    def __getitem__(self, idx: int) -> Any:
        element = self._lst[idx]
        return copy.deepcopy(element) if self._copy and not self._serialized else element


def _shard_for_worker(indices: Iterable[int], chunk_size: int) -> Iterator[int]:
    """The part of `indices` for this data loader worker: worker i of n takes chunks i, i + n, i + 2n, …"""
    worker = data.get_worker_info()
    if worker is None or worker.num_workers == 1:
        yield from indices
        return
    for position, index in enumerate(indices):
        if position // chunk_size % worker.num_workers == worker.id:
            yield index


class ToIterableDataset(data.IterableDataset):
    """A map-style data set iterated in the order of a sampler.

    With several data loader workers each takes its own part of the sampler's stream, so that the sampler runs in the
    workers and the loader returns the elements in the sampler's order.

    Args:
        dataset: map-style.
        sampler: yields indices.
        shard_sampler: whether to divide the stream among the workers; without it each worker sees all of it.
        shard_chunk_size: consecutive indices that go to one worker, usually the batch size of the loader.
    """

    def __init__(
        self,
        dataset: data.Dataset,
        sampler: Iterable[int],
        shard_sampler: bool = True,
        shard_chunk_size: int = 1,
    ):
        assert not isinstance(dataset, data.IterableDataset), dataset
        assert isinstance(sampler, Sampler), sampler
        self.dataset = dataset
        self.sampler = sampler
        self.shard_sampler = shard_sampler
        self.shard_chunk_size = shard_chunk_size

    def __iter__(self) -> Iterator[Any]:
        indices = _shard_for_worker(self.sampler, self.shard_chunk_size) if self.shard_sampler else self.sampler
        for idx in indices:
            yield self.dataset[idx]

    def __len__(self) -> int:
        return len(self.sampler)


class AspectRatioGroupedDataset(data.IterableDataset):
    """Batches of images that are all wider than high, or all not, so that padding to a common size wastes little.

    Args:
        dataset: iterable of dicts with "width" and "height".
        batch_size: images of a batch. Groups that do not fill one at the end are dropped.
    """

    def __init__(self, dataset: Iterable[dict], batch_size: int):
        self.dataset = dataset
        self.batch_size = batch_size
        self._buckets: list[list[dict]] = [[], []]

    def __iter__(self) -> Iterator[list[dict]]:
        for element in self.dataset:
            bucket = self._buckets[0 if element["width"] > element["height"] else 1]
            bucket.append(element)
            if len(bucket) == self.batch_size:
                batch = bucket[:]
                # Emptied before the yield: the consumer may stop iterating here.
                bucket.clear()
                yield batch
