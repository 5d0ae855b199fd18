"""Editors behind one interface: what a benchmark needs to know of a method is the weights it leaves.

The method of the paper is a mask from any source (`MaskedEditing`); `FineTuning` is the same without a mask, and with
a penalty on the change the paper's baseline. Low-rank changes and extra neurons are in `thurl.editing.baselines`.

Different from the released baseline: its first step is plain gradient descent, ours is RMSprop from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from thurl.editing.classifier import Classifier
from thurl.editing.edit import EditSettings
from thurl.editing.masks import MaskSource, binarise
from thurl.editing.separate import edit_separately
from thurl.editing.thresholds import above
from thurl.editing.updates import OPTIMIZERS, State


__all__ = ["EditMethod", "Edited", "FineTuning", "MaskedEditing", "descend"]


@dataclass(frozen=True, eq=False)
class Edited:
    """What a method leaves; the model itself is as before.

    Args:
        weights: the changed weights as whole matrices, by full name; for `Classifier.suffix`. Empty where nothing was
            changed.
        layer: first block with a change.
        steps: updates made.
        reached: the stop rule is met.
        parameters: numbers that were free to change.
    """

    weights: Mapping[str, torch.Tensor]
    layer: int
    steps: int
    reached: bool
    parameters: int


class EditMethod(Protocol):
    """Anything that makes failing pictures right."""

    def edit_each(self, classifier: Classifier, pixel_values: torch.Tensor, labels: torch.Tensor) -> Iterator[Edited]:
        """Edit the base model on each picture alone, in order; the same again for the same pictures.

        Args:
            pixel_values: [B, channels, H, W].
            labels: int64 [B], their right classes.
        """
        ...


@dataclass(frozen=True)
class MaskedEditing:
    """Fine-tuning of the neurons of a mask.

    Args:
        source: scores the neurons for each picture.
        density: share of them that is edited.
        settings: of the edit.
        together: edits computed at a time; memory grows with it, results do not change.
        threshold: of `thurl.editing.thresholds.common_threshold`: edits the neurons that score at least this, more of
            them in one picture than in another, in place of the share.
    """

    source: MaskSource
    density: float
    settings: EditSettings = EditSettings()
    together: int = 8
    threshold: float | None = None

    def edit_each(self, classifier: Classifier, pixel_values: torch.Tensor, labels: torch.Tensor) -> Iterator[Edited]:
        def mask(picture: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            soft = self.source.scores(classifier, picture, label)
            return binarise(soft, self.density) if self.threshold is None else above(soft, self.threshold)

        return _edit_each(classifier, pixel_values, labels, mask, self.settings, self.together)


@dataclass(frozen=True)
class FineTuning:
    """Fine-tuning of all units; `l1` and `l2` of the settings penalise the change.

    Args:
        settings, together: as `MaskedEditing`.
    """

    settings: EditSettings = EditSettings()
    together: int = 8

    def edit_each(self, classifier: Classifier, pixel_values: torch.Tensor, labels: torch.Tensor) -> Iterator[Edited]:
        def mask(picture: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return torch.ones(classifier.mask_shape, dtype=torch.bool, device=picture.device)

        return _edit_each(classifier, pixel_values, labels, mask, self.settings, self.together)


def _edit_each(
    classifier: Classifier,
    pixel_values: torch.Tensor,
    labels: torch.Tensor,
    mask: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    settings: EditSettings,
    together: int,
) -> Iterator[Edited]:
    for pictures, classes in zip(pixel_values.split(together), labels.split(together), strict=True):
        singles = zip(pictures.split(1), classes.split(1), strict=True)
        masks = torch.stack([mask(picture, label) for picture, label in singles])
        found = edit_separately(classifier, pictures, classes, masks, settings)
        for index, steps in enumerate(found.steps.tolist()):
            weights = {
                unit.parameter: classifier.linear[unit.parameter].weight.detach() + change[index]
                for unit, change in zip(classifier.units, found.changes, strict=True)
            }
            yield Edited(
                weights if steps else {},
                classifier.first_layer,
                steps,
                bool(found.reached[index]),
                sum(
                    int(row.sum()) * unit.groups * classifier.linear[unit.parameter].weight.shape[1 - unit.axis]
                    for unit, row in zip(classifier.units, masks[index], strict=True)
                ),
            )


def descend(
    leaves: Sequence[torch.Tensor], logits: Callable[[], torch.Tensor], labels: torch.Tensor, settings: EditSettings
) -> tuple[int, bool]:
    """Update tensors in place until the pictures are right, by the stop rule of `thurl.editing.edit`.

    Args:
        leaves: require gradients.
        logits: [B, C] at their present values.
        labels: int64 [B].
        settings: its penalties are taken on the leaves.

    Returns:
        Updates made, and whether the stop rule is met.
    """
    states: list[State] = [() for _ in leaves]
    for step in range(settings.max_steps + 1):
        values = logits().float()
        loss = functional.cross_entropy(values, labels)
        reached = loss.item() <= settings.stop_loss and bool((values.argmax(dim=-1) == labels).all())
        if reached or step == settings.max_steps:
            return step, reached
        gradients = torch.autograd.grad(loss, list(leaves))
        with torch.no_grad():
            for index, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True)):
                whole = gradient + settings.l1 * leaf.sign() + settings.l2 * leaf
                move, states[index] = OPTIMIZERS[settings.optimizer](whole, states[index], step + 1, settings.rate)
                leaf += move
    raise AssertionError("the last step returns")
