"""Many edits at once, each of one picture and with weights of its own: what `thurl.editing.edit` gives for each alone.

A benchmark makes hundreds of independent edits. The base model's layers run once for all their pictures, and each
edited layer adds the product with that picture's own change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from thurl.editing.classifier import Classifier
from thurl.editing.edit import EditSettings
from thurl.editing.meta_step import own_weights
from thurl.editing.updates import OPTIMIZERS, State
from thurl.errors import UsageError


__all__ = ["SeparateEdits", "edit_separately"]


@dataclass(frozen=True, eq=False)
class SeparateEdits:
    """Result of `edit_separately`.

    Args:
        changes: for each unit, what is added to its weight, [B, *shape of the weight]; zero outside the masks.
        steps: updates made, int64 [B].
        reached: bool [B], whether the stop rule is met.
    """

    changes: tuple[torch.Tensor, ...]
    steps: torch.Tensor
    reached: torch.Tensor


def edit_separately(
    classifier: Classifier,
    pixel_values: torch.Tensor,
    labels: torch.Tensor,
    masks: torch.Tensor,
    settings: EditSettings | None = None,
) -> SeparateEdits:
    """Edit each picture alone; the model itself stays as it is. Pictures that are right already get no change.

    Memory: about three times the weights of all units for each picture.

    Args:
        classifier: the model, in float32 or float64.
        pixel_values: [B, channels, H, W].
        labels: int64 [B], their right classes.
        masks: bool [B, T, M] of `classifier.units`, on any device.
        settings: default: those of the release.

    Raises:
        UsageError: shapes that do not fit, or a loss that is not finite.
    """
    settings = settings or EditSettings()
    if tuple(masks.shape) != (len(pixel_values), *classifier.mask_shape) or labels.shape != masks.shape[:1]:
        raise UsageError(
            f"masks of shape {list(masks.shape)} and labels of shape {list(labels.shape)} for {len(pixel_values)} "
            f"pictures; the units need {[len(pixel_values), *classifier.mask_shape]} and {[len(pixel_values)]}"
        )
    masks = masks.to(pixel_values.device)
    layer = classifier.first_layer
    hidden = classifier.prefix(pixel_values, layer)
    weights = [classifier.linear[unit.parameter].weight for unit in classifier.units]
    changes = [weight.new_zeros(len(labels), *weight.shape).requires_grad_() for weight in weights]
    states: list[State] = [() for _ in changes]
    steps = torch.zeros_like(labels)
    reached = done = torch.zeros_like(labels, dtype=torch.bool)
    for step in range(settings.max_steps + 1):
        with torch.enable_grad(), own_weights(classifier, changes):
            logits = classifier.suffix(hidden, layer)
            losses = functional.cross_entropy(logits, labels, reduction="none")
        if not losses.isfinite().all():
            raise UsageError(f"a loss is not finite at step {step}; lower the rate, or check the pictures")
        right = logits.argmax(dim=-1) == labels
        reached = right & (losses <= settings.stop_loss)
        done = done | reached | (right if not step else reached)
        if step == settings.max_steps or done.all():
            break
        gradients = torch.autograd.grad(losses.sum(), changes)
        with torch.no_grad():
            steps += ~done
            for row, (unit, change, gradient) in enumerate(zip(classifier.units, changes, gradients, strict=True)):
                chosen = (masks[:, row] & ~done[:, None]).repeat(1, unit.groups).unsqueeze(2 - unit.axis)
                whole = gradient + settings.l1 * change.sign() + settings.l2 * change
                move, states[row] = OPTIMIZERS[settings.optimizer](whole, states[row], step + 1, settings.rate)
                change += move * chosen
    return SeparateEdits(tuple(change.detach() for change in changes), steps, reached)
