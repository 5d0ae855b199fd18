"""Runs editors over groups of failures: pictures of a group are edited one at a time, each from the base model.

What the base model says is computed once, and so is the part of it in front of the first changed block; the released
code does both again for every edit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from thurl.editing.classifier import Classifier
from thurl.editing.methods import Edited, EditMethod
from thurl.editing.metrics import (
    MacroAverage,
    accuracy_drop,
    expected_calibration_error,
    generalisation_rate,
    locality_rate,
    macro_average,
    official_generalisation_rate,
    success_rate,
)
from thurl.errors import UsageError


__all__ = ["EditGroup", "EditRow", "Evaluator", "averages"]


@dataclass(frozen=True, eq=False)
class EditGroup:
    """Pictures the base model gets wrong in one way.

    Args:
        name: of the group, unique.
        label: their right class.
        pixel_values: [n, channels, H, W].
    """

    name: str
    label: int
    pixel_values: torch.Tensor


@dataclass(frozen=True)
class EditRow:
    """One edit.

    Args:
        group: name of its group.
        edited: which picture of the group was edited.
        numbers: SR, GR, GR_official, LR_<set> for each set of unrelated pictures; where there are validation
            pictures, LR_right of those the base model is right about, accuracy_drop, ECE and ECE_rise; also steps,
            reached (1 or 0) and parameters.
    """

    group: str
    edited: int
    numbers: dict[str, float]


class Evaluator:
    """Edits and judges.

    Args:
        classifier: the base model.
        groups: all their pictures must be wrong.
        unrelated: set -> pictures [N, channels, H, W] whose predictions should stay.
        validation: pictures [V, channels, H, W] and labels int64 [V] for accuracy and calibration.
        batch_size: pictures at a time.

    Raises:
        UsageError: no groups, two of one name, labels outside the classes, or pictures of a group that are right.
    """

    def __init__(
        self,
        classifier: Classifier,
        groups: Sequence[EditGroup],
        unrelated: Mapping[str, torch.Tensor] | None = None,
        validation: tuple[torch.Tensor, torch.Tensor] | None = None,
        batch_size: int = 64,
    ) -> None:
        self.classifier = classifier
        self.groups = {group.name: group for group in groups}
        self._labels = None if validation is None else validation[1]
        self._pictures = {f"LR_{name}": pixels for name, pixels in (unrelated or {}).items()}
        if validation is not None:
            self._pictures["validation"] = validation[0]
        self._batch_size = batch_size
        self._hidden: dict[str, torch.Tensor] = {}
        self._layer = -1
        problems = [] if groups else ["no groups to edit"]
        if len(self.groups) < len(groups):
            problems.append("groups of the same name; each needs one of its own")
        for group in groups:
            if not 0 <= group.label < classifier.classes:
                problems.append(f"{group.name}: class {group.label} of a model with {classifier.classes} classes")
        if problems:
            raise UsageError(problems)
        self._cache(classifier.first_layer)
        self._before = {name: self._logits(name, {}) for name in self._pictures}
        for group in groups:
            right = (self._logits(group.name, {}).argmax(dim=-1) == group.label).nonzero().flatten().tolist()
            if right:
                found = ", ".join(map(str, right[:5])) + (" and more" if len(right) > 5 else "")
                problems.append(f"{group.name}: picture {found} is right without an edit; leave it out")
        if problems:
            raise UsageError(problems)

    def run(self, method: EditMethod, edits: int, groups: Iterable[str] | None = None) -> list[EditRow]:
        """Edit the first pictures of each group, one at a time.

        Args:
            edits: at most that many of each group.
            groups: names; default: all.

        Raises:
            UsageError: fewer than one edit, no such group, and what the method raises.
        """
        if edits < 1:
            raise UsageError(f"edits is {edits}; each group needs one or more")
        chosen = list(self.groups if groups is None else groups)
        if unknown := [name for name in chosen if name not in self.groups]:
            raise UsageError(f"no group {unknown[0]!r}; there are {', '.join(self.groups)}")
        wanted = [
            (self.groups[name], index)
            for name in chosen
            for index in range(min(edits, len(self.groups[name].pixel_values)))
        ]
        pictures = torch.stack([group.pixel_values[index] for group, index in wanted])
        labels = torch.tensor([group.label for group, _ in wanted], device=pictures.device)
        rows = []
        for (group, index), made in zip(wanted, method.edit_each(self.classifier, pictures, labels), strict=True):
            rows.append(EditRow(group.name, index, self._judged(group, index, made)))
        return rows

    def _judged(self, group: EditGroup, index: int, made: Edited) -> dict[str, float]:
        self._cache(made.layer)
        right = (self._logits(group.name, made.weights).argmax(dim=-1) == group.label).numpy()
        numbers = {
            "SR": success_rate(right, index),
            "GR": generalisation_rate(right, index),
            "GR_official": official_generalisation_rate(right),
        }
        for name in self._pictures:
            before, after = self._before[name], self._logits(name, made.weights)
            if name != "validation":
                numbers[name] = locality_rate(before.argmax(dim=-1), after.argmax(dim=-1))
                continue
            assert self._labels is not None
            labels = self._labels.cpu()
            right_before = before.argmax(dim=-1) == labels
            numbers["LR_right"] = locality_rate(labels[right_before], after.argmax(dim=-1)[right_before])
            numbers["accuracy_drop"] = accuracy_drop(before.argmax(dim=-1), after.argmax(dim=-1), labels)
            numbers["ECE"] = expected_calibration_error(after.softmax(dim=-1), labels)
            numbers["ECE_rise"] = numbers["ECE"] - expected_calibration_error(before.softmax(dim=-1), labels)
        return {**numbers, "steps": made.steps, "reached": float(made.reached), "parameters": made.parameters}

    def _cache(self, layer: int) -> None:
        """What enters a block, for all pictures; of one block at a time, since it is as large as they are."""
        if layer == self._layer:
            return
        everything = {**self._pictures, **{name: group.pixel_values for name, group in self.groups.items()}}
        self._hidden = {
            name: torch.cat([self.classifier.prefix(part, layer) for part in pixels.split(self._batch_size)])
            for name, pixels in everything.items()
        }
        self._layer = layer

    @torch.no_grad()
    def _logits(self, name: str, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """float32 [N, C] on the CPU."""
        parts = self._hidden[name].split(self._batch_size)
        return torch.cat([self.classifier.suffix(part, self._layer, weights).float().cpu() for part in parts])


def averages(rows: Sequence[EditRow], *, seed: int = 0) -> dict[str, MacroAverage]:
    """Macro average over groups of every number of the rows.

    Args:
        seed: of the bootstrap.
    """
    names = dict.fromkeys(name for row in rows for name in row.numbers)
    found = {}
    for name in names:
        values: dict[str, list[float]] = {}
        for row in rows:
            values.setdefault(row.group, []).append(row.numbers.get(name, math.nan))
        found[name] = macro_average(values, seed=seed)
    return found
