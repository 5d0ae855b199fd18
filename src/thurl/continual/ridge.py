"""Mathematics of the closed-form learners: prototypes, random features, ridge regression, shared covariance.

RanPAC: "RanPAC: Random Projections and Pre-trained Models for Continual Learning" (arXiv 2307.02251); SimpleCIL:
"Revisiting Class-Incremental Learning with Pre-Trained Models" (arXiv 2303.07338). Float64 throughout: at small ridge
a float32 Gram matrix is no longer accurate.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from thurl.errors import UsageError


__all__ = [
    "RIDGE_GRID",
    "class_means",
    "cosine_logits",
    "one_hot",
    "random_features",
    "random_projection",
    "ridge_losses",
    "ridge_weights",
    "select_ridge",
    "shared_covariance_logits",
]

RIDGE_GRID = tuple(10.0**power for power in range(-8, 9))
"""Candidates of the ridge in the code of LAMDA-PILOT."""


def class_means(features: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Mean feature of each class, float64 [C, D].

    Args:
        features: [N, D].
        labels: class number of each row, int64 [N].
        classes: class numbers wanted, int64 [C], each with at least one row.
    """
    member = one_hot(labels, classes)
    return member.T @ features.double() / member.sum(dim=0)[:, None]


def one_hot(labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """float64 [N, C], 1 where row n has the class of column c."""
    return (labels[:, None] == classes[None, :]).double()


def cosine_logits(features: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """Cosine of each feature [N, D] with each prototype [C, D], float64 [N, C] in [-1, 1]; norms below 1e-12 count so.

    SimpleCIL's logits but for a positive factor, which no decision depends on.
    """
    f, p = features.double(), prototypes.double()
    f = f / f.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return f @ (p / p.norm(dim=1, keepdim=True).clamp_min(1e-12)).T


@functools.lru_cache(maxsize=2)
def random_projection(seed: int, dimension: int, width: int) -> torch.Tensor:
    """Standard normal matrix, float64 [dimension, width], one per seed; not to be changed in place."""
    # Copied into memory of torch's: products may depend on where in memory a matrix begins.
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((dimension, width))).clone()


def random_features(features: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """ReLU of the features [N, D] times the projection [D, width], float64 [N, width]."""
    return torch.relu(features.double() @ projection)


def ridge_weights(gram: torch.Tensor, targets: torch.Tensor, ridge: float) -> torch.Tensor:
    """(G + ridge I)^-1 Q by Cholesky, never by an inverse.

    Args:
        gram: G, float64 [width, width], symmetric.
        targets: Q, float64 [width, C].
        ridge: above 0.
    """
    regular = gram + ridge * torch.eye(len(gram), dtype=gram.dtype)
    factor, failed = torch.linalg.cholesky_ex(regular)
    # A Gram matrix of fewer samples than columns may lose its definiteness to rounding at a tiny ridge.
    return torch.linalg.solve(regular, targets) if int(failed) else torch.cholesky_solve(targets, factor)


def ridge_losses(
    hidden: torch.Tensor, targets: torch.Tensor, grid: tuple[float, ...] = RIDGE_GRID, share: float = 0.8
) -> torch.Tensor:
    """Mean squared error on the last rows after a fit on the first `share`, float64 [len(grid)].

    One eigendecomposition serves the whole grid, of the smaller of the Gram matrix and the matrix between samples.

    Args:
        hidden: random features, float64 [N, width].
        targets: float64 [N, C].

    Raises:
        UsageError: no row to fit or none to judge by.
    """
    cut = int(share * len(hidden))
    if not 0 < cut < len(hidden):
        raise UsageError(
            f"{len(hidden)} samples cannot be divided {share:g} to {1 - share:g}; the ridge needs 2 or more"
        )
    fit, held, y = hidden[:cut], hidden[cut:], targets[:cut]
    wide = fit.shape[1] > cut
    values, vectors = torch.linalg.eigh(fit @ fit.T if wide else fit.T @ fit)
    values = values.clamp_min(0)
    left = (held @ fit.T if wide else held) @ vectors
    right = vectors.T @ (y if wide else fit.T @ y)
    return torch.stack([((left / (values + ridge)) @ right - targets[cut:]).square().mean() for ridge in grid])


def select_ridge(
    hidden: torch.Tensor, targets: torch.Tensor, grid: tuple[float, ...] = RIDGE_GRID, share: float = 0.8
) -> float:
    """The ridge of `grid` with the least of `ridge_losses`, the first of equal ones."""
    return grid[int(ridge_losses(hidden, targets, grid, share).numpy().argmin())]


def shared_covariance_logits(
    features: torch.Tensor, means: torch.Tensor, scatter: torch.Tensor, count: int, ridge: float
) -> torch.Tensor:
    """Linear discriminant of classes with one covariance and equal priors, float64 [N, C].

    x' S m - m' S m / 2 with S the inverse of scatter/count + ridge I.

    Args:
        features: [N, D].
        means: float64 [C, D].
        scatter: float64 [D, D], sum over samples of the outer product of the distance from their class's mean.
        count: samples in it.
        ridge: above 0.
    """
    weights = ridge_weights(scatter / count, means.T, ridge)
    return features.double() @ weights - 0.5 * (means * weights.T).sum(dim=1)
