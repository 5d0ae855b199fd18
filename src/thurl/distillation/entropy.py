"""Entropy model of the latents: a small network predicts each from decoded neighbours, its bits follow from Laplace.

Source: official code of arXiv 2507.17221. A latent's context are C already decoded latents of the same level and
sample (zero outside the picture), as raw integers. One network serves all levels of all samples of a slice. The
same formula takes the noisy values while training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812

from thurl.distillation.context import REACH, context_offsets
from thurl.distillation.neighbours import neighbours


__all__ = ["MIN_PROBABILITY", "contexts", "laplace_bits", "predict"]

MIN_PROBABILITY = 2.0**-16
"""Floor under a symbol's probability: 16 bits are the most that one counts for."""


def contexts(levels: Sequence[torch.Tensor], context: int) -> torch.Tensor:
    """Contexts of all latents.

    Args:
        levels: (S, B, h, w) each.
        context: C.

    Returns:
        (S, C, N), N over levels, then samples, then rows and columns.
    """
    offsets = [(row + REACH, column + REACH) for row, column in context_offsets(context)]
    found = []
    for level in levels:
        padded = F.pad(level, (REACH, REACH, REACH, 0))
        found.append(neighbours(padded, offsets, (level.shape[-2], level.shape[-1])).flatten(2))
    return torch.cat(found, dim=2)


def predict(features: torch.Tensor, network: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scale of the Laplace distribution of each latent.

    Args:
        features: (S, C, N), see `contexts`.
        network: weight (S, C, C) and bias (S, C) of each hidden layer, `v <- relu(W v + b + v)`, at the end (S, 2, C)
            and (S, 2).

    Returns:
        Mean and scale, (S, N) each; the scale between exp(-4.6) and exp(5).
    """
    hidden = features
    *layers, weight, bias = network
    for w, b in zip(layers[::2], layers[1::2], strict=True):
        residual = w + torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)  # saves one pass over the features
        hidden = torch.baddbmm(b[:, :, None], residual, hidden).relu()
    mean, raw = torch.baddbmm(bias[:, :, None], weight, hidden).unbind(1)
    return mean, (raw - 4).clamp(-4.6, 5.0).exp()


def laplace_bits(symbols: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Bits of integers under a Laplace distribution, each taken as the interval of one around it.

    Args:
        symbols: any shape, integers or their noisy stand-ins.
        mean, scale: of the same shape; the scale above 0.

    Returns:
        Bits, 0 to 16. At the floor the gradient is 0.
    """
    centred = symbols - mean
    inverse = scale.reciprocal()
    mass = _cdf(centred + 0.5, inverse) - _cdf(centred - 0.5, inverse)
    return -mass.clamp_min(MIN_PROBABILITY).log2()


def _cdf(value: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    return 0.5 - 0.5 * value.sign() * torch.expm1(-value.abs() * inverse)
