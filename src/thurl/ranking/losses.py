"""Fidelity losses: one minus the fidelity between a predicted and a true probability, for pairs, classes and labels.

Sources: the official losses of "Self-Supervised Learning for Detecting AI-Generated Faces as Anomalies"
(arXiv 2501.02207) and BLADES (arXiv 2507.22824): pairs, classes, focal classes, several labels; A-FINE
(arXiv 2503.11221) and SJEDD (arXiv 2408.16305) use the same functional on pairs and on marginals.

What holds for all of them:
- `eps` (1e-8) lies inside every square root, as officially: at a perfect prediction the loss is slightly negative
  (about -1e-4 for a decided pair). Clamp it where it is shown, not where it is trained.
- Computed in float32 at least, whatever the input and also under autocast; the result is a scalar of that dtype.
- A missing label (NaN, a negative class or truth value, or False in `mask`) takes part in nothing: it counts neither
  in the sum nor in the mean, and its gradient is exactly zero. Without any known label, or with fewer than two for
  pairs, the loss is 0 and still part of the graph. The official code divides by zero there.

Under data parallel training the mean must be that of the whole batch: gather logits or scores, and labels, with
`thurl.training.gather.gather_with_gradient` first.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from thurl.ranking.comparison import fidelity, preference_probability


if TYPE_CHECKING:
    import torch


__all__ = [
    "EPS",
    "binary_fidelity_loss",
    "class_fidelity_loss",
    "expected_level",
    "fidelity_loss",
    "log_fidelity_loss",
    "masked_mean",
    "multilabel_fidelity_loss",
    "pairwise_fidelity_loss",
]

EPS = 1e-8
"""Added inside every square root (official value of all four methods)."""


def masked_mean(values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over the known values; 0 with a graph and zero gradients when none is known.

    Args:
        values: any shape, floating. Values where `mask` is False may be anything, NaN included.
        mask: bool, broadcastable to `values`; None: all are known.
    """
    chosen = values.flatten() if mask is None else values[mask.expand_as(values)]
    return chosen.sum() / max(chosen.numel(), 1)


def fidelity_loss(
    p: torch.Tensor,
    g: torch.Tensor,
    *,
    complement: torch.Tensor | None = None,
    eps: float = EPS,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean of `1 - sqrt(p g + eps) - sqrt((1-p)(1-g) + eps)` over the known entries.

    Args:
        p: predicted probabilities in [0, 1], any shape, for example of A-FINE's pairs or SJEDD's marginals.
        g: true probabilities in [0, 1], broadcastable to `p`; NaN or negative: unknown.
        complement: 1 - p, see `thurl.ranking.fidelity`.
        eps: added inside both roots.
        mask: bool, broadcastable to `p`; False: unknown.

    Returns:
        Scalar in about [-1e-4, 1] (`eps` 1e-8).
    """
    p = _wide(p)
    g = g.to(p.dtype) if not g.is_floating_point() else _wide(g)
    known = _known(g, g >= 0, mask).expand_as(p)
    # Unknown entries get a harmless target first: a NaN that is only masked afterwards comes back as a NaN gradient.
    target = g.expand_as(p).masked_fill(~known, 0.5)
    return masked_mean(1 - fidelity(p, target, eps, None if complement is None else _wide(complement)), known)


def log_fidelity_loss(
    log_p: torch.Tensor,
    log_not_p: torch.Tensor,
    g: torch.Tensor,
    *,
    eps: float = 0.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`fidelity_loss` of probabilities that are given as logarithms, with both ends exact: SJEDD's marginals.

    With `eps` 0 the roots are halved exponents, so that no constant is needed: the loss lies in [0, 1], and the
    gradient with respect to a logarithm is finite everywhere.

    Args:
        log_p: log of the predicted probabilities, any shape, at most 0.
        log_not_p: log of 1 - p, of the same shape.
        g: true probabilities in [0, 1], broadcastable to `log_p`; NaN or negative: unknown.
        eps: added inside both roots (official: 1e-8).
        mask: bool, broadcastable to `log_p`; False: unknown.

    Returns:
        Scalar; 0 with a graph when nothing is known.
    """
    log_p, log_not_p = _wide(log_p), _wide(log_not_p)
    if eps:
        return fidelity_loss(log_p.exp(), g, complement=log_not_p.exp(), eps=eps, mask=mask)
    g = g.to(log_p.dtype)
    known = _known(g, g >= 0, mask).expand_as(log_p)
    target = g.expand_as(log_p).masked_fill(~known, 0.5)
    roots = target.sqrt() * (log_p / 2).exp() + (1 - target).sqrt() * (log_not_p / 2).exp()
    return masked_mean(1 - roots, known)


def pairwise_fidelity_loss(
    scores: torch.Tensor,
    labels: torch.Tensor,
    *,
    scale: float = math.sqrt(2) / 2,
    eps: float = EPS,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Learning to rank by raw labels: mean fidelity loss over all pairs i < j of a batch.

    `p_ij = (1 + erf((s_i - s_j) / scale)) / 2`, which is Thurstone's comparison with `scale^2 / 4` as the variance of
    each score: `sqrt(2) / 2` (variance 1/8, `Phi(2 d)`) in both EXIF papers, `sqrt(2)` (`Phi(d)`) in the later methods
    of the same group, 2 (`Phi(d / sqrt(2))`) in A-FINE. The target is 1, 0.5 or 0: is label i above, equal to, below
    label j. So labels may have any unit and any monotone scale.

    Args:
        scores: (N,) floating, higher for a higher label.
        labels: (N,) any numbers, infinities allowed (equal ones tie); NaN: unknown.
        scale: > 0, in units of the scores.
        eps: added inside both roots.
        mask: (N,) bool; False: unknown.

    Returns:
        Scalar; 0 with a graph when fewer than two labels are known. Needs about ten floats of memory per pair.

    Raises:
        ValueError: shapes that are not one-dimensional and equal, or a scale that is not positive.
    """
    import torch

    if scores.dim() != 1 or labels.shape != scores.shape:
        raise ValueError(
            f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)}: both must have the shape (N,)"
        )
    if not scale > 0:
        raise ValueError(f"scale is {scale}; it must be > 0")
    known = _known(labels, torch.ones_like(labels, dtype=torch.bool), mask)
    scores, labels = _wide(scores)[known], labels[known]
    first, second = torch.triu_indices(len(labels), len(labels), offset=1, device=scores.device)
    a, b = scores[first], scores[second]
    # Compared, not subtracted: the difference of two infinities would be NaN.
    above, below = labels[first] > labels[second], labels[first] < labels[second]
    target = 0.5 * (1 + above.to(a.dtype) - below.to(a.dtype))
    variance = scale**2 / 4
    p = preference_probability(a, b, variance, variance, eps=0.0)
    # The other order's probability is 1 - p without the rounding of a p near 1.
    return masked_mean(1 - fidelity(p, target, eps, preference_probability(b, a, variance, variance, eps=0.0)))


def binary_fidelity_loss(
    logits: torch.Tensor, labels: torch.Tensor, *, eps: float = EPS, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean fidelity loss of yes-or-no predictions `p = sigmoid(logit)`.

    Args:
        logits: any shape.
        labels: of the same shape, in [0, 1]; NaN or negative: unknown.
        eps, mask: as in `fidelity_loss`.
    """
    logits = _wide(logits)
    return fidelity_loss(logits.sigmoid(), labels, complement=(-logits).sigmoid(), eps=eps, mask=mask)


def multilabel_fidelity_loss(
    logits: torch.Tensor, labels: torch.Tensor, *, eps: float = EPS, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """`binary_fidelity_loss` for several labels per sample: mean over a sample's known labels, then over samples.

    A sample with one known label weighs as much as one with all of them; samples without any are left out.

    Args:
        logits: (N, L).
        labels: (N, L) in [0, 1]; NaN or negative: unknown.
        eps: added inside both roots.
        mask: bool, broadcastable to (N, L); False: unknown.
    """
    logits = _wide(logits)
    labels = labels.to(logits.dtype)
    known = _known(labels, labels >= 0, mask).expand_as(logits)
    target = labels.masked_fill(~known, 0.5)
    losses = (1 - fidelity(logits.sigmoid(), target, eps, (-logits).sigmoid())).masked_fill(~known, 0.0)
    counts = known.sum(dim=1)
    return masked_mean(losses.sum(dim=1) / counts.clamp_min(1), counts > 0)


def class_fidelity_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    gamma: float = 0.0,
    eps: float = EPS,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Fidelity loss of K classes, mean over samples of `1 - sum_k sqrt(softmax(logits)_k [k = label] + eps)`.

    `eps` stands in each of the K terms, so the smallest value is about `-K * 1e-4`. With `gamma > 0` each sample's
    loss is multiplied by `(1 - p_true)^gamma`, through which the gradient flows (BLADES: 2 for the camera tags).

    Args:
        logits: (N, K).
        labels: (N,) integers in [0, K); negative: unknown.
        gamma: focal exponent, 0 (none) or at least 1: below 1 the gradient is unbounded at a perfect prediction.
        eps: added inside each root.
        mask: (N,) bool; False: unknown.

    Raises:
        ValueError: shapes that do not fit, labels that are no integers, or `gamma` between 0 and 1 or negative.
    """
    import torch

    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}: they must have the shapes (N, K) and (N,)"
        )
    if labels.is_floating_point():
        raise ValueError(f"labels are {labels.dtype}; class labels are integers, negative where unknown")
    if gamma != 0 and not gamma >= 1:
        raise ValueError(f"gamma is {gamma}; it must be 0 (no focal factor) or at least 1")
    logits = _wide(logits)
    known = _known(labels, labels >= 0, mask)
    index = labels.masked_fill(~known, 0).long()[:, None]
    log_p = torch.log_softmax(logits, dim=1)
    losses = 1 - torch.sqrt(log_p.gather(1, index).squeeze(1).exp() + eps) - (logits.shape[1] - 1) * math.sqrt(eps)
    if gamma:
        others = log_p.scatter(1, index, -torch.inf)  # 1 - p_true as a sum: exact where p_true rounds to 1
        losses = losses * others.exp().sum(dim=1) ** gamma
    return masked_mean(losses, known)


def expected_level(logits: torch.Tensor) -> torch.Tensor:
    """Score of an ordinal quantity from the logits of its L levels, lowest first: `sum_k k softmax(logits)_k`.

    Args:
        logits: (..., L).

    Returns:
        (...,) in [1, L], float32 at least (BLADES, arXiv 2507.22824: three levels low, medium, high).
    """
    import torch

    logits = _wide(logits)
    levels = torch.arange(1, logits.shape[-1] + 1, dtype=logits.dtype, device=logits.device)
    return (logits.softmax(dim=-1) * levels).sum(dim=-1)


def _wide(values: torch.Tensor) -> torch.Tensor:
    """Half precision cannot tell 1 - p from 0 from p = 0.998 (bfloat16) on."""
    import torch

    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _known(labels: torch.Tensor, valid: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    known = valid & ~labels.isnan() if labels.is_floating_point() else valid
    return known if mask is None else known & mask
