"""Several edits of one model as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from thurl.editing.delta import Delta, UnitChange
from thurl.editing.units import Unit, grouped
from thurl.errors import UsageError


__all__ = ["Overlap", "merge_deltas", "overlaps"]


@dataclass(frozen=True)
class Overlap:
    """Neurons of a unit that two edits change.

    Args:
        unit: label, such as `layer7.fc1`.
        first: index of the one edit, `second`: of the other.
        neurons: which, ascending.
        cosine: of the two changes of these neurons: near 1 they ask for the same, near -1 for the opposite; NaN where
            one is zero.
    """

    unit: str
    first: int
    second: int
    neurons: tuple[int, ...]
    cosine: float

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.neurons[:5])) + (", ..." if len(self.neurons) > 5 else "")
        return (
            f"{self.unit}: edits {self.first} and {self.second} both change {len(self.neurons)} neurons ({shown}), "
            f"cosine {self.cosine:.2f}"
        )


def overlaps(deltas: Sequence[Delta]) -> list[Overlap]:
    """Every conflict between two of the edits, in the order of edits and units."""
    found = []
    for second, later in enumerate(deltas):
        for first, earlier in enumerate(deltas[:second]):
            for change in earlier.changes:
                for other in later.changes:
                    if change.unit.parameter == other.unit.parameter:
                        both = sorted({*change.neurons.tolist()} & {*other.neurons.tolist()})
                        if both:
                            cosine = _cosine(_rows(change, both), _rows(other, both))
                            found.append(Overlap(change.unit.label, first, second, tuple(both), cosine))
    return found


def merge_deltas(deltas: Sequence[Delta], overlap: str = "refuse") -> Delta:
    """One edit that makes the changes of all.

    Args:
        deltas: of the same base model.
        overlap: `refuse` raises where two edits change the same neurons of a unit, `sum` adds their changes up; what
            comes out may then be neither the one nor the other edit, so look at the pictures again.

    Raises:
        UsageError: none, of several base models or other units, or overlaps that are refused: all are named.
    """
    if overlap not in ("refuse", "sum"):
        raise UsageError(f"overlap {overlap!r}: must be refuse or sum")
    bases = sorted({delta.base[:12] for delta in deltas})
    if len({delta.base for delta in deltas}) != 1:
        raise UsageError(
            f"edits of {len(bases)} base models ({', '.join(bases)}); only edits of one can be merged, apply others "
            "one after another"
        )
    units = {unit.parameter: unit for delta in deltas for unit in delta.units}
    if any(units[unit.parameter] != unit for delta in deltas for unit in delta.units):
        raise UsageError("the edits see the same weights as different units; make them with the same units")
    if len({unit.size for unit in units.values()}) > 1:
        raise UsageError("the edits are of units of several sizes; apply them one after another")
    conflicts = overlaps(deltas)
    if conflicts and overlap == "refuse":
        raise UsageError([*map(str, conflicts), "edits that overlap are not merged; `sum` adds them up"])
    changes = []
    ordered = tuple(sorted(units.values(), key=lambda unit: (unit.layer, unit.name)))
    for unit in ordered:
        parts = [change for delta in deltas for change in delta.changes if change.unit == unit]
        if parts:
            changes.append(_sum(unit, parts))
    history = tuple(entry for delta in deltas for entry in delta.history)
    return Delta(deltas[0].base, ordered, tuple(changes), history)


def _sum(unit: Unit, parts: Sequence[UnitChange]) -> UnitChange:
    if len(parts) == 1:
        return parts[0]
    neurons = torch.cat([part.neurons for part in parts]).unique()
    shape = list(parts[0].change.shape)
    shape[unit.axis] = len(neurons) * unit.groups
    total = parts[0].change.new_zeros(shape)
    kept = [part.original for part in parts if part.original is not None]
    original = kept[0].new_zeros(shape) if len(kept) == len(parts) else None
    for part in parts:
        place = grouped(torch.searchsorted(neurons, part.neurons), len(neurons), unit.groups)
        total.index_add_(unit.axis, place, part.change.to(total))
        if original is not None and part.original is not None:
            original.index_copy_(unit.axis, place, part.original.to(original))
    return UnitChange(unit, neurons, total, original)


def _rows(change: UnitChange, neurons: Sequence[int]) -> torch.Tensor:
    place = torch.searchsorted(change.neurons, torch.tensor(neurons).to(change.neurons))
    place = grouped(place, len(change.neurons), change.unit.groups)
    return change.change.index_select(change.unit.axis, place).double().reshape(-1)


def _cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(first @ second / (first.norm() * second.norm()))
