"""Batches whose elements all belong to the same group."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from torch.utils.data.sampler import BatchSampler, Sampler


class GroupedBatchSampler(BatchSampler):
    """Groups the indices of another sampler into full batches of one group each, as close to its order as that allows.

    Args:
        sampler: yields indices.
        group_ids: the group of every index.
        batch_size: elements of a batch. Groups that do not fill one at the end are dropped.
    """

    def __init__(self, sampler: Sampler, group_ids: Sequence[int], batch_size: int):
        if not isinstance(sampler, Sampler):
            raise ValueError(f"sampler should be an instance of torch.utils.data.Sampler, but got sampler={sampler}")
        self.sampler = sampler
        self.group_ids = group_ids
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        groups: dict[int, list[int]] = defaultdict(list)
        for index in self.sampler:
            group = groups[self.group_ids[index]]
            group.append(index)
            if len(group) == self.batch_size:
                yield group.copy()
                group.clear()

    def __len__(self) -> int:
        raise NotImplementedError("len() of GroupedBatchSampler is not well-defined.")
