"""Released hypernetworks to `MaskHypernetwork`. No trained one is known to be published; the layout is the official
code's (GitHub `hustyyq/Where-to-Edit`).

| official key | ours |
|---|---|
| `cls_token` (1, T, D) | `query_tokens` |
| `layer.b.attention_norm`, `layer.b.ffn_norm` | `blocks.b.attention_norm`, `blocks.b.feed_forward_norm` |
| `layer.b.attn.{query,key,value,out}` | `blocks.b.attention.*` |
| `layer.b.ffn.{fc1,fc2}` | `blocks.b.feed_forward.*` |
| `out_layer.t.out` | `heads.t` |
| `learn_masks` (T, M) | must be there and is left out: the official code does not use it |
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from thurl.editing.hypernetwork import MaskHypernetwork, MaskHypernetworkConfig
from thurl.errors import DataError, UsageError
from thurl.training.released_files import read_checkpoint


__all__ = ["convert_hypernetwork", "hypernetwork_from_official"]

_UNUSED = "learn_masks"
_RENAMED = {
    r"cls_token": "query_tokens",
    r"layer\.(\d+)\.attn\.(query|key|value|out)\.(weight|bias)": r"blocks.\1.attention.\2.\3",
    r"layer\.(\d+)\.attention_norm\.(weight|bias)": r"blocks.\1.attention_norm.\2",
    r"layer\.(\d+)\.ffn_norm\.(weight|bias)": r"blocks.\1.feed_forward_norm.\2",
    r"layer\.(\d+)\.ffn\.(fc1|fc2)\.(weight|bias)": r"blocks.\1.feed_forward.\2.\3",
    r"out_layer\.(\d+)\.out\.(weight|bias)": r"heads.\1.\2",
}


def convert_hypernetwork(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    heads: int = 6,
    base_fingerprint: str | None = None,
    base_model: str | None = None,
    units: Sequence[str] = (),
) -> MaskHypernetwork:
    """Turn an official file (`.pth` of plain tensors, opened without running anything, or safetensors) into a folder.

    Args:
        path: the file.
        output: folder to write; made if it is not there.
        heads: attention heads, which the file does not say; 6 officially.
        base_fingerprint: of the model that it was trained for. Without it the network must be forced on a model.
        base_model: its name.
        units: names of the parameters that the rows stand for.

    Raises:
        UsageError: `output` holds a model already, or sizes that do not fit.
        DataError, MissingRequirementError: as `hypernetwork_from_official` and `read_checkpoint`.
    """
    folder = Path(output)
    if (folder / "config.json").exists():
        raise UsageError(f"{folder} holds a model already; choose another folder")
    content = read_checkpoint(path)
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__}; a mapping from names to tensors is needed")
    model = hypernetwork_from_official(
        content, heads=heads, base_fingerprint=base_fingerprint, base_model=base_model, units=units
    )
    model.save_pretrained(folder)
    return model


def hypernetwork_from_official(state: Mapping[str, Any], *, heads: int = 6, **about: Any) -> MaskHypernetwork:
    """The hypernetwork that holds the tensors of an official state dictionary, in evaluation mode.

    Args:
        state: official names to tensors; sizes and the number of blocks follow from it.
        heads: attention heads.
        about: `base_fingerprint`, `base_model` and `units` of `MaskHypernetworkConfig`.

    Raises:
        DataError: names that are missing or unknown, tensors of other shapes or with values that are not finite; all
            problems together.
        UsageError: `heads` or `units` that do not fit the sizes.
    """
    places = {str(key): _renamed(str(key)) for key in state}
    problems = [f"{key} is no tensor" for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if unknown := sorted(key for key, place in places.items() if place is None and key != _UNUSED):
        problems.append(f"unknown: {', '.join(unknown[:5])}")
    needed = [key for key in ("cls_token", _UNUSED) if key not in state]
    if problems or needed:
        raise _refused([*problems, *(f"{key} is missing" for key in needed)])
    if state["cls_token"].dim() != 3 or state[_UNUSED].dim() != 2:
        raise _refused(["cls_token must have the shape (1, T, D), learn_masks (T, M)"])
    numbers = [int(found[1]) for key in state if (found := re.match(r"layer\.(\d+)\.", str(key)))]
    rows, neurons = state[_UNUSED].shape
    model = MaskHypernetwork(
        MaskHypernetworkConfig(
            hidden_size=state["cls_token"].shape[-1],
            neurons=neurons,
            rows=rows,
            blocks=max(numbers, default=0) + 1,
            heads=heads,
            **about,
        )
    )
    own = model.state_dict()
    values = {place: state[key] for key, place in places.items() if place is not None}
    problems = [f"a tensor for {name} is missing" for name in own if name not in values]
    problems += [f"there is no place for {name}" for name in values if name not in own]
    for name in own.keys() & values.keys():
        if own[name].shape != values[name].shape:
            problems.append(f"{name} needs {tuple(own[name].shape)}, the file has {tuple(values[name].shape)}")
        elif not values[name].isfinite().all():
            problems.append(f"{name} holds values that are not finite")
    if problems:
        raise _refused(sorted(problems))
    model.load_state_dict(values)
    return model.eval()


def _renamed(key: str) -> str | None:
    for pattern, ours in _RENAMED.items():
        if found := re.fullmatch(pattern, key):
            return found.expand(ours)
    return None


def _refused(problems: Sequence[str]) -> DataError:
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return DataError(
        f"no state dictionary of an official hypernetwork: {'; '.join(problems[:5])}{more}. Save the network's own "
        "`state_dict()` again"
    )
