"""The policy update over packed rows, as `RankGRPOTrainer` uses it (see the package for what packed rows are)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from thurl.errors import UsageError
from thurl.rl.shared_prefix.attention import ATTENTION, PackedAttention, packed_attention, use_packed_sdpa
from thurl.rl.shared_prefix.cost import MINIMUM_SPEEDUP, estimate_speedup, packed_call, plain_call
from thurl.rl.shared_prefix.layout import (
    PackedLayout,
    Rows,
    gather_segments,
    group_rows,
    pack_rows,
    packed_positions,
    shuffle_groups,
)


__all__ = ["PrefixSharing", "PrefixSharingMode", "split_whole_groups", "unsupported"]

logger = logging.getLogger(__name__)

PrefixSharingMode = Literal["auto", "on", "off"]

MODEL_TYPES = ("qwen2_5_vl",)
"""Architectures whose positions and masks are known to be taken as given; each is under test."""

# Arguments of the model's call that have a place in packed rows.
_PICTURES = ("pixel_values", "image_grid_thw")
_KNOWN = (*_PICTURES, "num_images", "mm_token_type_ids")


def unsupported(model: torch.nn.Module) -> str | None:
    """Why this model cannot work on packed rows, None where it can."""
    backbone = _backbone(model)
    if backbone is None or backbone.config.model_type not in MODEL_TYPES:
        name = type(model).__name__ if backbone is None else backbone.config.model_type
        return f"the architecture {name} is not one of {', '.join(MODEL_TYPES)}"
    text = backbone.language_model.config
    if text._attn_implementation not in ("sdpa", ATTENTION):
        return (
            f"the attention implementation {text._attn_implementation} knows no packed rows; "
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


@dataclass(frozen=True)
class _PackedCall:
    """One call of the model."""

    rows: list[int]
    """Rows of the plain layout that it serves; the layout below counts within them."""
    firsts: list[int]
    """The first row of each group or piece of one, whose pictures it gets."""
    layout: PackedLayout
    plan: PackedAttention


def _packed_calls(
    groups: list[list[int]], prompts: list[int], completions: list[int], prompt_width: int, batch_size: int | None
) -> list[_PackedCall]:
    """As many calls of as many rows as TRL makes. A group on the border of two is in both, with a part of its rows."""
    order = [row for group in groups for row in group]
    home = {row: number for number, group in enumerate(groups) for row in group}
    chunk = batch_size or len(order)
    calls = []
    for start in range(0, len(order), chunk):
        rows = order[start : start + chunk]
        pieces: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            pieces.setdefault(home[row], []).append(place)
        lengths = [completions[row] for row in rows]
        layout = pack_rows([prompts[row] for row in rows], lengths, list(pieces.values()), prompt_width)
        firsts = [rows[piece[0]] for piece in pieces.values()]
        calls.append(_PackedCall(rows, firsts, layout, packed_attention(layout, lengths)))
    return calls


def _worthwhile(backbone: Any, calls: list[_PackedCall], pixels: Rows, length: int) -> bool:
    """Whether the packed calls are clearly less work than rows of that length."""
    patches = [0 if value is None else len(value) for value in pixels]
    plain = [plain_call(len(call.rows), length, sum(patches[row] for row in call.rows)) for call in calls]
    packed = [packed_call(call.plan, sum(patches[row] for row in call.firsts)) for call in calls]
    # Without a backward pass the vision tower costs a third of what it would, compared with a trained language model.
    trained = any(parameter.requires_grad for parameter in backbone.visual.parameters())
    return estimate_speedup(backbone.config, plain, packed, 1 if trained else 1 / 3) >= MINIMUM_SPEEDUP


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
        calls = _packed_calls(
            groups, prompt_mask.sum(dim=1).tolist(), completion_mask.sum(dim=1).tolist(), prompt_width, batch_size
        )
        if self.mode == "auto" and not _worthwhile(_backbone(model), calls, pixels, input_ids.shape[1]):
            return None
        results = []
        for call in calls:
            index = torch.tensor(call.rows, device=input_ids.device)
            outputs = self._call(
                model,
                call,
                input_ids[index],
                prompt_mask[index],
                multimodal["mm_token_type_ids"][index, :prompt_width],
                _joined([pixels[row] for row in call.firsts]),
                _joined([grids[row] for row in call.firsts]),
            )
            mask = completion_mask[index]
            results.append(
                [value if value is None else gather_segments(value, call.layout, mask) for value in outputs]
            )
        self.packed_calls += len(calls)
        order = [row for call in calls for row in call.rows]
        back = torch.tensor(order, device=input_ids.device).argsort()
        logps, entropies = zip(*results, strict=True)
        return torch.cat(logps)[back], None if entropies[0] is None else torch.cat(entropies)[back]

    def _call(
        self,
        model: torch.nn.Module,
        call: _PackedCall,
        input_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        markers: torch.Tensor,
        pixel_values: torch.Tensor | None,
        image_grid_thw: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One call of the model: (G, L - 1) log-probabilities, and entropies where the head has them."""
        backbone, layout = _backbone(model), call.layout
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
        use_packed_sdpa(backbone.language_model)
        with self.autocast():
            outputs = model(
                input_ids=packed_ids,
                # A mapping by type of layer is handed on as it is.
                attention_mask={"full_attention": call.plan.to(device)},
                position_ids=packed_positions(layout, positions, mask.sum(dim=1) + deltas.flatten().to(device)),
                pixel_values=pixel_values,
                image_grid_thw=image_grid_thw,
                labels=labels,
                fused_lm_head=True,
            )
        return outputs.log_probs, outputs.entropy


def _joined(values: Rows) -> torch.Tensor | None:
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
