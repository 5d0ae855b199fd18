"""Work of the plain and of the packed layout in one layer's matrix products, to choose between them by shape.

Only a ratio is needed, so one unit does: multiplications and additions of the forward pass. Left out is what only
makes packing better (output embedding, the vision tower's own attention), and the plain layout is given the half of
the pairs that a causal kernel skips where there is no padding. The constants were set with one thread of a CPU, so
that the estimate stays near or below the measured speedup wherever that is small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thurl.rl.shared_prefix.attention import PackedAttention


__all__ = ["MINIMUM_SPEEDUP", "Call", "estimate_speedup", "packed_call", "plain_call"]

MINIMUM_SPEEDUP = 1.1
"""Estimated gain below which `auto` keeps the plain layout."""
COPIED_KEY = 24
"""Time to copy one key and value behind a segment, in queries that attend to it."""
BATCH_WORK = 4e6
"""Time per layer to set up one batch of segments, in multiplications and additions. It decides only where a call has a
few hundred tokens of a model a few dozen numbers wide."""


@dataclass(frozen=True)
class Call:
    """Size of one call of the model."""

    tokens: int
    """Rows times length, padding included: what the linear layers work on."""
    pairs: float
    """Pairs of query and key that attention works on."""
    patches: int = 0
    """Patches of pictures that the vision tower works on."""
    batches: int = 0
    """Batches of segments; see `PackedAttention`."""


def plain_call(rows: int, length: int, patches: int = 0) -> Call:
    """A call with `rows` rows of `length` tokens, padding included."""
    return Call(rows * length, rows * length * length / 2, patches)


def packed_call(plan: PackedAttention, patches: int = 0) -> Call:
    """A call with packed rows; the mask of a segment skips no pair."""
    groups, width = plan.source.shape
    pairs = groups * plan.prefix * plan.prefix / 2
    for batch in plan.batches:
        segments, size = batch.token.shape
        pairs += segments * (size + COPIED_KEY) * (batch.prefix + size)
    return Call(groups * width, pairs, patches, len(plan.batches))


def estimate_speedup(config: Any, plain: Sequence[Call], packed: Sequence[Call], vision_weight: float = 1.0) -> float:
    """Work of the plain layout over that of the packed one.

    Args:
        config: of a Qwen2.5-VL, with `text_config` and `vision_config`.
        plain, packed: the calls of one pass.
        vision_weight: how much of the vision tower's work counts; less than 1 where it has no backward pass.
    """
    text, vision = config.text_config, config.vision_config
    hidden = text.hidden_size
    keys = hidden * text.num_key_value_heads // text.num_attention_heads
    token = 2 * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * text.intermediate_size)
    pair = 4 * hidden
    patch = 2 * (4 * vision.hidden_size**2 + 3 * vision.hidden_size * vision.intermediate_size)

    def work(calls: Sequence[Call]) -> float:
        language = sum(call.tokens * token + call.pairs * pair + call.batches * BATCH_WORK for call in calls)
        return text.num_hidden_layers * language + vision_weight * vision.depth * patch * sum(
            call.patches for call in calls
        )

    return work(plain) / work(packed)
