"""The 1x1 convolutions of the synthesis; where their hidden layers are large, they are never whole in memory.

Hidden layers are up to 1200 wide, features and pictures at most six. Kept for the gradient, as autograd does, they
are nearly all the memory of a codec: 2 GiB for 96 pictures of 128x128 at width 320. From some size on each block of
positions is computed again when its gradient comes, in a size that suits the cache, which on a CPU is faster as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable


__all__ = ["mix"]

# Values of the hidden layers up to which autograd keeps them, and those of the widest layer in a block, over all
# slices; by type of device, where "other" is every accelerator.
_KEPT = {"cpu": 2**21, "other": 2**26}
_BLOCK = {"cpu": 2**19, "other": 2**25}


def mix(features: torch.Tensor, network: Sequence[torch.Tensor]) -> torch.Tensor:
    """Layers on each position, `W v + b`, with ReLU between. Differentiable; once, where it is done in blocks.

    Args:
        features: (S, inputs, N).
        network: weight (S, out, in) and bias (S, out) of each layer.

    Returns:
        (S, outputs, N).
    """
    if len(features) * features.shape[2] * sum(weight.shape[1] for weight in network[:-2:2]) <= _of(_KEPT, features):
        return _layers(features, network)[-1]
    return _Mix.apply(features, *network)


def _of(sizes: dict[str, int], tensor: torch.Tensor) -> int:
    return sizes.get(tensor.device.type, sizes["other"])


def _layers(block: torch.Tensor, network: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The block and what every layer makes of it."""
    values = [block]
    for index in range(0, len(network), 2):
        after = torch.baddbmm(network[index + 1][:, :, None], network[index], values[-1])
        values.append(after.relu_() if index < len(network) - 2 else after)
    return values


def _blocks(features: torch.Tensor, network: Sequence[torch.Tensor]) -> Iterator[slice]:
    widest = len(features) * max(weight.shape[1] for weight in network[::2])
    size = max(1, _of(_BLOCK, features) // widest)
    for start in range(0, features.shape[2], size):
        yield slice(start, start + size)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, *network: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(features, *network)
        mixed = features.new_empty(len(features), network[-1].shape[1], features.shape[2])
        for block in _blocks(features, network):
            mixed[:, :, block] = _layers(features[:, :, block], network)[-1]
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        features, *network = ctx.saved_tensors
        found = torch.empty_like(features)
        of_network = [torch.zeros_like(tensor) for tensor in network]
        with torch.autocast(features.device.type, enabled=False):
            for block in _blocks(features, network):
                values = _layers(features[:, :, block], network)
                gradient = gradients[0][:, :, block]
                for layer in range(len(values) - 2, -1, -1):
                    of_network[2 * layer].baddbmm_(gradient, values[layer].transpose(1, 2))
                    of_network[2 * layer + 1] += gradient.sum(dim=2)
                    gradient = torch.bmm(network[2 * layer].transpose(1, 2), gradient)
                    if layer:
                        gradient = torch.ops.aten.threshold_backward(gradient, values[layer], 0)
                found[:, :, block] = gradient
        return found, *of_network
