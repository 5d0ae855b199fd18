"""Rounding that gradients pass through: soft rounding with noise for training, straight-through, and plain rounding.

Source: "Dataset Distillation as Data Compression: A Rate-Utility Perspective" (arXiv 2507.17221) and its official
code. Latents are quantised to integers, `q = round(gain * grid)`, halves to the even neighbour. While training,
`softround(softround(x) + noise)` stands for it. The noise is an argument, never drawn inside: the decoder runs
twice in one step when memory is short, and both runs must see the same.
"""

from __future__ import annotations

import math

import torch


__all__ = ["gaussian_noise", "kumaraswamy_noise", "noisy_round", "soft_round", "straight_through_round"]


def soft_round(x: torch.Tensor, temperature: float) -> torch.Tensor:
    """Smooth rounding: the identity for a high temperature, steps for a low one; exact at integers and halves.

    Args:
        x: any shape, floating.
        temperature: above 0; the official runs use 0.3.

    Returns:
        Shape and dtype of `x`. The derivative is that of the formula, the floor counting as constant.
    """
    _check(temperature)
    low = x.detach().floor()
    return low + 0.5 + (0.5 / math.tanh(0.5 / temperature)) * torch.tanh((x - low - 0.5) / temperature)


def noisy_round(x: torch.Tensor, noise: torch.Tensor, temperature: float) -> torch.Tensor:
    """What training sees in place of integers: soft rounding before and after the noise.

    Args:
        x: any shape, floating.
        noise: of the same shape.
        temperature: see `soft_round`.
    """
    return soft_round(soft_round(x, temperature) + noise, temperature)


def straight_through_round(x: torch.Tensor, temperature: float) -> torch.Tensor:
    """Integers forward, exactly those of the decoder; the derivative of `soft_round` backward."""
    soft = soft_round(x, temperature)
    return x.detach().round() + (soft - soft.detach())


def gaussian_noise(normal: torch.Tensor, sigma: float) -> torch.Tensor:
    """Noise of the joint stage.

    Args:
        normal: standard normal values.
        sigma: 0 or more; the official runs use 0.25.
    """
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma={sigma}: the deviation of the noise must be 0 or more")
    return normal * sigma


def kumaraswamy_noise(uniform: torch.Tensor, a: float) -> torch.Tensor:
    """Noise of the warm-up, from (-0.5, 0.5), its mode at 0.

    Args:
        uniform: values in [0, 1].
        a: at least 1, which is uniform noise; the larger, the narrower. The official warm-up uses 2.
    """
    if not 1 <= a < 64:
        raise ValueError(f"a={a}: the parameter of the noise must be 1 to 64")
    b = (2**a * (a - 1) + 1) / a
    return (1 - (1 - uniform) ** (1 / b)) ** (1 / a) - 0.5


def _check(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature}: must be above 0; for hard rounding use `straight_through_round`")
