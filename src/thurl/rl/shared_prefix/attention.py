"""Attention over packed rows without a mask of all pairs of tokens.

A packed row is sliced inside each attention layer. The shared prompt is one causal pass. Each segment is a row of its
own whose keys are the prompt's and its own, so the mask is that of one completion, (S, p + S), the same for all
segments behind prompts of p tokens. Work and memory are those of the plain layout's attention without its repeated
prompt queries; queries, linear layers and everything else work on packed rows.

transformers looks the function up by name (`AttentionInterface`) and hands on whatever lies in `attention_mask` for
the type of the layer. The name is set for the language model only: the vision tower has pictures, not segments. Every
call without a `PackedAttention` is transformers' own `sdpa`, with its masks, so generation and plain calls stay what
they are; a model that was not told the name fails on the unknown mask instead of seeing the future.

Not flex attention: torch 2.13 has no backward for it on CPU, so without a GPU its gradients cannot be tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from thurl.rl.shared_prefix.layout import PackedLayout


__all__ = ["ATTENTION", "PackedAttention", "SegmentBatch", "packed_attention", "packed_sdpa", "use_packed_sdpa"]

ATTENTION = "sdpa_shared_prefix"
"""Name of `packed_sdpa` among transformers' attention functions."""


@dataclass(frozen=True)
class SegmentBatch:
    """Segments behind prompts of equal length, which one call of the attention serves."""

    prefix: int
    """p, tokens of the shared prompt; 0 where the prompt is one token, which every segment repeats."""
    owner: torch.Tensor
    """(n,) int64 packed row of each segment."""
    token: torch.Tensor
    """(n, S) int64 places of the segments' tokens among the G * L packed ones; what follows a shorter segment is
    computed and dropped."""
    mask: torch.Tensor
    """(S, p + S) bool, the causal one of the last S of p + S tokens."""


@dataclass(frozen=True)
class PackedAttention:
    """How an attention layer slices packed rows; takes the place of the mask."""

    prefix: int
    """The longest p: columns that the causal pass over the prompts covers."""
    batches: tuple[SegmentBatch, ...]
    source: torch.Tensor
    """(G, L) int64 place of each packed token's result among those of the causal pass and of the batches."""

    def to(self, device: Any, non_blocking: bool = False) -> PackedAttention:
        """The same on another device, for accelerate where it spreads a model over several."""

        def moved(value: torch.Tensor) -> torch.Tensor:
            return value.to(device, non_blocking=non_blocking)

        batches = tuple(
            SegmentBatch(batch.prefix, moved(batch.owner), moved(batch.token), moved(batch.mask))
            for batch in self.batches
        )
        return PackedAttention(self.prefix, batches, moved(self.source))


def packed_attention(layout: PackedLayout, lengths: Sequence[int]) -> PackedAttention:
    """What `packed_sdpa` needs to know of packed rows.

    Args:
        layout: of G groups and N segments.
        lengths: N tokens per completion, without padding.
    """
    groups, width = layout.segment.shape
    # A segment begins with the last prompt token, so the first of a row lies right behind the shared prompt.
    prefixes = (layout.segment == 0).sum(dim=1).tolist()
    longest = max(prefixes)
    columns = torch.arange(width)
    source = (torch.arange(groups)[:, None] * longest + columns).masked_fill(layout.segment != 0, 0)
    done = groups * longest
    home = layout.group.tolist()
    batches = []
    for prefix in sorted(set(prefixes)):
        rows = torch.tensor([row for row, group in enumerate(home) if prefixes[group] == prefix])
        size = 1 + max(lengths[row] for row in rows.tolist())
        owner, start = layout.group[rows], layout.start[rows]
        place = start[:, None] + torch.arange(size)
        inside = torch.arange(size) <= torch.tensor([lengths[row] for row in rows.tolist()])[:, None]
        results = done + torch.arange(len(rows) * size).view(len(rows), size)
        source[owner[:, None].expand_as(place)[inside], place[inside]] = results[inside]
        done += len(rows) * size
        token = owner[:, None] * width + place.clamp(max=width - 1)
        mask = torch.ones(size, prefix + size, dtype=torch.bool).tril(prefix)
        batches.append(SegmentBatch(prefix, owner, token, mask))
    return PackedAttention(longest, tuple(batches), source)


def packed_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' `sdpa` with one more kind of mask.

    Args:
        module: the attention layer.
        query: (G, heads, L, d).
        key, value: (G, key heads, L, d).
        attention_mask: a `PackedAttention`, or what `sdpa` takes.
        **options: as `sdpa` has them.

    Returns:
        (G, L, heads, d), and None where other functions return weights.
    """
    if not isinstance(attention_mask, PackedAttention):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    plan, results = attention_mask, []
    if plan.prefix:
        # Right of a shorter prompt lie segments: their results are not used, and no prompt token sees them.
        prompt = (value_[:, :, : plan.prefix] for value_ in (query, key, value))
        results.append(sdpa_attention_forward(module, *prompt, None, **options)[0].flatten(0, 1))
    for batch in plan.batches:
        queries = _segments(query, batch.token)
        keys, values = (
            torch.cat([shared[:, :, : batch.prefix].index_select(0, batch.owner), _segments(shared, batch.token)], 2)
            for shared in (key, value)
        )
        mask = batch.mask[None, None]
        results.append(sdpa_attention_forward(module, queries, keys, values, mask, **options)[0].flatten(0, 1))
    chosen = torch.cat(results).index_select(0, plan.source.flatten())
    return chosen.unflatten(0, tuple(plan.source.shape)), None


def _segments(values: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """(G, heads, L, d) to (n, heads, S, d)."""
    rows = values.transpose(1, 2).flatten(0, 1)
    return rows.index_select(0, token.flatten()).unflatten(0, tuple(token.shape)).transpose(1, 2)


def use_packed_sdpa(language_model: Any) -> None:
    """Let a language model whose attention is `sdpa` take a `PackedAttention`, from now on.

    It stays so, because gradient checkpointing computes the attention again in the backward pass.
    """
    if language_model.config._attn_implementation != ATTENTION:
        language_model.set_attn_implementation(ATTENTION)


AttentionInterface.register(ATTENTION, packed_sdpa)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
