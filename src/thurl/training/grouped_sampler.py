"""An order of training rows in which those that belong together, such as a face and its forgeries, stay together."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

from thurl.errors import UsageError


__all__ = ["GroupedSampler"]


class GroupedSampler(Sampler[int]):
    """Every row once per epoch: the groups in an order drawn anew, the rows of a group in a row.

    The order is a function of (seed, epoch) alone, so that any number of processes and a resumed run draw the same. A
    group is split over two batches where one ends in the midst of it; none is where all groups have one size that
    divides the batch.

    Args:
        groups: (N,) the group of each row; equal values are one group.
        seed: of the order.

    Raises:
        UsageError: no rows.
    """

    def __init__(self, groups: Sequence[Hashable], seed: int = 0) -> None:
        if not len(groups):
            raise UsageError("`groups` is empty; it needs the group of each row to train on.")
        members: dict[Hashable, list[int]] = {}
        for row, group in enumerate(groups):
            members.setdefault(group, []).append(row)
        self._groups, self._rows, self._seed, self._epoch = list(members.values()), len(groups), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn."""
        self._epoch = int(epoch)

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + self._epoch) % 2**63)
        for place in torch.randperm(len(self._groups), generator=generator).tolist():
            rows = self._groups[place]
            # Shuffled, else the first rows of large groups would always fall into other batches than the last.
            for row in torch.randperm(len(rows), generator=generator).tolist():
                yield rows[row]
