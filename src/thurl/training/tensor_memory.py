"""Bytes of living tensors, and the most there were: what a caching allocator would have to hold."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMemory(TorchDispatchMode):
    """Counts the storages that operations make inside the context, and those of tensors given to `hold`.

    Memory that a kernel uses for itself is not seen. `torch.distributed._tools.mem_tracker` counts the same way but
    cannot follow a module with frozen parameters (torch 2.13).
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._living: dict[int, Any] = {}

    def hold(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that were there before."""
        for tensor in tensors:
            self._add(tensor.untyped_storage())

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._living:
            return

        def gone(_: Any) -> None:
            if self._living.pop(key, None) is not None:
                self.now -= size

        self._living[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)
