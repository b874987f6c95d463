"""Samplers that share one stream of indices among the processes of a job."""

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data.sampler import Sampler

from detectron2.utils import comm

logger = logging.getLogger(__name__)


class TrainingSampler(Sampler):
    """An endless stream of shuffled indices, of which process r of w takes numbers r, r + w, r + 2w, …

    The stream is one permutation of 0…size-1 after another. Every process makes the whole stream from the same seed,
    so no communication is needed and no index is seen twice within a permutation.

    Args:
        size: number of elements of the data set.
        shuffle: whether to permute.
        seed: the same in every process. None: all processes agree on a random one.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None):
        if not isinstance(size, int):
            raise TypeError(f"TrainingSampler(size=) expects an int. Got type {type(size)}.")
        if size <= 0:
            raise ValueError(f"TrainingSampler(size=) expects a positive int. Got {size}.")
        self._size = size
        self._shuffle = shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        g = torch.Generator()
        g.manual_seed(self._seed)
        while True:
            yield from self._epoch(g).tolist()

    def _epoch(self, g: torch.Generator) -> Tensor:
        return torch.randperm(self._size, generator=g) if self._shuffle else torch.arange(self._size)


class RandomSubsetTrainingSampler(TrainingSampler):
    """`TrainingSampler` on a fixed random part of the data set: `int(size * subset_ratio)` elements of it.

    Args:
        size: number of elements of the data set.
        subset_ratio: the share to keep, in (0, 1].
        shuffle: whether to permute the subset at every pass.
        seed_shuffle: seed of these permutations. None: all processes agree on a random one.
        seed_subset: seed of the choice of the subset. None: all processes agree on a random one.
    """

    def __init__(
        self,
        size: int,
        subset_ratio: float,
        shuffle: bool = True,
        seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ):
        super().__init__(size=size, shuffle=shuffle, seed=seed_shuffle)
        assert 0.0 < subset_ratio <= 1.0
        self._size_subset = int(size * subset_ratio)
        assert self._size_subset > 0
        g = torch.Generator()
        g.manual_seed(int(comm.shared_random_seed() if seed_subset is None else seed_subset))
        self._indexes_subset = torch.randperm(size, generator=g)[: self._size_subset]
        logger.info("Using RandomSubsetTrainingSampler......")
        logger.info(f"Randomly sample {self._size_subset} data from the original {size} data")

    def _epoch(self, g: torch.Generator) -> Tensor:
        if not self._shuffle:
            return self._indexes_subset
        return self._indexes_subset[torch.randperm(self._size_subset, generator=g)]


class RepeatFactorTrainingSampler(Sampler):
    """Shows some images more often than others, typically those with rare categories.

    In each pass image i appears floor(f_i) times and once more with the probability of the fractional part of f_i.

    Gupta et al., LVIS: A Dataset for Large Vocabulary Instance Segmentation, CVPR 2019, section B.2.

    Args:
        repeat_factors: (N,) float, how often each image is shown in a pass on average.
        shuffle: whether to permute each pass.
        seed: the same in every process. None: all processes agree on a random one.
    """

    def __init__(self, repeat_factors: Tensor, *, shuffle: bool = True, seed: int | None = None):
        self._shuffle = shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()
        self._int_part = torch.trunc(repeat_factors)
        self._frac_part = repeat_factors - self._int_part

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: list[dict], repeat_thresh: float, sqrt: bool = True
    ) -> Tensor:
        """(N,) float32 repeat factors: for an image the largest max(1, sqrt(t / f(c))) over its categories c.

        Args:
            dataset_dicts: annotations in detectron2's standard format.
            repeat_thresh: t; categories in a smaller share f(c) of the images are repeated.
            sqrt: without it the factor is max(1, t / f(c)).
        """
        categories = [{annotation["category_id"] for annotation in record["annotations"]} for record in dataset_dicts]
        images_with = Counter(itertools.chain.from_iterable(categories))

        def factor(category: int) -> float:
            ratio = repeat_thresh / (images_with[category] / len(dataset_dicts))
            return max(1.0, math.sqrt(ratio) if sqrt else ratio)

        factors = {category: factor(category) for category in images_with}
        return torch.tensor(
            [max((factors[c] for c in present), default=1.0) for present in categories], dtype=torch.float32
        )

    def _get_epoch_indices(self, generator: torch.Generator) -> Tensor:
        once_more = torch.rand(len(self._frac_part), generator=generator) < self._frac_part
        repeats = (self._int_part + once_more.float()).long()
        return torch.repeat_interleave(torch.arange(len(repeats)), repeats)

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        g = torch.Generator()
        g.manual_seed(self._seed)
        while True:
            indices = self._get_epoch_indices(g)
            if self._shuffle:
                indices = indices[torch.randperm(len(indices), generator=g)]
            yield from indices.tolist()


class InferenceSampler(Sampler):
    """Every index exactly once over all processes: each takes one contiguous range, the ranges differ by at most one.

    Args:
        size: number of elements of the data set.
    """

    def __init__(self, size: int):
        assert size > 0
        self._size = size
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()
        self._local_indices = self._get_local_indices(size, self._world_size, self._rank)

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        share, left = divmod(total_size, world_size)
        begin = rank * share + min(rank, left)
        return range(begin, begin + share + (rank < left))

    def __iter__(self) -> Iterator[int]:
        yield from self._local_indices

    def __len__(self) -> int:
        return len(self._local_indices)
