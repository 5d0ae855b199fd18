"""Policy update in which the K completions of a prompt share one pass over it.

TRL repeats picture and prompt for each completion. Here a group becomes one packed row: the prompt without its last
token, then for each completion the last prompt token again followed by the completion (a *segment*). A token sees the
prompt and the earlier part of its own segment, with the positions it has in the plain layout, so log-probabilities
and gradients are those of the plain layout up to rounding. The vision tower runs once per group. It is one ordinary
call of the model: DDP, LoRA and gradient checkpointing work unchanged.

The mask is dense (one byte per pair of tokens of a row), which `sdpa` and `eager` attention accept and flash attention
does not. `auto` compares the work of both layouts before each call and takes the smaller one. Equality is tested on
CPU in float32, speed measured there (`benchmarks/grpo_prefix.py`); neither has been on a GPU yet.

Letters in shapes: N rows (completions), P padded prompt length, C padded completion length, G groups, L packed length.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from thurl.errors import UsageError


__all__ = [
    "PackedLayout",
    "PrefixSharing",
    "PrefixSharingMode",
    "estimate_speedup",
    "gather_segments",
    "group_rows",
    "pack_rows",
    "packed_positions",
    "shuffle_groups",
    "split_whole_groups",
    "unsupported",
    "visible_mask",
]

logger = logging.getLogger(__name__)

PrefixSharingMode = Literal["auto", "on", "off"]

MODEL_TYPES = ("qwen2_5_vl",)
"""Architectures whose positions and masks are known to be taken as given; each is under test."""
ATTENTION = ("sdpa", "eager")
MINIMUM_SPEEDUP = 1.1
"""Estimated gain below which `auto` keeps the plain layout."""

# Arguments of the model's call that have a place in packed rows.
_PICTURES = ("pixel_values", "image_grid_thw")
_KNOWN = (*_PICTURES, "num_images", "mm_token_type_ids")

_Rows = Sequence[torch.Tensor | None]


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


def group_rows(prompt_ids: torch.Tensor, prompt_mask: torch.Tensor, pixels: _Rows, grids: _Rows) -> list[list[int]]:
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


def visible_mask(segment: torch.Tensor) -> torch.Tensor:
    """Which key each query sees: an earlier token of the shared prompt or of its own segment, and always itself.

    Args:
        segment: (G, L) as in `PackedLayout`.

    Returns:
        (G, 1, L, L) bool, queries before keys. Padding sees something, too: a row without keys would become NaN.
    """
    query, key = segment[:, :, None], segment[:, None, :]
    width = segment.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=segment.device).tril()
    itself = torch.eye(width, dtype=torch.bool, device=segment.device)
    return ((((key == 0) | (key == query)) & causal) | itself)[:, None]


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


def estimate_speedup(config: Any, plain: Sequence[tuple[int, int]], packed: Sequence[tuple[int, int]]) -> float:
    """Work of the language model in the plain layout over that in the packed one.

    Leaves out what only makes sharing better (vision tower, output embedding), and lets the plain layout skip the half
    of the pairs that a causal kernel skips where there is no padding, while the dense mask skips none.

    Args:
        config: text configuration with `hidden_size`, `intermediate_size` and the numbers of heads.
        plain, packed: (rows, length) of each call of the model.
    """
    hidden = config.hidden_size
    keys = hidden * config.num_key_value_heads // config.num_attention_heads
    linear = 2 * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * config.intermediate_size)
    pair = 4 * hidden
    before = sum(rows * length * (linear + pair * length / 2) for rows, length in plain)
    after = sum(rows * length * (linear + pair * length) for rows, length in packed)
    return before / after


def unsupported(model: torch.nn.Module) -> str | None:
    """Why this model cannot work on packed rows, None where it can."""
    backbone = _backbone(model)
    if backbone is None or backbone.config.model_type not in MODEL_TYPES:
        name = type(model).__name__ if backbone is None else backbone.config.model_type
        return f"the architecture {name} is not one of {', '.join(MODEL_TYPES)}"
    text = backbone.language_model.config
    if text._attn_implementation not in ATTENTION:
        return (
            f"the attention implementation {text._attn_implementation} takes no mask of pairs; "
            "`attn_implementation: sdpa` does"
        )
    if set(text.layer_types) != {"full_attention"}:
        return f"the model has layers other than full attention ({', '.join(sorted(set(text.layer_types)))})"
    adapters = getattr(model, "peft_config", None) or {}
    if any(adapter.is_prompt_learning for adapter in adapters.values()):
        return "the adapter puts tokens of its own before the prompt"
    return None


def _backbone(model: torch.nn.Module) -> Any:
    return next((module for module in model.modules() if hasattr(type(module), "get_rope_index")), None)


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


def split_whole_groups(batch: Mapping[str, Any], steps: int) -> list[dict[str, Any]]:
    """Shuffle a generation batch by groups and cut it into `steps` parts of equal size, as TRL does by rows.

    A group is only cut where the part size is no multiple of its size.

    Args:
        batch: output of `GRPOTrainer._generate_and_score_completions`; sequences of N, scalars and None.
        steps: number of parts.
    """
    batch = split_pixel_values_by_grid(dict(batch))
    rows = len(batch["prompt_ids"])
    pixels, grids = (value if isinstance(value, list) else [None] * rows for value in map(batch.get, _PICTURES))
    order = shuffle_groups(group_rows(batch["prompt_ids"], batch["prompt_mask"], pixels, grids), rows)

    def ordered(value: Any) -> Any:
        if value is None or (isinstance(value, torch.Tensor) and not value.ndim):
            return value
        return value[order] if isinstance(value, torch.Tensor) else [value[row] for row in order]

    parts = split_tensor_dict({name: ordered(value) for name, value in batch.items()}, steps)
    return [unsplit_pixel_values_by_grid(part) for part in parts]


class PrefixSharing:
    """Per-token log-probabilities over packed rows, for the policy, its earlier versions and the reference alike.

    Args:
        mode: `"auto"` keeps the plain layout where packing would not be faster, and where it is not possible, with one
            warning; `"on"` always packs and refuses what is not possible.
        pad_token_id: fills packed rows.
        autocast: makes the context of a model call (`accelerator.autocast`).
        warn: whether this process says why it falls back.
    """

    def __init__(
        self,
        mode: Literal["auto", "on"],
        pad_token_id: int,
        autocast: Callable[[], AbstractContextManager[Any]],
        warn: bool = True,
    ) -> None:
        self.mode = mode
        self.pad_token_id = pad_token_id
        self.autocast = autocast
        self.packed_calls = 0
        self._warn = warn

    def fall_back(self, reason: str) -> None:
        """Say once why the plain layout is used; with `"on"` refuse it.

        Raises:
            UsageError: mode `"on"`.
        """
        if self.mode == "on":
            raise UsageError(
                f"`prefix_sharing: on` is not possible: {reason}. Use `auto`, which falls back, or `off`."
            )
        if self._warn:
            logger.warning("prefix_sharing: each completion repeats its prompt, because %s.", reason)
            self._warn = False

    def log_probs(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None,
        multimodal: Mapping[str, Any],
        compute_aux_loss: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """Log-probabilities and entropies of the completion tokens.

        The model is called as often as in the plain layout, so that sharded models stay in step on all processes.

        Args:
            model: with TRL's fused head, possibly wrapped.
            input_ids, attention_mask: (N, P + C), prompts padded on the left, completions on the right.
            logits_to_keep: C.
            batch_size: rows per call; all at once when None.
            multimodal: TRL's further arguments by name, None where absent.
            compute_aux_loss: whether the router loss is asked for, which packed rows do not give.

        Returns:
            (N, C) each, zero where there is no token; entropies None where the head computes none. None where the
            plain layout is to be used.

        Raises:
            UsageError: mode `"on"` and packing is not possible.
        """
        prompt_width = input_ids.shape[1] - logits_to_keep
        reason = _obstacle(model, prompt_width, multimodal, compute_aux_loss)
        if reason is not None:
            self.fall_back(reason)
            return None
        prompt_mask, completion_mask = attention_mask.split([prompt_width, logits_to_keep], dim=1)
        pixels, grids = _per_row(multimodal)
        groups = group_rows(input_ids[:, :prompt_width], prompt_mask, pixels, grids)
        order = [row for group in groups for row in group]
        chunk = batch_size or len(order)
        calls = [order[start : start + chunk] for start in range(0, len(order), chunk)]
        lengths = prompt_mask.sum(dim=1).tolist(), completion_mask.sum(dim=1).tolist()
        home = {row: number for number, group in enumerate(groups) for row in group}
        packed = []
        for rows in calls:
            pieces: dict[int, list[int]] = {}
            for place, row in enumerate(rows):
                pieces.setdefault(home[row], []).append(place)
            prompts, completions = ([length[row] for row in rows] for length in lengths)
            packed.append(pack_rows(prompts, completions, list(pieces.values()), prompt_width))
        if self.mode == "auto":
            plain = [(len(rows), input_ids.shape[1]) for rows in calls]
            shared = [(len(layout.segment), layout.segment.shape[1]) for layout in packed]
            if estimate_speedup(_backbone(model).language_model.config, plain, shared) < MINIMUM_SPEEDUP:
                return None
        results = []
        for rows, layout in zip(calls, packed, strict=True):
            index = torch.tensor(rows, device=input_ids.device)
            first = [rows[place] for place in layout.source_row[:, 0].tolist()]
            outputs = self._call(
                model,
                layout,
                input_ids[index],
                prompt_mask[index],
                multimodal["mm_token_type_ids"][index, :prompt_width],
                _joined([pixels[row] for row in first]),
                _joined([grids[row] for row in first]),
            )
            mask = completion_mask[index]
            results.append([value if value is None else gather_segments(value, layout, mask) for value in outputs])
        self.packed_calls += len(calls)
        back = torch.tensor(order, device=input_ids.device).argsort()
        logps, entropies = zip(*results, strict=True)
        return torch.cat(logps)[back], None if entropies[0] is None else torch.cat(entropies)[back]

    def _call(
        self,
        model: torch.nn.Module,
        layout: PackedLayout,
        input_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        markers: torch.Tensor,
        pixel_values: torch.Tensor | None,
        image_grid_thw: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One call of the model: (G, L - 1) log-probabilities, and entropies where the head has them."""
        backbone = _backbone(model)
        device = input_ids.device
        prompt_width = prompt_mask.shape[1]
        segment, row, column = (
            value.to(device) for value in (layout.segment, layout.source_row, layout.source_column)
        )
        packed_ids = input_ids[row, column].masked_fill(segment < 0, self.pad_token_id)
        labels = packed_ids.masked_fill((segment < 1) | (column < prompt_width), -100)
        first = row[:, 0]
        mask = prompt_mask[first]
        positions, deltas = backbone.get_rope_index(
            input_ids[first, :prompt_width], markers[first], image_grid_thw=image_grid_thw, attention_mask=mask
        )
        visible = visible_mask(segment)
        if backbone.language_model.config._attn_implementation == "eager":
            # Eager attention adds the mask; a bool one would shift every score by at most one, without an error.
            dtype = backbone.dtype
            visible = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill(
                ~visible, torch.finfo(dtype).min
            )
        with self.autocast():
            outputs = model(
                input_ids=packed_ids,
                attention_mask=visible,
                position_ids=packed_positions(layout, positions, mask.sum(dim=1) + deltas.flatten().to(device)),
                pixel_values=pixel_values,
                image_grid_thw=image_grid_thw,
                labels=labels,
                fused_lm_head=True,
            )
        return outputs.log_probs, outputs.entropy


def _joined(values: _Rows) -> torch.Tensor | None:
    there = [value for value in values if value is not None]
    return torch.cat(there) if there else None


def _obstacle(
    model: torch.nn.Module, prompt_width: int, multimodal: Mapping[str, Any], compute_aux_loss: bool
) -> str | None:
    if compute_aux_loss:
        return "the router's auxiliary loss is counted over the rows of the plain layout"
    unknown = sorted(name for name, value in multimodal.items() if value is not None and name not in _KNOWN)
    if unknown:
        return f"the model is called with {', '.join(unknown)}, whose place in packed rows is not known"
    missing = [name for name in _KNOWN if multimodal.get(name) is None]
    if missing:
        return f"a batch has no {', '.join(missing)}: text alone is not packed"
    if bool(multimodal["mm_token_type_ids"][:, prompt_width:].any()):
        return "completions hold pictures"
    return unsupported(model)


def _per_row(multimodal: Mapping[str, Any]) -> tuple[list[torch.Tensor | None], list[torch.Tensor | None]]:
    """Patches and grids of each row's pictures, None for a row without one."""
    pixel_values, image_grid_thw = (multimodal[name] for name in _PICTURES)
    counts = multimodal["num_images"]
    grids = torch.split(image_grid_thw, counts)
    pixels = torch.split(pixel_values, [int(grid.prod(dim=1).sum()) for grid in grids])
    some = [bool(count) for count in counts]
    return (
        [value if used else None for value, used in zip(pixels, some, strict=True)],
        [value if used else None for value, used in zip(grids, some, strict=True)],
    )
