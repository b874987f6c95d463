"""The order of training samples: which images the batch of each iteration holds, as a function of the seed alone.

Every process makes the plan of the whole run, for all processes together, so that it does not depend on how many there
are, nor on who loads the images. To continue a run is to skip the beginning of its plan, which reads no image: the
4.3 million samples of a published training are skipped in about a second.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Epoch = Callable[[torch.Generator], Tensor]
"""Makes the indices, (n,) int64, of one pass over a data set."""


def shuffled(size: int) -> Epoch:
    """Every index from 0 to `size` - 1 once a pass: what `TrainingSampler` draws."""
    return lambda generator: torch.randperm(size, generator=generator)


def shuffled_subset(size: int, ratio: float, seed: int) -> Epoch:
    """`int(size * ratio)` indices that `seed` chooses, each once a pass: what `RandomSubsetTrainingSampler` draws."""
    chosen = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[: int(size * ratio)]
    return lambda generator: chosen[torch.randperm(len(chosen), generator=generator)]


def repeated(factors: Tensor) -> Epoch:
    """Index i floor(f_i) times a pass, and once more by the chance of the fraction: as `RepeatFactorTrainingSampler`.

    Gupta et al., LVIS: A Dataset for Large Vocabulary Instance Segmentation, CVPR 2019, section B.2.

    Args:
        factors: (N,) float, how often each index is drawn in a pass on average.
    """

    def epoch(generator: torch.Generator) -> Tensor:
        whole = factors.trunc()
        once_more = torch.rand(len(factors), generator=generator) < factors - whole
        indices = torch.repeat_interleave(torch.arange(len(factors)), (whole + once_more).long())
        return indices[torch.randperm(len(indices), generator=generator)]

    return epoch


def indices(epoch: Epoch, seed: int) -> Iterator[int]:
    """The endless stream of indices: one pass after another, drawn by one generator with this seed."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from epoch(generator).tolist()


def batches(stream: Iterator[int], size: int, group: Sequence[int] | None = None) -> Iterator[list[int]]:
    """Batches of `size` indices in the order of the stream.

    Args:
        stream: endless.
        size: images of a batch, over all processes.
        group: for each index which of two groups, 0 or 1, it belongs to; a batch then holds one group only, and comes
            when its last member does. None: all batches are consecutive pieces of the stream.
    """
    if group is None:
        while True:
            yield list(itertools.islice(stream, size))
    waiting: tuple[list[int], list[int]] = ([], [])
    for index in stream:
        batch = waiting[group[index]]
        batch.append(index)
        if len(batch) == size:
            yield batch[:]
            batch.clear()
