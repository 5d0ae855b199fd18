"""The equations of A-FINE as pure functions.

"Toward Generalized Image Quality Assessment: Relaxing the Perfect Reference Quality Assumption" (CVPR 2025,
arXiv 2503.11221) with the official code (GitHub `ChrisDud0257/AFINE`) for what the paper leaves open. Every quantity
is lower for a better picture: naturalness N, fidelity F, the combined D and the scaled D_s.

Deliberate differences, none of which changes what the official code gets right:
- the covariance is that of centred values; officially it is a difference of two large numbers, which made the
  fidelity of a flat picture to itself 4 to 14 instead of 0;
- the maps are plain sigmoids and take batches; officially two Python branches approximate them, for one picture;
- the exponent of the adapter is capped where float32 ends.
"""

from __future__ import annotations

import functools
import math

import torch
from torch.nn import functional


__all__ = [
    "MAP_HIGH",
    "MAP_LOW",
    "adapter_weight",
    "adaptive_score",
    "bounded_map",
    "covariance",
    "fidelity_weights",
    "mean_and_variance",
    "past_turning_point",
    "resize_positions",
    "resize_to_multiple",
    "scaled_score",
    "similarities",
    "token_resize_matrix",
]

MAP_LOW, MAP_HIGH = -2.0, 2.0
"""Ends of both bounded maps (official yita2 and yita1)."""

_KEYS = -0.75  # the parameter of torch's bicubic kernel
_SMALLEST = 1e-10  # added to widths and to the sum of the weights, as officially
_LARGEST_EXPONENT = 80.0  # e^80 = 5.5e34; float32 ends at e^88


def resize_to_multiple(pixels: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pictures enlarged to the next multiples of `multiple` by bicubic interpolation; others come back as they are.

    Neither anti-aliased nor clipped: values may leave [0, 1] by a little, as officially. (The official code resizes
    normalised pixels; the interpolation is linear and its weights sum to 1, so the order does not matter.)

    Args:
        pixels: (B, 3, H, W), floating.
        multiple: side of a patch in pixels.
    """
    height, width = pixels.shape[-2:]
    size = (math.ceil(height / multiple) * multiple, math.ceil(width / multiple) * multiple)
    if size == (height, width):
        return pixels
    return functional.interpolate(pixels, size=size, mode="bicubic", align_corners=False)


@functools.lru_cache(maxsize=256)
def token_resize_matrix(rows: int, tokens: int) -> torch.Tensor:
    """Weights by which `tokens` positions are made of the `rows` of a position table, class row included.

    The cubic interpolation of `torch.nn.functional.interpolate` (Keys, a = -0.75, `align_corners=False`) along the
    token axis. As a matrix because its gradient is then a product, which is deterministic on a GPU.

    Returns:
        (tokens, rows) float64; rows sum to 1; the identity when the counts agree. Shared: do not write into it.
    """
    place = (torch.arange(tokens, dtype=torch.float64) + 0.5) * rows / tokens - 0.5
    floor = place.floor()
    matrix = torch.zeros(tokens, rows, dtype=torch.float64)
    for offset in (-1, 0, 1, 2):
        weight = _cubic((place - floor - offset).abs())
        index = (floor.long() + offset).clamp(0, rows - 1)
        matrix.scatter_add_(1, index[:, None], weight[:, None])
    return matrix


def resize_positions(table: torch.Tensor, tokens: int) -> torch.Tensor:
    """The position table for another number of tokens, as A-FINE does it.

    The trap of the method: the whole table is resized along its rows, so the class row mixes with the patches'.
    Interpolating the grid of patches, which is the usual way, gives other scores.

    Args:
        table: (R, C) floating, the class row first; R is 50 for ViT-B/32.
        tokens: n + 1 for n patches.

    Returns:
        (tokens, C), float32 at least.
    """
    table = table.to(torch.promote_types(table.dtype, torch.float32))
    if tokens == len(table):
        return table
    return token_resize_matrix(len(table), tokens).to(table) @ table


def mean_and_variance(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance over the tokens of a level: (B, n, C) to twice (B, C)."""
    mean = tokens.mean(dim=1)
    return mean, (tokens - mean[:, None]).square().mean(dim=1)


def covariance(x: torch.Tensor, y: torch.Tensor, mean_x: torch.Tensor, mean_y: torch.Tensor) -> torch.Tensor:
    """Biased covariance over the tokens of a level.

    Args:
        x, y: (B, n, C), or (1, n, C) for one picture against all of the other side.
        mean_x, mean_y: their means, (B, C) or (1, C).

    Returns:
        (B, C).
    """
    return ((x - mean_x[:, None]) * (y - mean_y[:, None])).mean(dim=1)


def similarities(
    mean_x: torch.Tensor,
    variance_x: torch.Tensor,
    mean_y: torch.Tensor,
    variance_y: torch.Tensor,
    covariance_xy: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """S1, of the means, and S2, of the structure, per channel: (B, C) each, in [-1, 1] and 1 for equal pictures.

    Args:
        mean_x, variance_x, mean_y, variance_y, covariance_xy: (B, C).
        eps: c1 and c2.
    """
    first = (2 * mean_x * mean_y + eps) / (mean_x.square() + mean_y.square() + eps)
    return first, (2 * covariance_xy + eps) / (variance_x + variance_y + eps)


def fidelity_weights(alpha: torch.Tensor, beta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of S1 and S2: softplus of both vectors over one common sum, so that all of them sum to 1.

    Args:
        alpha, beta: (C,), C the channels of all levels.
    """
    a, b = functional.softplus(alpha), functional.softplus(beta)
    total = a.sum() + b.sum() + _SMALLEST
    return a / total, b / total


def bounded_map(values: torch.Tensor, centre: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """`4 sigmoid((v - centre) / |width|) - 2`, in (-2, 2) and increasing (paper Eq. 7 and 8).

    Args:
        values: any shape.
        centre, width: broadcastable to it; official yita3 and yita4.
    """
    return (MAP_HIGH - MAP_LOW) * torch.sigmoid((values - centre) / (width.abs() + _SMALLEST)) + MAP_LOW


def adapter_weight(
    naturalness_ref: torch.Tensor, naturalness_dis: torch.Tensor, k_positive: torch.Tensor
) -> torch.Tensor:
    """`lambda = exp(k (N(ref) - N(dis)))`: near 0 where the reference is the more natural picture, so that D is F.

    The exponent ends at 80, far beyond the official k (5, at most e^20).

    Args:
        naturalness_ref, naturalness_dis: N, (B,).
        k_positive: softplus of the parameter k, scalar or (1,).
    """
    return torch.exp((k_positive * (naturalness_ref - naturalness_dis)).clamp(max=_LARGEST_EXPONENT))


def adaptive_score(
    weight: torch.Tensor, naturalness_dis: torch.Tensor, fidelity: torch.Tensor, adapter: str = "official"
) -> torch.Tensor:
    """D, (B,): `lambda N(dis) + F`; with the adapter "monotone" `lambda (N(dis) - 2) + F`."""
    shift = MAP_HIGH if adapter == "monotone" else 0.0
    return weight * (naturalness_dis - shift) + fidelity


def past_turning_point(
    naturalness_ref: torch.Tensor, naturalness_dis: torch.Tensor, k_positive: torch.Tensor, adapter: str = "official"
) -> torch.Tensor:
    """Where the official adapter misleads, (B,) truth values: `N(dis) > 1 / k` and `N(ref) > N(dis)`.

    `dD/dN(dis) = lambda (1 - k N(dis))`: past 1 / k a less natural picture lowers D. With a reference that is worse
    still, lambda is above 1 and D grows although the picture beats its reference. Never with "monotone".
    """
    if adapter == "monotone":
        return torch.zeros_like(naturalness_ref, dtype=torch.bool)
    return (naturalness_dis > 1 / k_positive) & (naturalness_ref > naturalness_dis)


def scaled_score(score: torch.Tensor, centre: float, width: float) -> torch.Tensor:
    """D_s, `100 sigmoid((D - centre) / |width|)`, in [0, 100]; increasing, so it orders pictures as D does."""
    return 100 * torch.sigmoid((score - centre) / abs(width))


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    near = ((_KEYS + 2) * distance - (_KEYS + 3)) * distance**2 + 1
    far = _KEYS * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))
