"""Distances between a restored picture and its target; pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional


__all__ = ["charbonnier", "cosine_distance", "feature_distance", "l1"]


def charbonnier(restored: torch.Tensor, target: torch.Tensor, eps: float = 1e-3) -> torch.Tensor:
    """Mean of `sqrt((x - y)^2 + eps^2) - eps`: quadratic below `eps`, absolute above, 0 for equal pictures.

    Charbonnier et al., "Two deterministic half-quadratic regularization algorithms for computed imaging" (1994).

    Args:
        restored, target: same shape, pixels in [0, 1]; computed in float32 or better.
        eps: above 0, in units of the pixels.
    """
    wide = torch.promote_types(restored.dtype, torch.float32)
    return ((restored.to(wide) - target.to(wide)).square() + eps * eps).sqrt().mean() - eps


def l1(restored: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference; shapes as in `charbonnier`."""
    wide = torch.promote_types(restored.dtype, torch.float32)
    return (restored.to(wide) - target.to(wide)).abs().mean()


def feature_distance(restored: Sequence[torch.Tensor], target: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over layers of the mean absolute difference of features that have length 1 at every position.

    Perceptual loss (Johnson et al., arXiv 1603.08155) on normalised features, so that no layer outweighs the others.

    Args:
        restored, target: per layer (B, C, ...), channels second.

    Returns:
        scalar, 0 for equal features.

    Raises:
        ValueError: no layer, or not the same layers in both.
    """
    if not restored or len(restored) != len(target):
        raise ValueError(f"{len(restored)} and {len(target)} layers: both need the same ones, at least one")
    parts = []
    for ours, theirs in zip(restored, target, strict=True):
        wide = torch.promote_types(ours.dtype, torch.float32)
        # Times the root of the channels: the mean difference then does not shrink with the width.
        scale = ours.shape[1] ** 0.5
        parts.append(
            scale
            * (functional.normalize(ours.to(wide), dim=1) - functional.normalize(theirs.to(wide), dim=1)).abs().mean()
        )
    return torch.stack(parts).mean()


def cosine_distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Mean of `1 - cos` over the rows of (B, D) embeddings, in [0, 2]."""
    wide = torch.promote_types(first.dtype, torch.float32)
    return 1 - functional.cosine_similarity(first.to(wide), second.to(wide), dim=1).mean()
