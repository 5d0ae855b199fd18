"""Alignment of adapters before their factors are averaged.

`B A` does not change under `B -> B P`, `A -> P^-1 A` with an invertible r x r matrix P, the mean of factors does. With
one P per adapter (the first keeps the identity) the fused update is `(sum w_i B_i P_i) (sum w_i P_i^-1 A_i)`, and the
P are chosen so that it comes close to the mean update `sum w_i B_i A_i`. The paper of CoTo (arXiv 2506.05713) reports
this under its merging variants and says only what is minimised; how is ours:

- With `Bc = [B_1 ... B_n]` and `Ac = [A_1; ...; A_n]` the difference of the two updates is `Bc C Ac`, and C (nr x nr)
  depends on the P alone. So the squared Frobenius distance is `tr(C^T Gb C Ga)` with the Gram matrices `Gb = Bc^T Bc`,
  `Ga = Ac Ac^T`: nothing of size out x in is ever built, and all modules of one rank are solved as one batch.
- P moves by `P exp(X)`, `P^-1` by `exp(-X) P^-1`: it stays invertible, and the inverse is never computed.
- L-BFGS with a line search that only accepts a decrease, from several starts of which the identity (plain fusion) is
  one: the result is never worse than fusion.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


__all__ = ["Alignment", "align_factors", "alignment_objective"]

_MAX_CONDITION = 1e4  # of each P: beyond it the fused factors are large and cancel, which float32 does not survive


@dataclass(frozen=True)
class Alignment:
    """Result for a batch of m modules with n adapters of rank r.

    Attributes:
        p, q: (m, n, r, r) float64, `q` the inverses; the first adapter has the identity.
        objective: (m,) squared Frobenius distance of fused and mean update.
        fusion: (m,) the same without alignment.
    """

    p: torch.Tensor
    q: torch.Tensor
    objective: torch.Tensor
    fusion: torch.Tensor


def alignment_objective(
    gb: torch.Tensor, ga: torch.Tensor, weights: torch.Tensor, p: torch.Tensor, q: torch.Tensor
) -> torch.Tensor:
    """Squared Frobenius distance `||sum w_i B_i P_i sum w_j Q_j A_j - sum w_i B_i A_i||^2`, (m,).

    Args:
        gb, ga: (m, n r, n r) Gram matrices of the stacked factors.
        weights: (n,).
        p, q: (m, n, r, r).
    """
    c, _, _ = _difference(weights, p, q)
    return ((gb @ c @ ga) * c).sum(dim=(-2, -1))


def align_factors(
    gb: torch.Tensor, ga: torch.Tensor, weights: torch.Tensor, *, steps: int = 500, history: int = 10
) -> Alignment:
    """Fit one matrix per adapter and module.

    Args:
        gb, ga: (m, n r, n r) float64 Gram matrices of `[B_1 ... B_n]` and `[A_1; ...; A_n]`.
        weights: (n,) of the adapters.
        steps: at most so many iterations per start.
        history: pairs L-BFGS keeps.
    """
    m, width, _ = gb.shape
    n = len(weights)
    r = width // n
    # The problem does not change under Gb -> c Gb; unit scale makes one tolerance fit all modules.
    scale_b = gb.diagonal(dim1=-2, dim2=-1).mean(dim=-1).clamp_min(1e-300)[:, None, None]
    scale_a = ga.diagonal(dim1=-2, dim2=-1).mean(dim=-1).clamp_min(1e-300)[:, None, None]
    gb, ga = gb / scale_b, ga / scale_a
    starts = _starts(gb, ga, n, r)
    k = len(starts)
    p = torch.cat([start[0] for start in starts])
    q = torch.cat([start[1] for start in starts])
    best_p, best_q, value = _descend(gb.repeat(k, 1, 1), ga.repeat(k, 1, 1), weights, p, q, steps, history)
    choice = value.view(k, m).argmin(dim=0) * m + torch.arange(m)
    eye = _identity(m, n, r, gb)
    scale = (scale_b * scale_a)[:, 0, 0]
    return Alignment(
        p=best_p[choice],
        q=best_q[choice],
        objective=value[choice].clamp_min(0) * scale,
        fusion=alignment_objective(gb, ga, weights, eye, eye).clamp_min(0) * scale,
    )


def _identity(m: int, n: int, r: int, like: torch.Tensor) -> torch.Tensor:
    return torch.eye(r, dtype=like.dtype).expand(m, n, r, r).clone()


def _difference(
    weights: torch.Tensor, p: torch.Tensor, q: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """C (m, nr, nr), the stacked `w_i P_i` (m, nr, r) and `w_i Q_i` (m, r, nr)."""
    m, n, r, _ = p.shape
    tall = (weights[:, None, None] * p).reshape(m, n * r, r)
    flat = (weights[:, None, None] * q).permute(0, 2, 1, 3).reshape(m, r, n * r)
    return tall @ flat - torch.diag(weights.repeat_interleave(r)), tall, flat


def _gradient(
    gb: torch.Tensor, ga: torch.Tensor, weights: torch.Tensor, p: torch.Tensor, q: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Objective (m,) and its derivative (m, n, r, r) with respect to X in `P_i exp(X_i)`; 0 for the first adapter."""
    m, n, r, _ = p.shape
    c, tall, flat = _difference(weights, p, q)
    h = gb @ c @ ga
    w = weights[:, None, None]
    right = (h @ flat.mT).view(m, n, r, r)
    left = (tall.mT @ h).view(m, r, n, r).permute(0, 2, 1, 3)
    gradient = 2 * w * (p.mT @ right - left @ q.mT)
    gradient[:, 0] = 0
    return (h * c).sum(dim=(-2, -1)), gradient


def _starts(gb: torch.Tensor, ga: torch.Tensor, n: int, r: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Identity, best rotation, least squares on the B and on the A side; each (m, n, r, r) with its inverse."""
    m = gb.shape[0]
    blocks_b = gb.view(m, n, r, n, r).permute(0, 1, 3, 2, 4)
    blocks_a = ga.view(m, n, r, n, r).permute(0, 1, 3, 2, 4)
    b_i1, b_ii = blocks_b[:, :, 0], blocks_b[:, torch.arange(n), torch.arange(n)]
    a_1i, a_i1 = blocks_a[:, 0], blocks_a[:, :, 0]
    a_ii = blocks_a[:, torch.arange(n), torch.arange(n)]
    eye = _identity(m, n, r, gb)
    u, _, vh = torch.linalg.svd(b_i1 + a_i1)
    rotation = u @ vh
    ridge = 1e-6 * eye
    by_b = torch.linalg.solve(b_ii + ridge, b_i1)  # P_i minimises ||B_1 - B_i P_i||
    by_a = torch.linalg.solve(a_ii + ridge, a_1i.mT).mT  # Q_i minimises ||A_1 - Q_i A_i||
    starts = [(eye, eye), (rotation, rotation.mT)]
    for matrix, inverted in ((by_b, False), (by_a, True)):
        # Adapters that share nothing give a matrix near singular; the identity stands in for it.
        usable = torch.linalg.cond(matrix) < _MAX_CONDITION / 10
        matrix = torch.where(usable[..., None, None], matrix, eye)
        other = torch.linalg.inv(matrix)
        starts.append((other, matrix) if inverted else (matrix, other))
    for p, q in starts:
        p[:, 0] = q[:, 0] = eye[:, 0]
    return starts


def _descend(
    gb: torch.Tensor,
    ga: torch.Tensor,
    weights: torch.Tensor,
    p: torch.Tensor,
    q: torch.Tensor,
    steps: int,
    history: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Batched L-BFGS over X in `P exp(X)`; every accepted step decreases the objective of its module."""
    value, gradient = _gradient(gb, ga, weights, p, q)
    pairs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    running = torch.ones_like(value, dtype=torch.bool)
    for _ in range(steps):
        direction = _direction(gradient, pairs)
        slope = _dot(gradient, direction)
        uphill = slope >= 0
        direction = torch.where(uphill[:, None, None, None], -gradient, direction)
        slope = torch.where(uphill, -_dot(gradient, gradient), slope)
        # exp() of a long step overflows before the line search can refuse it.
        length = direction.flatten(1).norm(dim=1)
        t = torch.clamp(1.0 / length.clamp_min(1e-300), max=1.0)
        accepted = ~running
        new_p, new_q, step = p, q, torch.zeros_like(direction)
        for _ in range(30):
            x = t[:, None, None, None] * direction
            trial_p, trial_q = p @ torch.matrix_exp(x), torch.matrix_exp(-x) @ q
            trial = alignment_objective(gb, ga, weights, trial_p, trial_q)
            condition = (trial_p.flatten(2).norm(dim=2) * trial_q.flatten(2).norm(dim=2)).amax(dim=1)
            good = (trial <= value + 1e-4 * t * slope) & (condition < _MAX_CONDITION) & ~accepted
            pick = good[:, None, None, None]
            new_p, new_q = torch.where(pick, trial_p, new_p), torch.where(pick, trial_q, new_q)
            step = torch.where(pick, x, step)
            accepted |= good
            if accepted.all():
                break
            t = torch.where(accepted, t, t / 2)
        moved = step.flatten(1).abs().amax(dim=1) > 0
        p, q = new_p, new_q
        new_value, new_gradient = _gradient(gb, ga, weights, p, q)
        change = new_gradient - gradient
        curvature = _dot(step, change)
        rho = torch.where(curvature > 1e-300, 1 / curvature.clamp_min(1e-300), torch.zeros_like(curvature))
        pairs = [*pairs[-(history - 1) :], (step, change, rho)]
        running = running & moved & (value - new_value > 1e-12 * value)
        value, gradient = new_value, new_gradient
        if not running.any():
            break
    return p, q, value


def _direction(gradient: torch.Tensor, pairs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """L-BFGS two-loop recursion, one independent history per module (pairs of no curvature count nothing)."""
    z = gradient.clone()
    alphas = []
    for step, change, rho in reversed(pairs):
        alpha = rho * _dot(step, z)
        z = z - alpha[:, None, None, None] * change
        alphas.append(alpha)
    if pairs:
        step, change, rho = pairs[-1]
        size = _dot(change, change)
        gamma = torch.where((rho > 0) & (size > 0), _dot(step, change) / size.clamp_min(1e-300), torch.ones_like(rho))
        z = gamma[:, None, None, None] * z
    for (step, change, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        beta = rho * _dot(change, z)
        z = z + (alpha - beta)[:, None, None, None] * step
    return -z


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(dim=(1, 2, 3))
