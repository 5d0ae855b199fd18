"""An edit as what it is: new values of a few rows and columns, which can be applied and taken back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from thurl.editing.units import Unit
from thurl.errors import MissingRequirementError, UsageError
from thurl.training.fingerprint import fingerprint


__all__ = ["Delta", "UnitChange", "apply_delta", "edited_weights", "revert_delta", "touched", "wide"]


@dataclass(frozen=True, eq=False)
class UnitChange:
    """Change of one unit; its tensors are on the CPU once an edit is made.

    Args:
        unit: which matrix.
        neurons: int64 [K], the touched neurons, ascending.
        change: [groups * K, inputs] of rows or [outputs, K] of columns: what is added to the weights. float32, or
            float64 for such a model.
        original: the weights before the edit, same shape, in the model's dtype; None where they were not kept.
    """

    unit: Unit
    neurons: torch.Tensor
    change: torch.Tensor
    original: torch.Tensor | None

    @property
    def indices(self) -> torch.Tensor:
        """Touched rows or columns of the matrix, int64."""
        return self.unit.indices(self.neurons)

    def read(self, weight: torch.Tensor) -> torch.Tensor:
        """The touched rows or columns of a weight, a copy."""
        return weight.detach().index_select(self.unit.axis, self.indices.to(weight.device))

    def edited(self, original: torch.Tensor) -> torch.Tensor:
        """The touched rows or columns after the edit: added in float32 or wider, then in the dtype of the weights."""
        return (original.to(wide(original.dtype)) + self.change.to(original.device)).to(original.dtype)

    def write(self, weight: torch.Tensor, values: torch.Tensor) -> None:
        """Put rows or columns into a weight, in place."""
        with torch.no_grad():
            weight.index_copy_(self.unit.axis, self.indices.to(weight.device), values.to(weight.device))


@dataclass(frozen=True, eq=False)
class Delta:
    """A whole edit.

    Args:
        base: fingerprint of the model it was made for.
        units: all units the edit could have changed, in the order of a mask's rows.
        changes: of the units it did change, in that order.
        history: what was edited, one entry for each edit that is in it, as JSON values.
    """

    base: str
    units: tuple[Unit, ...]
    changes: tuple[UnitChange, ...]
    history: tuple[dict[str, Any], ...] = ()

    @property
    def mask(self) -> torch.Tensor:
        """Touched neurons, bool [T, M] on the CPU."""
        mask = torch.zeros(len(self.units), self.units[0].size, dtype=torch.bool)
        for change in self.changes:
            mask[self.units.index(change.unit), change.neurons.cpu()] = True
        return mask

    @property
    def density(self) -> float:
        """Share of the neurons of all units that is touched."""
        return float(self.mask.float().mean())

    @property
    def parameters(self) -> int:
        """Number of changed weights."""
        return sum(change.change.numel() for change in self.changes)

    @property
    def norm(self) -> float:
        """Euclidean norm of the change."""
        return sum(float(change.change.double().square().sum()) for change in self.changes) ** 0.5


def edited_weights(model: nn.Module, delta: Delta) -> dict[str, torch.Tensor]:
    """The whole weights of the changed units after the edit, by full name; the model stays as it is.

    For `Classifier.logits` and `Classifier.suffix`, to look at an edit without applying it.

    Raises:
        UsageError: the model has no such weights.
    """
    weights: dict[str, torch.Tensor] = {}
    for change in delta.changes:
        weight = _weight(model, change).detach()
        edited = weights.setdefault(change.unit.parameter, weight.clone())
        change.write(edited, change.edited(change.read(weight)))
    return weights


def apply_delta(model: nn.Module, delta: Delta, force: bool = False) -> Delta:
    """Change the model in place.

    Args:
        force: also apply it to a model it was not made for; all its matrices must have the same shapes.

    Returns:
        The delta to revert with: the same, holding the weights that were replaced.

    Raises:
        UsageError: made for another model, or for other matrices. The model is unchanged then.
    """
    weights = [_weight(model, change) for change in delta.changes]
    found = fingerprint(model)
    if found != delta.base and not force:
        raise UsageError(
            f"the edit was made for a model with the fingerprint {delta.base[:12]}, this one has {found[:12]}; load "
            "that model, or force it"
        )
    changes = []
    for change, weight in zip(delta.changes, weights, strict=True):
        original = change.read(weight)
        change.write(weight, change.edited(original))
        changes.append(replace(change, original=original.cpu()))
    return replace(delta, base=found, changes=tuple(changes))


def revert_delta(model: nn.Module, delta: Delta) -> None:
    """Put the weights back that the edit replaced, bit by bit, in place.

    Edits that share no neurons are reverted in any order, others last first.

    Raises:
        MissingRequirementError: the delta holds no original weights.
        UsageError: the model's weights are not those the edit left. The model is unchanged then.
    """
    if any(change.original is None for change in delta.changes):
        raise MissingRequirementError("the edit holds no original weights; load the base model again instead")
    differ, weights = [], []
    for change in delta.changes:
        weight = _weight(model, change)
        weights.append(weight)
        assert change.original is not None
        if not torch.equal(change.read(weight), change.edited(change.original.to(weight.device))):
            differ.append(change.unit.label)
    if differ:
        raise UsageError(
            f"the weights of {', '.join(differ)} are not those this edit left; the model is not edited, or edited "
            "again since: revert later edits first"
        )
    for change, weight in zip(delta.changes, weights, strict=True):
        assert change.original is not None
        change.write(weight, change.original)


def wide(dtype: torch.dtype) -> torch.dtype:
    """In which changes of such weights are computed."""
    return torch.promote_types(dtype, torch.float32)


def touched(units: Sequence[Unit], mask: torch.Tensor) -> list[tuple[Unit, torch.Tensor]]:
    """Units with a neuron in the mask [T, M], and those neurons, int64 [K] ascending."""
    rows = [row.nonzero().flatten() for row in mask]
    return [(unit, neurons) for unit, neurons in zip(units, rows, strict=True) if len(neurons)]


def _weight(model: nn.Module, change: UnitChange) -> torch.Tensor:
    unit = change.unit
    try:
        weight = model.get_parameter(unit.parameter)
    except AttributeError:
        raise UsageError(f"{type(model).__name__} has no {unit.parameter}; the edit is of another model") from None
    other = 1 - unit.axis
    fits = weight.dim() == 2 and weight.shape[unit.axis] == unit.groups * unit.size
    if not fits or weight.shape[other] != change.change.shape[other]:
        raise UsageError(
            f"{unit.parameter} has the shape {list(weight.shape)}, the edit was made for {unit.groups * unit.size} "
            f"{'columns' if unit.axis else 'rows'} of {change.change.shape[other]}; it is of another model"
        )
    return weight
