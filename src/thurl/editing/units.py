"""Editable units of a vision transformer: matrices of which an edit changes single rows or columns.

Paper: "Learning Where to Edit Vision Transformers" (arXiv 2411.01948), whose units are both matrices of the
feed-forward networks of three blocks. The projections of attention are ours, since "Model Editing for Vision
Transformers" (OpenReview NSKRyz07WD) finds its culprits among the heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from thurl.errors import UsageError
from thurl.vit import attention_output, feed_forward_layers, named_blocks


__all__ = ["Unit", "default_layers", "grouped", "resolve_attention_outputs", "resolve_ffn"]


@dataclass(frozen=True)
class Unit:
    """One matrix, addressed by neuron.

    Args:
        layer: block it is in, from 0.
        name: `fc1` and `fc2` for the two matrices of a feed-forward network, `attn_out` for the projection of
            attention.
        parameter: full name of the weight in the model.
        axis: 0 when a neuron is a row (an output), 1 when it is a column (an input).
        size: number of neurons M.
        groups: rows or columns a neuron has. Neuron j is j, M + j, ..., (groups - 1) M + j: two for the fused first
            matrix of a gated network (SwiGLU), else one.
    """

    layer: int
    name: str
    parameter: str
    axis: int
    size: int
    groups: int = 1

    @property
    def label(self) -> str:
        """`layer7.fc1`: short, and the same for all libraries."""
        return f"layer{self.layer}.{self.name}"

    def indices(self, neurons: torch.Tensor) -> torch.Tensor:
        """Rows or columns of neurons, int64 [groups * K]; `neurons` is int64 [K] with values in [0, M)."""
        return grouped(neurons, self.size, self.groups)


def grouped(neurons: torch.Tensor, size: int, groups: int) -> torch.Tensor:
    """Places of neurons in a matrix that holds all `size` of them, `groups` times one after another."""
    return torch.cat([neurons + group * size for group in range(groups)])


def default_layers(model: nn.Module) -> list[int]:
    """The three blocks that end at three quarters of the depth L: floor(3 L / 4) and the two before it, from 0.

    7, 8 and 9 of 12, as the paper; 2, 3 and 4 of 6. A model of fewer than three blocks up to there gives fewer.

    Raises:
        UsageError: no vision transformer.
    """
    last = 3 * len(named_blocks(model)) // 4
    return list(range(max(0, last - 2), last + 1))


def resolve_ffn(model: nn.Module, layers: Sequence[int]) -> list[Unit]:
    """Both matrices of the feed-forward networks of `layers`, in the order of a mask's rows.

    The order is layer by layer, `fc1` (rows) before `fc2` (columns), whatever the order of `layers`. Neurons are
    those of the hidden layer, M of them, for both.

    Raises:
        UsageError: no known vision transformer, a layer it does not have or one twice.
    """
    units = []
    for layer, name, block in _chosen(model, layers):
        first, last = feed_forward_layers(block)
        rows, size = block.get_submodule(first).out_features, block.get_submodule(last).in_features
        units.append(Unit(layer, "fc1", f"{name}.{first}.weight", 0, size, rows // size))
        units.append(Unit(layer, "fc2", f"{name}.{last}.weight", 1, size))
    return units


def resolve_attention_outputs(model: nn.Module, layers: Sequence[int]) -> list[Unit]:
    """Projections of attention of `layers`, one unit a layer; neurons are the columns: D channels, head by head.

    Raises:
        UsageError: as `resolve_ffn`.
    """
    return [
        Unit(layer, "attn_out", f"{name}.{path}.weight", 1, block.get_submodule(path).in_features)
        for layer, name, block in _chosen(model, layers)
        for path in [attention_output(block)]
    ]


def _chosen(model: nn.Module, layers: Sequence[int]) -> list[tuple[int, str, nn.Module]]:
    blocks = named_blocks(model)
    wrong = [layer for layer in layers if not 0 <= layer < len(blocks)]
    if wrong or not layers:
        found = ", ".join(map(str, wrong)) or "none"
        raise UsageError(f"layers to edit: {found}; {type(model).__name__} has the layers 0 to {len(blocks) - 1}")
    if len(set(layers)) < len(layers):
        raise UsageError(f"layers to edit: {', '.join(map(str, layers))}; name each layer once")
    return [(layer, *blocks[layer]) for layer in sorted(layers)]
