"""The trained parts of A-FINE beside the tower. All of them compute in the dtype of what they get, float32 at least.

Parameters are vectors of one number where the official ones have no dimension at all: FSDP shards no scalars.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from transformers import initialization as init

from thurl.iqa.afine import mathematics
from thurl.iqa.afine.config import AFineConfig
from thurl.iqa.afine.features import AFineFeatures


__all__ = ["Adapter", "BoundedMap", "FidelityHead", "NaturalnessHead", "initialise"]


class NaturalnessHead(nn.Module):
    """Statistics of all levels to one number per picture: a projection shared by the blocks, then two layers."""

    def __init__(self, config: AFineConfig):
        super().__init__()
        width, blocks = config.tower.hidden_size, config.tower.num_hidden_layers
        self.projection = nn.Linear(2 * width, config.projection_size)
        self.hidden = nn.Linear(2 * 3 + blocks * config.projection_size, config.head_size)
        self.score = nn.Linear(config.head_size, 1)
        self.blocks = blocks

    def forward(self, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """(B,) raw naturalness of the statistics of a batch, (B, C) each."""
        pixels = torch.cat([mean[:, :3], variance[:, :3]], dim=1)
        blocks = [values[:, 3:].unflatten(1, (self.blocks, -1)) for values in (mean, variance)]
        projected = _linear(self.projection, torch.cat(blocks, dim=2)).flatten(1)
        # The exact GELU of torch's default; only the tower has CLIP's approximation.
        hidden = functional.gelu(_linear(self.hidden, torch.cat([pixels, projected], dim=1)))
        return _linear(self.score, hidden).squeeze(1)


class FidelityHead(nn.Module):
    """Features of two pictures to one number: a weighted similarity of their levels, as in SSIM and DISTS."""

    def __init__(self, config: AFineConfig):
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(sum(config.channels)))
        self.beta = nn.Parameter(torch.empty(sum(config.channels)))
        self.eps = config.similarity_eps

    def forward(self, ref: AFineFeatures, dis: AFineFeatures) -> torch.Tensor:
        """(B,) raw fidelity, 0 for equal pictures, below 2; one of the two may hold a single picture."""
        pairs = zip(ref.levels or (), dis.levels or (), strict=True)
        found, begin = [], 0
        for x, y in pairs:
            end = begin + x.shape[-1]
            found.append(mathematics.covariance(x, y, ref.mean[:, begin:end], dis.mean[:, begin:end]))
            begin = end
        first, second = mathematics.similarities(
            ref.mean, ref.variance, dis.mean, dis.variance, torch.cat(found, dim=1), self.eps
        )
        a, b = mathematics.fidelity_weights(self.alpha.to(first.dtype), self.beta.to(first.dtype))
        # Not 1 - sum(a S1 + b S2): the weights sum to 1, and so equal pictures give 0 without the rounding of the sum.
        return (a * (1 - first) + b * (1 - second)).sum(dim=1)


class BoundedMap(nn.Module):
    """A raw score to (-2, 2), with two trained numbers that may be clamped where they are used.

    The stored numbers may leave their ranges, as officially; outside them they get no gradient.
    """

    def __init__(
        self,
        centre: float,
        width: float,
        centre_range: Sequence[float] | None = None,
        width_range: Sequence[float] | None = None,
    ):
        super().__init__()
        self.centre = nn.Parameter(torch.empty(1))
        self.width = nn.Parameter(torch.empty(1))
        self.start = (centre, width)
        self.ranges = (centre_range, width_range)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Values of any shape."""
        centre, width = (
            parameter.to(values.dtype) if limits is None else parameter.to(values.dtype).clamp(*limits)
            for parameter, limits in zip((self.centre, self.width), self.ranges, strict=True)
        )
        return mathematics.bounded_map(values, centre, width)


class Adapter(nn.Module):
    """Naturalness of both pictures and fidelity to the weight lambda and the score D."""

    def __init__(self, config: AFineConfig):
        super().__init__()
        self.k = nn.Parameter(torch.empty(1))
        self.start = config.adapter_k
        self.kind = config.adapter

    @property
    def k_positive(self) -> torch.Tensor:
        """Softplus of k, (1,)."""
        return functional.softplus(self.k.to(torch.promote_types(self.k.dtype, torch.float32)))

    def forward(
        self, naturalness_ref: torch.Tensor, naturalness_dis: torch.Tensor, fidelity: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """lambda, D and `past_turning_point`, (B,) each."""
        k = self.k_positive.to(naturalness_dis.dtype)
        weight = mathematics.adapter_weight(naturalness_ref, naturalness_dis, k)
        score = mathematics.adaptive_score(weight, naturalness_dis, fidelity, self.kind)
        return weight, score, mathematics.past_turning_point(naturalness_ref, naturalness_dis, k, self.kind)


def initialise(module: nn.Module) -> None:
    """Starting values of one module of this file (or of a linear layer in it); others are left alone."""
    if isinstance(module, nn.Linear):
        bound = module.in_features**-0.5  # torch's own start
        init.uniform_(module.weight, -bound, bound)
        init.uniform_(module.bias, -bound, bound)
    elif isinstance(module, FidelityHead):
        init.normal_(module.alpha, mean=0.1, std=0.01)
        init.normal_(module.beta, mean=0.1, std=0.01)
    elif isinstance(module, BoundedMap):
        init.constant_(module.centre, module.start[0])
        init.constant_(module.width, module.start[1])
    elif isinstance(module, Adapter):
        init.constant_(module.k, module.start)


def _linear(layer: nn.Linear, values: torch.Tensor) -> torch.Tensor:
    # Weights may be half precision where a whole model was cast; the sums are not.
    return functional.linear(values, layer.weight.to(values.dtype), layer.bias.to(values.dtype))
