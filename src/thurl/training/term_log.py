"""Running means of named numbers between two log entries, over micro-batches and processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


__all__ = ["TermLog"]


class TermLog:
    """Adds up on the device, without waiting for it, and is read once per log entry."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, values: Mapping[str, torch.Tensor], present: Mapping[str, Any], *, group: str = "terms") -> None:
        """Count scalars in; those that are not `present` (default: they are) count in neither sum nor number."""
        for name, value in values.items():
            value = value.detach().double()
            has = torch.as_tensor(present.get(name, True), device=value.device).bool().reshape(())
            pair = torch.stack([torch.where(has, value, torch.zeros_like(value)), has.double()])
            key = f"{group}/{name}" if group else name
            self._sums[key] = self._sums[key] + pair if key in self._sums else pair

    def take(self, accelerator: Any) -> dict[str, float]:
        """Means over all processes since the last call, which must all call it; names never present are left out."""
        if not self._sums:
            return {}
        names = list(self._sums)
        table = torch.stack([self._sums[name].to(accelerator.device) for name in names])
        if accelerator.num_processes > 1:
            table = accelerator.reduce(table, reduction="sum")
        self._sums = {}
        return {name: total / count for name, (total, count) in zip(names, table.tolist(), strict=True) if count}

    def state(self) -> dict[str, torch.Tensor]:
        """What has been added since the last `take`."""
        return dict(self._sums)

    def load(self, state: Mapping[str, torch.Tensor], device: torch.device) -> None:
        """Take over what `state` returned."""
        self._sums = {name: value.to(device) for name, value in state.items()}
