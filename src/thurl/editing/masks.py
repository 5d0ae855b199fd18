"""Which neurons an edit may change.

A soft mask is float [T, M] in [0, 1], a score of each neuron of each unit; a mask is the bool tensor of the best of
them. Paper: "Learning Where to Edit Vision Transformers" (arXiv 2411.01948) and its released code.

Different from the release: exactly k neurons are kept. It keeps what is strictly greater than the k-th largest score,
hence k - 1 neurons, fewer where scores tie and none where k of them are saturated; `compat_strict_gt` does the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional

from thurl.editing.classifier import Classifier
from thurl.errors import UsageError


__all__ = [
    "FixedMask",
    "GradientMask",
    "HybridMask",
    "MaskSource",
    "RandomMask",
    "binarise",
    "describe_density",
    "gradient_scores",
    "hybrid_scores",
    "mask_iou",
    "mean_scores",
    "neurons_of",
    "random_mask",
]


class MaskSource(Protocol):
    """Anything that scores the neurons of a classifier for some failing pictures."""

    def scores(self, classifier: Classifier, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Soft mask float32 [T, M] in [0, 1] of `classifier.units`, one for all pictures.

        Args:
            pixel_values: [B, channels, H, W].
            labels: int64 [B], the right classes.
        """
        ...


def binarise(soft: torch.Tensor, density: float, compat_strict_gt: bool = False) -> torch.Tensor:
    """The highest scores of a soft mask, over all units together.

    Args:
        soft: float [T, M], or [B, T, M], whose mean over B counts.
        density: share of the T * M neurons that is kept, in (0, 1]; the papers' sparsity is 1 - density.
        compat_strict_gt: the released rule: k = int(density * T * M), and what is greater than the k-th score stays.

    Returns:
        bool [T, M] with exactly k = max(1, round(density * T * M)) neurons; among equal scores those of the lowest
        flat index.

    Raises:
        UsageError: a density out of range, scores that are NaN, of another shape, or so few that the released rule
            has no k-th.
    """
    if not 0 < density <= 1:
        raise UsageError(f"density {density}: the share of neurons to edit must be in (0, 1]")
    if soft.dim() not in (2, 3) or not soft.numel():
        raise UsageError(f"a soft mask of shape {list(soft.shape)}: it must be [T, M] or [B, T, M]")
    soft = soft.detach().float()
    if soft.isnan().any():
        raise UsageError(f"a soft mask with {int(soft.isnan().sum())} NaN scores; every neuron needs a number")
    mean = soft if soft.dim() == 2 else soft.mean(dim=0)
    flat = mean.reshape(-1)
    order = torch.argsort(flat, descending=True, stable=True)
    if compat_strict_gt:
        count = int(density * flat.numel())
        if not count:
            raise UsageError(f"density {density} of {flat.numel()} neurons is none of them; raise it")
        return mean > flat[order[count - 1]]
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[order[: neurons_of(density, flat.numel())]] = True
    return mask.reshape(mean.shape)


def neurons_of(density: float, total: int) -> int:
    """Number of neurons in a mask: max(1, round(density * total))."""
    return max(1, round(density * total))


def describe_density(mask: torch.Tensor) -> str:
    """`46 of 920 neurons, density 0.05 (sparsity 0.95)`."""
    kept, total = int(mask.sum()), mask.numel()
    density = kept / total
    return f"{kept} of {total} neurons, density {density:.4g} (sparsity {1 - density:.4g})"


def mask_iou(first: torch.Tensor, second: torch.Tensor) -> float:
    """Neurons in both masks [T, M] over neurons in either, in [0, 1]; NaN where both are empty.

    Two random masks of density d have about d / (2 - d).
    """
    either = int((first | second).sum())
    return int((first & second).sum()) / either if either else float("nan")


def random_mask(shape: Sequence[int], density: float, seed: int) -> torch.Tensor:
    """Mask [T, M] of neurons drawn without replacement; the same for the same seed."""
    return binarise(_random_scores(shape, seed), density)


def gradient_scores(classifier: Classifier, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Norm of the gradient of the cross-entropy for each neuron's row or column, over the largest: [T, M] in [0, 1].

    One backward pass of the mean cross-entropy of the given pictures; all zeros where no gradient is left.

    Args:
        pixel_values: [B, channels, H, W].
        labels: int64 [B].

    Raises:
        UsageError: the gradient is not finite.
    """
    layer = classifier.first_layer
    hidden = classifier.prefix(pixel_values, layer)
    weights = {name: module.weight.detach().requires_grad_() for name, module in classifier.linear.items()}
    with torch.enable_grad():
        loss = functional.cross_entropy(classifier.suffix(hidden, layer, weights).float(), labels)
        gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    rows = []
    for unit in classifier.units:
        squares = gradients[unit.parameter].float().square().sum(dim=1 - unit.axis)
        rows.append(squares.reshape(unit.groups, unit.size).sum(dim=0).sqrt())
    norms = torch.stack(rows)
    if not norms.isfinite().all():
        raise UsageError("the gradient of the loss is not finite; check the pictures and the model's weights")
    largest = norms.max()
    return norms / largest if largest > 0 else norms


def hybrid_scores(*scores: torch.Tensor) -> torch.Tensor:
    """Product of soft masks [T, M], each over its largest score, so that none sets the scale."""
    product = torch.ones_like(scores[0])
    for one in scores:
        largest = one.max()
        product = product * (one / largest if largest > 0 else one)
    return product


def mean_scores(
    source: MaskSource, classifier: Classifier, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Average of the soft masks of single pictures, [T, M]: what is left without the picture at hand.

    Args:
        batches: pairs of pictures [B, channels, H, W] and labels int64 [B].

    Raises:
        UsageError: no pictures.
    """
    total, count = torch.zeros(classifier.mask_shape, dtype=torch.float64), 0
    for pixel_values, labels in batches:
        for index in range(len(labels)):
            one = slice(index, index + 1)
            total += source.scores(classifier, pixel_values[one], labels[one]).double().cpu()
            count += 1
    if not count:
        raise UsageError("no pictures to average masks over; give at least one")
    return (total / count).float()


@dataclass(frozen=True)
class RandomMask:
    """Scores uniform in [0, 1), the same for the same seed and shape.

    Args:
        seed: of the draw.
        per_picture: other scores for other pictures, so that no single lucky or unlucky draw decides a comparison;
            the same ones whatever the pictures otherwise.
    """

    seed: int = 0
    per_picture: bool = False

    def scores(self, classifier: Classifier, pixel_values: torch.Tensor, labels: Any) -> torch.Tensor:
        if not self.per_picture:
            return _random_scores(classifier.mask_shape, self.seed)
        content = pixel_values.detach().cpu().float().numpy().tobytes()
        digest = hashlib.sha256(f"{self.seed}\0".encode() + content).digest()
        return _random_scores(classifier.mask_shape, int.from_bytes(digest[:6], "big"))


class GradientMask:
    """`gradient_scores`: needs the label and one backward pass, no training."""

    def scores(self, classifier: Classifier, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return gradient_scores(classifier, pixel_values, labels)


@dataclass(frozen=True, eq=False)
class FixedMask:
    """The same scores for all pictures, such as those of `mean_scores`.

    Args:
        soft: float [T, M].
    """

    soft: torch.Tensor

    def scores(self, classifier: Classifier, pixel_values: Any, labels: Any) -> torch.Tensor:
        if tuple(self.soft.shape) != classifier.mask_shape:
            raise UsageError(
                f"scores of shape {list(self.soft.shape)} for units of shape {list(classifier.mask_shape)}; they "
                "belong to other units"
            )
        return self.soft


@dataclass(frozen=True)
class HybridMask:
    """`hybrid_scores` of several sources, such as a hypernetwork and the gradient.

    Args:
        sources: one or more.
    """

    sources: tuple[MaskSource, ...]

    def scores(self, classifier: Classifier, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        scores = [source.scores(classifier, pixel_values, labels) for source in self.sources]
        return hybrid_scores(*(one.to(pixel_values.device) for one in scores))


def _random_scores(shape: Sequence[int], seed: int) -> torch.Tensor:
    return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(seed))
