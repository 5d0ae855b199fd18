"""Search for the mask of each pseudo-failure: what the hypernetwork learns from, batched over the pictures.

"Learning Where to Edit Vision Transformers" (NeurIPS 2024, arXiv 2411.01948), with the details of its official code.
For picture i with masks m_i = sigmoid(10 u_i) of the weights W:

    inner: delta_i = 0; `inner_steps` times delta_i -= inner_rate * dL_i/dW at W + m_i delta_i
    outer: L_out = sum_i L_i(W + m_i delta_i) + penalty * sum |m_i|, delta_i constant; one RMSprop step on u
    L_i = T^2 KL(softmax(o_i / T) || softmax(logits_i / T)), o_i of the clean picture, logits_i of the mixed one

`outer_steps` times; labels are sigmoid(3 u_i). First order only: the gradient of L_out reaches u through the last
product m_i delta_i alone.

Every picture has weights of its own: the base model's layers run once for the batch, and each edited layer adds
x (m_i delta_i)^T by one batched product. Only what lies behind the first edited block is computed, from activations
that are computed once. Nothing is written into the base model, not even gradients.

Deliberate differences: the penalty is one number per entry of a mask, not divided by the size of the batch (official:
1 / (8 * 6 * 3072)); `locality` is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from thurl.editing.classifier import Classifier
from thurl.editing.units import Unit
from thurl.errors import UsageError


__all__ = [
    "OFFICIAL_PENALTY",
    "MaskSearch",
    "SearchSettings",
    "gradient_norms",
    "label_masks",
    "own_weights",
    "pseudo_loss",
    "search_masks",
]

OFFICIAL_PENALTY = 1 / (8 * 6 * 3072)
"""Per entry: the official weight 1 of the mean over 8 pictures, 6 rows and 3072 neurons."""
_SEARCH_STEEPNESS, _LABEL_STEEPNESS = 10.0, 3.0


@dataclass(frozen=True)
class SearchSettings:
    """How masks are searched. The defaults are official, for ViT-B/16.

    Args:
        inner_steps, inner_rate: steps of the update that a mask is judged by, and their rate.
        outer_steps, outer_rate: RMSprop steps on u, and their rate.
        penalty: per entry of a mask.
        temperature: T.
        locality: weight of the same loss on the clean next picture of the batch under the update of this one; 0 is
            the paper's method.

    Raises:
        UsageError: a number outside its range.
    """

    inner_steps: int = 5
    inner_rate: float = 1e-3
    outer_steps: int = 10
    outer_rate: float = 0.1
    penalty: float = OFFICIAL_PENALTY
    temperature: float = 5.0
    locality: float = 0.0

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)}; it must be 1 or more"
            for name in ("inner_steps", "outer_steps")
            if getattr(self, name) < 1
        ]
        for name in ("inner_rate", "outer_rate", "temperature"):
            if not getattr(self, name) > 0:
                problems.append(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("penalty", "locality"):
            if not getattr(self, name) >= 0:
                problems.append(f"{name} is {getattr(self, name)}; it must not be negative")
        if problems:
            raise UsageError(problems)


@dataclass(frozen=True)
class MaskSearch:
    """What a search found.

    Attributes:
        scores: u after the last step, (B, T, M).
        labels: sigmoid(3 u), (B, T, M), in (0, 1).
        unedited: L_i without an update, (B,).
        edited: L_i at the masks that the last outer step began with, (B,).
    """

    scores: torch.Tensor
    labels: torch.Tensor
    unedited: torch.Tensor
    edited: torch.Tensor


def pseudo_loss(teacher: torch.Tensor, logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(logits / T)) of each row, (B,) from (B, C) both, not negative."""
    wanted = functional.log_softmax(teacher / temperature, dim=-1)
    found = functional.log_softmax(logits / temperature, dim=-1)
    return temperature**2 * functional.kl_div(found, wanted, reduction="none", log_target=True).sum(dim=-1)


def label_masks(scores: torch.Tensor) -> torch.Tensor:
    """Soft labels of the hypernetwork from u, of any shape."""
    return torch.sigmoid(_LABEL_STEEPNESS * scores)


def search_masks(
    classifier: Classifier,
    mixed: torch.Tensor,
    clean: torch.Tensor,
    settings: SearchSettings,
    *,
    start: torch.Tensor,
) -> MaskSearch:
    """Search a mask for each picture, over the units of the classifier.

    Args:
        classifier: the base model.
        mixed: pseudo-failures, (B, 3, H, W), as the base model reads them.
        clean: the pictures that they were made of, of the same shape.
        settings: steps, rates and weights.
        start: u, (B, T, M), drawn from U(-1, 1) officially; left as it is.

    Raises:
        UsageError: shapes that do not fit.
    """
    wanted = (len(mixed), *classifier.mask_shape)
    if tuple(start.shape) != wanted or mixed.shape != clean.shape:
        raise UsageError(
            f"start is {tuple(start.shape)}, mixed {tuple(mixed.shape)}, clean {tuple(clean.shape)}; start must be "
            f"{wanted}, and both sets of pictures of one shape"
        )
    units, first = classifier.units, classifier.first_layer
    with torch.no_grad():
        hidden, intact = classifier.prefix(mixed, first), classifier.prefix(clean, first)
        teacher = classifier.suffix(intact, first)

    def losses(inputs: torch.Tensor, wanted: torch.Tensor, updates: Sequence[torch.Tensor]) -> torch.Tensor:
        with own_weights(classifier, updates):
            return pseudo_loss(wanted, classifier.suffix(inputs, first), settings.temperature)

    def gradients(updates: Sequence[torch.Tensor]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        leaves = [update.requires_grad_() for update in updates]
        values = losses(hidden, teacher, leaves)
        return values.detach(), torch.autograd.grad(values.sum(), leaves)

    scores = start.detach().clone().requires_grad_()
    optimizer = torch.optim.RMSprop([scores], lr=settings.outer_rate)
    with torch.enable_grad():
        # Without an update yet, the first inner step is the same whatever the mask.
        unedited, first_gradients = gradients(_zeros(classifier, len(mixed)))
        edited = unedited
        for _ in range(settings.outer_steps):
            masks = torch.sigmoid(_SEARCH_STEEPNESS * scores)
            fixed = _spread(masks.detach(), units)
            deltas = [-settings.inner_rate * gradient for gradient in first_gradients]
            for _ in range(settings.inner_steps - 1):
                _, found = gradients([mask * delta for mask, delta in zip(fixed, deltas, strict=True)])
                for delta, gradient in zip(deltas, found, strict=True):
                    delta.sub_(gradient, alpha=settings.inner_rate)
            updates = [mask * delta for mask, delta in zip(_spread(masks, units), deltas, strict=True)]
            values = losses(hidden, teacher, updates)
            edited = values.detach()
            outer = values.sum() + settings.penalty * masks.sum()
            if settings.locality:
                others = losses(intact.roll(-1, 0), teacher.roll(-1, 0), updates)
                outer = outer + settings.locality * others.sum()
            (scores.grad,) = torch.autograd.grad(outer, [scores])
            optimizer.step()
    found_scores = scores.detach()
    return MaskSearch(found_scores, label_masks(found_scores), unedited, edited)


def gradient_norms(classifier: Classifier, pictures: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Norm of the gradient of the cross-entropy in each neuron's weights, of each picture alone.

    `thurl.editing.masks.gradient_scores` is that of the mean over the pictures, scaled.

    Args:
        classifier: the base model.
        pictures: (B, 3, H, W).
        labels: int64 (B,).

    Returns:
        (B, T, M), not negative, without a graph.
    """
    first = classifier.first_layer
    hidden = classifier.prefix(pictures, first)
    with torch.enable_grad():
        leaves = [update.requires_grad_() for update in _zeros(classifier, len(pictures))]
        with own_weights(classifier, leaves):
            loss = functional.cross_entropy(classifier.suffix(hidden, first), labels, reduction="sum")
        found = torch.autograd.grad(loss, leaves)
    rows = []
    for unit, gradient in zip(classifier.units, found, strict=True):
        squares = gradient.square().sum(dim=2 - unit.axis)
        rows.append(squares.unflatten(1, (unit.groups, unit.size)).sum(dim=1).sqrt())
    return torch.stack(rows, dim=1)


@contextmanager
def own_weights(classifier: Classifier, updates: Sequence[torch.Tensor]) -> Iterator[None]:
    """Inside, row b of a batch sees the weights of every unit plus `updates[t][b]`.

    Args:
        classifier: its layers are hooked as long as this lasts, and not changed.
        updates: of each unit, (B, *shape of the weight); gradients flow into them.
    """
    layers = classifier.linear
    handles = [
        layers[unit.parameter].register_forward_hook(_adding(update))
        for unit, update in zip(classifier.units, updates, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(update: torch.Tensor) -> Any:
    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(output, inputs[0], update.transpose(1, 2))

    return hook


def _zeros(classifier: Classifier, count: int) -> list[torch.Tensor]:
    weights = [classifier.linear[unit.parameter].weight for unit in classifier.units]
    return [weight.new_zeros(count, *weight.shape) for weight in weights]


def _spread(masks: torch.Tensor, units: Sequence[Unit]) -> list[torch.Tensor]:
    """Masks (B, T, M) as factors of each unit's weights, (B, rows, 1) or (B, 1, columns)."""
    return [masks[:, row].repeat(1, unit.groups).unsqueeze(2 - unit.axis) for row, unit in enumerate(units)]
