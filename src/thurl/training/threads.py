"""Numbers that do not depend on how many cores a machine has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on one thread; sums on several may differ in the last bit from those on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
