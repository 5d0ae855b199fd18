"""Data sets whose items change from epoch to epoch, the same way in every process and worker."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset


__all__ = ["EpochDataset"]


class EpochDataset(Dataset):
    """A map-style data set that knows the epoch. Items should be a function of (seed, epoch, index) alone."""

    def __init__(self) -> None:
        # In shared memory: workers that outlive an epoch must see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's draws; `accelerate` calls it. Reaches running workers, too."""
        self._epoch.fill_(int(epoch))

    @property
    def epoch(self) -> int:
        """The epoch that is drawn from."""
        return int(self._epoch)
