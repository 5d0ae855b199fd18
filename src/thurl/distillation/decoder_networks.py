"""The three networks of a slice: their first values, and their tensors from quantised groups."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from thurl.distillation.coded import CodedGroup
from thurl.distillation.geometry import CodecConfig
from thurl.distillation.synthesis import bicubic_kernel


__all__ = ["NETWORKS", "initial_networks", "networks_of"]

NETWORKS = ("arm", "upsampling", "synthesis")

Networks = dict[str, list[torch.Tensor]]


def initial_networks(config: CodecConfig, slices: int, generator: torch.Generator | None = None) -> Networks:
    """Random networks as in the official code, each slice its own.

    Hidden layers of the entropy network and the 3x3 convolutions start at 0, that is as the identity, since they are
    residual; the upsampling starts as a bicubic kernel.

    Args:
        config: shapes.
        slices: S.
        generator: on the CPU; None: torch's own.

    Returns:
        `arm`, `upsampling` and `synthesis`: float32 (S, *shape) for each shape in `config`.
    """
    arm = [torch.zeros(slices, *shape) for shape in config.arm_shapes]
    arm[-2] = torch.randn(arm[-2].shape, generator=generator) / 4
    synthesis = [torch.zeros(slices, *shape) for shape in config.synthesis_shapes]
    for index in range(0, len(synthesis) - 4, 2):
        outputs, inputs = synthesis[index].shape[1:3]
        uniform = torch.rand(synthesis[index].shape, generator=generator) * 2 - 1
        synthesis[index] = uniform * inputs**-0.5 / outputs**2
    kernel = bicubic_kernel().expand(slices, *config.upsampling_shapes[0]).clone()
    return {"arm": arm, "upsampling": [kernel], "synthesis": synthesis}


def networks_of(config: CodecConfig, groups: Mapping[str, CodedGroup]) -> Networks:
    """Networks of one slice from their integers: float32 tensors in the order of the shapes in `config`, exact."""
    left = {name: list(group.values) for name, group in groups.items()}
    found: Networks = {}
    for net in NETWORKS:
        found[net] = []
        for shape in getattr(config, f"{net}_shapes"):
            name = f"{net}_{'weight' if len(shape) >= 2 else 'bias'}"
            value = left[name].pop(0).astype(np.float64) * 2.0 ** -groups[name].exponent
            found[net].append(torch.from_numpy(value.astype(np.float32)))
    return found
