"""Bytes of living tensors, and the most there were: what a caching allocator would have to hold."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


__all__ = ["TensorMemory"]


class TensorMemory(TorchDispatchMode):
    """Counts the storages that operations make inside the context, each once, and those of tensors given to `hold`.

    Tensors that were there before (weights, inputs) count only when they are held. Memory that a kernel uses for
    itself is not seen. `torch.distributed._tools.mem_tracker` counts the same way but cannot follow a module with
    frozen parameters (torch 2.13).

    Args:
        reserved: whether memory that is only reserved (`torch.empty`) counts.

    Attributes:
        now, peak: bytes.
    """

    def __init__(self, *, reserved: bool = True) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._reserved = reserved
        self._living: dict[int, Any] = {}

    def hold(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that were there before."""
        for tensor in tensors:
            self._add(tensor.untyped_storage(), tensor.untyped_storage().nbytes())

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            self._add(storage, 0)  # not made here, also where a result is a view of it
        result = function(*args, **(kwargs or {}))
        free = not self._reserved and function is torch.ops.aten.empty.memory_format
        for storage in _storages(result):
            self._add(storage, 0 if free else storage.nbytes())
        return result

    def _add(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self._living:
            return

        def gone(_: Any) -> None:
            if self._living.pop(key, None) is not None:
                self.now -= size

        self._living[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
