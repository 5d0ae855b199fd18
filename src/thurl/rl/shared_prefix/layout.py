"""Which token of the plain layout goes where in packed rows, and back. Pure functions; shapes as in the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


__all__ = ["PackedLayout", "gather_segments", "group_rows", "pack_rows", "packed_positions", "shuffle_groups"]

Rows = Sequence[torch.Tensor | None]
"""One tensor per row, None for a row without a picture."""


@dataclass(frozen=True)
class PackedLayout:
    """Where each token of the packed rows comes from, and where each completion went. All int64, on the CPU."""

    source_row: torch.Tensor
    """(G, L) row of the plain layout; at padding the group's first row."""
    source_column: torch.Tensor
    """(G, L) column of the plain layout; 0 at padding."""
    segment: torch.Tensor
    """(G, L) 0 in the shared prompt, 1, 2, ... in the completions' segments, -1 at padding."""
    group: torch.Tensor
    """(N,) packed row of each plain row."""
    start: torch.Tensor
    """(N,) where the segment of each plain row begins in its packed row (the repeated last prompt token)."""


def group_rows(prompt_ids: torch.Tensor, prompt_mask: torch.Tensor, pixels: Rows, grids: Rows) -> list[list[int]]:
    """Rows with the same prompt tokens and the same pictures; the text alone is often the same for all pictures.

    Args:
        prompt_ids, prompt_mask: (N, P) int.
        pixels: per row the patches of its pictures (patches, features), or None.
        grids: per row the grids of its pictures (pictures, 3) int, or None.

    Returns:
        row numbers per group, groups in the order of their first rows.
    """
    tokens = prompt_ids.masked_fill(prompt_mask == 0, -1).cpu().tolist()
    known: dict[tuple[Any, ...], list[list[int]]] = {}
    groups: list[list[int]] = []
    for row, ids in enumerate(tokens):
        grid = grids[row]
        key = (*ids, None if grid is None else tuple(map(tuple, grid.tolist())))
        alike = known.setdefault(key, [])
        # Newest first: rows of a group follow one another, so one comparison is the rule.
        home = next((group for group in reversed(alike) if _same(pixels[group[0]], pixels[row])), None)
        if home is None:
            home = []
            alike.append(home)
            groups.append(home)
        home.append(row)
    return groups


def _same(left: torch.Tensor | None, right: torch.Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    return torch.equal(left, right)


def pack_rows(
    prompt_lengths: Sequence[int],
    completion_lengths: Sequence[int],
    groups: Sequence[Sequence[int]],
    prompt_width: int,
) -> PackedLayout:
    """Lay out one row per group.

    Args:
        prompt_lengths: N tokens per row, without padding, which is on the left; at least 1.
        completion_lengths: N tokens per row, without padding, which is on the right; may be 0.
        groups: partition of the N row numbers; the rows of a group have the same prompt.
        prompt_width: P.

    Returns:
        the layout; L is the longest packed row, at least 2.
    """
    packed: list[tuple[list[int], list[int], list[int]]] = []
    group_of, start_of = [0] * len(prompt_lengths), [0] * len(prompt_lengths)
    for number, members in enumerate(groups):
        first = members[0]
        columns = list(range(prompt_width - prompt_lengths[first], prompt_width - 1))
        rows, segments = [first] * len(columns), [0] * len(columns)
        for position, row in enumerate(members, start=1):
            group_of[row], start_of[row] = number, len(columns)
            length = 1 + completion_lengths[row]
            columns += range(prompt_width - 1, prompt_width - 1 + length)
            rows += [row] * length
            segments += [position] * length
        packed.append((rows, columns, segments))
    width = max(2, *(len(rows) for rows, _, _ in packed))

    def padded(which: int, filler: Callable[[int], int]) -> torch.Tensor:
        return torch.tensor(
            [row[which] + [filler(number)] * (width - len(row[which])) for number, row in enumerate(packed)]
        )

    return PackedLayout(
        source_row=padded(0, lambda number: groups[number][0]),
        source_column=padded(1, lambda number: 0),
        segment=padded(2, lambda number: -1),
        group=torch.tensor(group_of),
        start=torch.tensor(start_of),
    )


def packed_positions(
    layout: PackedLayout, prompt_positions: torch.Tensor, next_position: torch.Tensor
) -> torch.Tensor:
    """Rotary positions of the packed tokens: those of the plain layout.

    Args:
        layout: of G groups.
        prompt_positions: (A, G, P) of each group's prompt on the A axes of the rotary embedding.
        next_position: (G,) position of the first token after each prompt, the same on all axes.

    Returns:
        (A, G, L) int64 on the device of `prompt_positions`; 0 at padding.
    """
    device = prompt_positions.device
    axes, _, width = prompt_positions.shape
    column = layout.source_column.to(device)
    prompt = prompt_positions.gather(2, column.clamp(max=width - 1).expand(axes, -1, -1))
    answer = next_position.to(device)[:, None] + column - width
    positions = torch.where(column < width, prompt, answer)
    return positions.masked_fill(layout.segment.to(device) < 0, 0)


def gather_segments(values: torch.Tensor, layout: PackedLayout, mask: torch.Tensor) -> torch.Tensor:
    """Per-token values of the packed rows, back in the plain layout.

    Args:
        values: (G, L - 1); entry i belongs to token i + 1, as TRL's fused head returns them.
        layout: of the packed rows.
        mask: (N, C) nonzero where a completion has a token.

    Returns:
        (N, C), zero outside the mask.
    """
    index = layout.start[:, None] + torch.arange(mask.shape[1])
    index = index.clamp(max=values.shape[1] - 1).to(values.device)
    found = values[layout.group.to(values.device)[:, None], index]
    return found.masked_fill(mask == 0, 0)


def shuffle_groups(groups: Sequence[Sequence[int]], rows: int) -> list[int]:
    """Random order of whole groups, rows of a group side by side and in their order.

    Draws one permutation of `rows` from torch's global generator, as TRL does, so that the random state afterwards is
    that of a plain run.

    Returns:
        a permutation of the row numbers.
    """
    place = torch.randperm(rows).argsort().tolist()
    shuffled = sorted(groups, key=lambda group: min(place[row] for row in group))
    return [row for group in shuffled for row in group]
