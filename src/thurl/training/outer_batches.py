"""Batches of the outer data set without end, the same after a restart as without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from thurl.errors import UsageError


__all__ = ["OuterBatches"]


class OuterBatches:
    """An endless sequence of this process's shares of shuffled batches; every epoch has its own order.

    Epochs join without a gap, so that every batch is full, and batch n depends on `seed` and n alone. What augments
    the rows draws from the generators of the process that does it; with `workers` these are seeded by `seed`, by the
    worker and by where reading began, so that a resumed run with workers draws other augmentations.

    Args:
        dataset: with length; at least one row.
        collate: rows to a batch.
        batch_size: rows of one process.
        processes: how many there are.
        process: which one this is.
        seed: of the order.
        workers: processes that read ahead; 0: none.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        collate: Callable[[list[Any]], Any],
        *,
        batch_size: int,
        processes: int = 1,
        process: int = 0,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        if not len(dataset):
            raise UsageError("The outer data set is empty; the bi-level step needs a batch of it in every update.")
        self.drawn = 0
        self._dataset, self._collate, self._workers, self._seed = dataset, collate, workers, seed
        self._order = _Shares(len(dataset), batch_size, processes, process, seed)
        self._batches: Iterator[Any] | None = None

    def take(self, count: int) -> list[Any]:
        """The next `count` batches."""
        if self._batches is None:
            self._order.first = self.drawn
            # A generator of its own: the loader's seeds must not shift those of training.
            generator = torch.Generator().manual_seed(self._seed + self.drawn)
            loader = DataLoader(
                self._dataset,
                batch_sampler=self._order,
                collate_fn=self._collate,
                num_workers=self._workers,
                generator=generator,
            )
            self._batches = iter(loader)
        self.drawn += count
        return [next(self._batches) for _ in range(count)]

    def skip_to(self, drawn: int) -> None:
        """Go on after the first `drawn` batches."""
        self.drawn, self._batches = drawn, None


class _Shares(Sampler[list[int]]):
    def __init__(self, rows: int, batch_size: int, processes: int, process: int, seed: int) -> None:
        self.rows, self.batch_size, self.processes, self.process, self.seed = (
            rows,
            batch_size,
            processes,
            process,
            seed,
        )
        self.first = 0

    def __iter__(self) -> Iterator[list[int]]:
        whole = self.batch_size * self.processes
        epoch, order = -1, []
        batch = self.first
        while True:
            begin = batch * whole + self.process * self.batch_size
            rows = []
            for place in range(begin, begin + self.batch_size):
                if place // self.rows != epoch:
                    epoch = place // self.rows
                    generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
                    order = torch.randperm(self.rows, generator=generator).tolist()
                rows.append(order[place % self.rows])
            yield rows
            batch += 1
