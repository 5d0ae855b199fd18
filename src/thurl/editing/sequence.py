"""Edits one after another, each on the model the last one left, and how far that model has come from the first."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from thurl.editing.classifier import Classifier
from thurl.editing.delta import Delta, UnitChange, apply_delta, touched, wide
from thurl.editing.edit import Edit, EditSettings, edit
from thurl.editing.masks import MaskSource, binarise
from thurl.editing.search import Locality
from thurl.errors import UsageError


__all__ = ["EditSequence", "SequenceStep", "edit_in_sequence"]


@dataclass(frozen=True, eq=False)
class SequenceStep:
    """State after one of the edits.

    Args:
        edit: what was made; its delta is for the model the edit before left.
        right: for each edit so far, whether all its pictures are right now; the last entry is this edit's own.
        locality: share of the locality set predicted as by the first model, in [0, 1]; None without such a set.
        drift: norm of the change since the first model over the norm of its weights, by label of the unit.
    """

    edit: Edit
    right: tuple[bool, ...]
    locality: float | None
    drift: dict[str, float]

    @property
    def retention(self) -> float:
        """Share of the edits so far that hold, in [0, 1]."""
        return sum(self.right) / len(self.right)


@dataclass(frozen=True, eq=False)
class EditSequence:
    """Result of `edit_in_sequence`.

    Args:
        steps: one for each edit.
        delta: all edits as one, for the first model.
    """

    steps: tuple[SequenceStep, ...]
    delta: Delta


def edit_in_sequence(
    classifier: Classifier,
    failures: Sequence[tuple[torch.Tensor, torch.Tensor]],
    source: MaskSource,
    density: float,
    settings: EditSettings | None = None,
    locality: Sequence[torch.Tensor] = (),
) -> EditSequence:
    """Edit failure after failure; the model itself stays as it is.

    Args:
        failures: pictures [B, channels, H, W] and their right classes, int64 [B], of each edit.
        source: scores the neurons anew before each edit, on the model as it is then.
        density: of each mask.
        locality: batches of pictures whose predictions are followed.

    Raises:
        UsageError: no failures, and whatever `edit` raises.
    """
    if not failures:
        raise UsageError("no failures to edit; give at least one")
    current = copy.deepcopy(classifier)
    followed = Locality(classifier, locality) if locality else None
    union = torch.zeros(classifier.mask_shape, dtype=torch.bool)
    steps: list[SequenceStep] = []
    history: list[dict[str, Any]] = []
    for number, (pixel_values, labels) in enumerate(failures):
        mask = binarise(source.scores(current, pixel_values, labels), density)
        made = edit(current, pixel_values, labels, mask, settings, note={"sequence": number})
        apply_delta(current.model, made.delta)
        union |= made.delta.mask
        history.extend(made.delta.history)
        total = _since(classifier, current, union)
        right = tuple(_all_right(current, *failure) for failure in failures[: number + 1])
        rate = None if followed is None else followed.rate(total)
        steps.append(SequenceStep(made, right, rate, _drift(classifier, total)))
    return EditSequence(tuple(steps), Delta(total.base, total.units, total.changes, tuple(history)))


def _since(first: Classifier, now: Classifier, mask: torch.Tensor) -> Delta:
    """The change between two states of a model in the neurons of a mask."""
    changes = []
    for unit, neurons in touched(first.units, mask):
        weight = first.linear[unit.parameter].weight
        empty = UnitChange(unit, neurons.to(weight.device), torch.empty(0), None)
        before, after = empty.read(weight), empty.read(now.linear[unit.parameter].weight)
        difference = after.to(wide(after.dtype)) - before.to(wide(before.dtype))
        changes.append(UnitChange(unit, empty.neurons.cpu(), difference.cpu(), before.cpu()))
    return Delta(first.fingerprint(), first.units, tuple(changes))


def _drift(classifier: Classifier, total: Delta) -> dict[str, float]:
    norms = {name: float(module.weight.detach().norm()) for name, module in classifier.linear.items()}
    return {change.unit.label: float(change.change.norm()) / norms[change.unit.parameter] for change in total.changes}


@torch.no_grad()
def _all_right(classifier: Classifier, pixel_values: torch.Tensor, labels: torch.Tensor) -> bool:
    return bool((classifier.logits(pixel_values).argmax(dim=-1) == labels).all())
