"""Thurstone comparison of scores and the fidelity between two preference probabilities.

Paper: "VisualQuality-R1: Reasoning-Induced Image Quality Assessment via Reinforcement Learning to Rank",
arXiv 2505.14460, Eq. 1 (comparison) and Eq. 3 (fidelity). The fidelity measure goes back to FRank (Tsai et al.,
SIGIR 2007); the comparison to Thurstone's law of comparative judgement (1927).

Deliberate difference: the paper adds its constant only to the comparison, the official code also under both square
roots of the fidelity. The code is what the released models were trained with, so `eps` acts in all three places here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch


__all__ = ["fidelity", "preference_probability"]


def _as_tensors(*values: torch.Tensor | float) -> tuple[list[torch.Tensor], torch.dtype]:
    """Bring numbers and tensors to one floating dtype and device; say in which dtype the caller wants the result."""
    import torch

    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    device = next((tensor.device for tensor in tensors if tensor.dim()), tensors[0].device if tensors else None)
    # Numbers and zero-dimensional tensors do not promote the others, which is torch's own rule for arithmetic.
    shaped = [tensor for tensor in tensors if tensor.dim()] or tensors
    dtype = shaped[0].dtype if shaped else torch.get_default_dtype()
    for tensor in shaped[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    # Half precision has too few bits for 1 - p near 1 (bfloat16 would return exactly 1 from z = 2.9 on).
    working = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    return [torch.as_tensor(value, device=device).to(working) for value in values], dtype


def preference_probability(
    mean_a: torch.Tensor | float,
    mean_b: torch.Tensor | float,
    var_a: torch.Tensor | float,
    var_b: torch.Tensor | float,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Probability that A is judged better than B: `Phi((mean_a - mean_b) / sqrt(var_a + var_b + eps))`.

    arXiv 2505.14460, Eq. 1. Differentiable in every tensor argument.

    Args:
        mean_a, mean_b: scores on one common scale, any shapes that broadcast, any floating dtype and device.
        var_a, var_b: variances of the scores (score units squared), >= 0, broadcastable to the means.
        eps: added to the summed variance, > 0 unless a variance is; with both variances 0 a gap of `sqrt(eps)` is
            one standard deviation.

    Returns:
        Probabilities in [0, 1] in the broadcast shape and promoted dtype of the arguments.
    """
    import torch

    (mean_a, mean_b, var_a, var_b), dtype = _as_tensors(mean_a, mean_b, var_a, var_b)
    z = (mean_a - mean_b) / torch.sqrt(var_a + var_b + eps)
    return torch.special.ndtr(z).to(dtype)


def fidelity(
    p: torch.Tensor | float,
    g: torch.Tensor | float,
    eps: float = 1e-6,
    complement: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """Fidelity of a predicted preference `p` to a true one `g`: `sqrt(p g + eps) + sqrt((1-p)(1-g) + eps)`.

    arXiv 2505.14460, Eq. 3 with the square roots of the official code. About 1 when `p` equals `g`, 0.002 when
    certain and wrong, 0.7081 when undecided about a decided pair. Differentiable; `eps > 0` keeps the gradient
    finite at the ends of the interval.

    Args:
        p: predicted probabilities in [0, 1], any shape.
        g: true probabilities in [0, 1] (0, 0.5, 1 for hard labels), broadcastable to `p`.
        eps: added under both square roots.
        complement: 1 - p of the shape of `p`, where the caller knows it better than by subtraction, which loses
            everything below the rounding of `p` (6e-8 in float32).

    Returns:
        Fidelities in [2 sqrt(eps), about 1 + 2 eps + sqrt(eps)] in the broadcast shape and promoted dtype.
    """
    import torch

    (p, g, *rest), dtype = _as_tensors(p, g, *(() if complement is None else (complement,)))
    not_p = rest[0] if rest else 1 - p
    return (torch.sqrt(p * g + eps) + torch.sqrt(not_p * (1 - g) + eps)).to(dtype)
