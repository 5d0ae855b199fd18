"""Released checkpoints of A-FINE to `AFineModel`, and back.

Three layouts are read, all of them as tensors only (torch's restricted unpickler, which runs nothing):

| layout | what it is |
|---|---|
| `afine.pth` | the release: a dictionary of six state dictionaries |
| a folder | the files of the training stages, each `{"params": ...}`, and `clip_model.pth` as it is |
| `.safetensors` | the six flattened to `<part>.<key>` |

Every key must be there and none may be left over, but for CLIP's text tower and the projection of its image tower,
which the method never uses. Numbers without a dimension (k and the four yita) are kept and reported.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.models.clip.modeling_clip import CLIPVisionModel

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.iqa.afine.checkpoint_files import STAGE_FILES, read_official, read_state
from thurl.iqa.afine.config import AFineConfig
from thurl.iqa.afine.model import AFineModel
from thurl.training.openai_clip import from_openai, is_text_name, to_openai, vision_config, vision_names


__all__ = [
    "Converted",
    "clip_tower",
    "convert_checkpoint",
    "from_official",
    "to_official",
]

logger = logging.getLogger(__name__)

State = Mapping[str, torch.Tensor]

# Official key to ours, but for the tower. Pixels' mean and standard deviation go into the configuration.
_NAMES = {
    "natural": {
        "proj_feat.weight": "naturalness_head.projection.weight",
        "proj_feat.bias": "naturalness_head.projection.bias",
        "proj_head.0.weight": "naturalness_head.hidden.weight",
        "proj_head.0.bias": "naturalness_head.hidden.bias",
        "proj_head.2.weight": "naturalness_head.score.weight",
        "proj_head.2.bias": "naturalness_head.score.bias",
    },
    "fidelity": {"alpha": "fidelity_head.alpha", "beta": "fidelity_head.beta"},
    "natural_scale": {"yita3": "naturalness_map.centre", "yita4": "naturalness_map.width"},
    "fidelity_scale": {"yita3": "fidelity_map.centre", "yita4": "fidelity_map.width"},
    "adapter": {"k": "adapter.k"},
}
_OUR_PARTS = {
    "finetuned_clip": "vision",
    "natural": "naturalness_head",
    "fidelity": "fidelity_head",
    "natural_scale": "naturalness_map",
    "fidelity_scale": "fidelity_map",
    "adapter": "adapter",
}
_PIXELS = ("mean", "std")
_UNUSED = "visual.proj"


@dataclass
class Converted:
    """What came out of a checkpoint.

    Attributes:
        model: in evaluation mode, float32.
        numbers: the trained scalars by our names, and `k_positive`, softplus of k. They decide how the scores are
            mapped; a loader that drops numbers without a dimension would leave them at their start.
        ignored: official names that no part of the model reads: the text tower and CLIP's projections.
    """

    model: AFineModel
    numbers: dict[str, float]
    ignored: list[str]


def from_official(parts: Mapping[str, State], *, allow_missing: bool = False, **changes: Any) -> Converted:
    """Build the model that a checkpoint's tensors belong to; its sizes are read off their shapes.

    Args:
        parts: as `read_official` returns them.
        allow_missing: let whole parts be missing but for the tower, such as those of later training stages. They
            start from torch's current seed and are named in `config.untrained`.
        changes: arguments of `AFineConfig`, such as `adapter`.

    Raises:
        DataError: keys that are missing or left over, other shapes, values that are not finite; all of them together.
    """
    problems = [f"{part}: no part of A-FINE has this name" for part in parts if part not in STAGE_FILES]
    missing = [part for part in STAGE_FILES if part not in parts]
    needed = ["finetuned_clip"] if allow_missing else list(STAGE_FILES)
    problems += [f"{part}: the whole part is missing" for part in missing if part in needed]
    tower = {
        key.removeprefix("visual."): tensor
        for key, tensor in parts.get("finetuned_clip", {}).items()
        if key.startswith("visual.")
    }
    if "finetuned_clip" in missing:
        raise _unusable(problems)
    try:
        sizes = {"vision_config": vision_config(tower), **_head_sizes(parts), **_pixel_statistics(parts, problems)}
    except ValueError as error:
        raise _unusable([*problems, f"finetuned_clip: {error}"]) from None
    model = AFineModel(AFineConfig(**{**sizes, "untrained": [_OUR_PARTS[part] for part in missing], **changes}))
    names, ignored = _names(model), []
    values: dict[str, torch.Tensor] = {}
    own = model.state_dict()
    for part, state in parts.items():
        if part in STAGE_FILES:
            ignored += [f"{part}.{key}" for key in state if part == "finetuned_clip" and _is_ignored(key)]
            values |= _collect(part, state, names[part], own, problems)
    if problems:
        raise _unusable(problems)
    model.load_state_dict(values, strict=False)
    return Converted(model.eval(), _numbers(model), ignored)


def to_official(model: AFineModel) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of a model as the six parts of the release; the inverse of `from_official`, bit by bit.

    CLIP's text tower and projections, which the model never had, are not made up.
    """
    own, parts = model.state_dict(), {}
    for part, names in _names(model).items():
        parts[part] = {
            key: _official_shape(part, to_openai(key, [own[name] for name in ours]).detach().clone())
            for key, ours in names.items()
        }
        if part in ("natural", "fidelity"):
            given = (model.config.image_mean, model.config.image_std)
            parts[part] |= {key: torch.tensor(v).reshape(1, 3, 1, 1) for key, v in zip(_PIXELS, given, strict=True)}
    return parts


def convert_checkpoint(
    path: str | os.PathLike[str], output: str | os.PathLike[str], *, allow_missing: bool = False, **changes: Any
) -> Converted:
    """Turn a released checkpoint into a folder for `AFineModel.from_pretrained`.

    Args:
        path: what `read_official` reads.
        output: folder to write; made if it is not there.
        allow_missing, changes: as `from_official` takes them.

    Raises:
        UsageError: `output` holds a model already.
        DataError, MissingRequirementError: as `read_official` and `from_official`.
    """
    folder = Path(output)
    if (folder / "config.json").exists():
        raise UsageError(f"{folder} holds a model already; choose another folder")
    converted = from_official(read_official(path), allow_missing=allow_missing, **changes)
    converted.model.save_pretrained(folder)
    logger.info("A-FINE from %s: %s", path, ", ".join(f"{k} {v:.6g}" for k, v in converted.numbers.items()))
    return converted


def clip_tower(name_or_path: str | os.PathLike[str]) -> CLIPVisionModel:
    """The image tower of a stock CLIP in float32: a folder or Hub name of transformers, or a file of OpenAI's names.

    Raises:
        MissingRequirementError: it is not there, or not to be had.
        DataError: it lacks weights of the image tower.
    """
    path = Path(name_or_path)
    if path.is_file():
        state = read_state(path)
        if state and all(key.startswith("module.") for key in state):
            state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
        tower = {key.removeprefix("visual."): tensor for key, tensor in state.items() if key.startswith("visual.")}
        try:
            model = CLIPVisionModel(vision_config(tower))
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
        problems: list[str] = []
        names, own = vision_names(model.config.num_hidden_layers), model.state_dict()
        values = _collect("visual", {key: t for key, t in tower.items() if key != "proj"}, names, own, problems)
        if problems:
            raise _unusable(problems)
        model.load_state_dict(values)
        return model.eval()
    try:
        model, info = CLIPVisionModel.from_pretrained(name_or_path, output_loading_info=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MissingRequirementError(
            f"{name_or_path}: no CLIP to be had ({reason}); give a folder with config.json and weights"
        ) from None
    if lacking := sorted(info["missing_keys"]):
        shown = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
        raise DataError(f"{name_or_path}: weights of CLIP's image tower are missing: {shown}")
    return model.eval()


def _names(model: AFineModel) -> dict[str, dict[str, list[str]]]:
    tower = vision_names(model.config.vision_config.num_hidden_layers)
    names = {"finetuned_clip": {f"visual.{key}": [f"vision.{name}" for name in ours] for key, ours in tower.items()}}
    return names | {part: {key: [name] for key, name in keys.items()} for part, keys in _NAMES.items()}


def _collect(
    part: str, state: State, names: Mapping[str, list[str]], own: State, problems: list[str]
) -> dict[str, torch.Tensor]:
    """Our tensors out of one part; what is wrong with it goes to `problems`."""
    values: dict[str, torch.Tensor] = {}
    problems += [f"{part}: {key} is missing" for key in names if key not in state]
    for key, tensor in state.items():
        if key not in names:
            if not (key in _PIXELS and part in ("natural", "fidelity")) and not (
                part == "finetuned_clip" and _is_ignored(key)
            ):
                problems.append(f"{part}: {key} is unexpected, no weight of the model has this name")
            continue
        wanted = to_openai(key, [own[name] for name in names[key]])
        # alpha and beta are (1, 1, C) and the scalars have no dimension in the release.
        flat = part not in ("finetuned_clip", "visual") and wanted.dim() == 1
        if tensor.shape != wanted.shape and not (flat and tensor.numel() == wanted.numel()):
            problems.append(f"{part}: {key} has the shape {tuple(tensor.shape)}, {tuple(wanted.shape)} is needed")
        elif not tensor.isfinite().all():
            problems.append(f"{part}: {key} holds values that are not finite")
        else:
            parts = from_openai(key, tensor.reshape(wanted.shape))
            values |= {name: piece.to(own[name].dtype) for name, piece in zip(names[key], parts, strict=True)}
    return values


def _head_sizes(parts: Mapping[str, State]) -> dict[str, int]:
    head = parts.get("natural", {})
    keys = {"projection_size": "proj_feat.weight", "head_size": "proj_head.0.weight"}
    return {size: len(head[key]) for size, key in keys.items() if key in head and head[key].dim() == 2}


def _pixel_statistics(parts: Mapping[str, State], problems: list[str]) -> dict[str, list[float]]:
    """Mean and standard deviation of the pixels, which both heads hold and must agree on."""
    found: dict[str, list[float]] = {}
    for part in ("natural", "fidelity"):
        for key in _PIXELS if part in parts else ():
            tensor = parts[part].get(key)
            values = [] if tensor is None else [float(value) for value in tensor.flatten()]
            if len(values) != 3 or not all(map(math.isfinite, values)) or (key == "std" and min(values) <= 0):
                problems.append(f"{part}: {key} is missing or not three finite numbers, positive ones for std")
                continue
            if found.setdefault(f"image_{key}", values) != values:
                problems.append(f"{part}: {key} is {values}, in the other head {found[f'image_{key}']}")
    return found


def _official_shape(part: str, tensor: torch.Tensor) -> torch.Tensor:
    if part == "fidelity":
        return tensor.reshape(1, 1, -1)
    return tensor.reshape(()) if part in ("natural_scale", "fidelity_scale", "adapter") else tensor


def _is_ignored(key: str) -> bool:
    return key == _UNUSED or is_text_name(key)


def _numbers(model: AFineModel) -> dict[str, float]:
    numbers = {
        "naturalness_map.centre": model.naturalness_map.centre,
        "naturalness_map.width": model.naturalness_map.width,
        "fidelity_map.centre": model.fidelity_map.centre,
        "fidelity_map.width": model.fidelity_map.width,
        "adapter.k": model.adapter.k,
        "adapter.k_positive": model.adapter.k_positive,
    }
    return {name: float(value.detach()) for name, value in numbers.items()}


def _unusable(problems: list[str], shown: int = 20) -> DataError:
    more = [f"  ... and {len(problems) - shown} more"] if len(problems) > shown else []
    return DataError("\n".join(["the checkpoint cannot be used:", *[f"  {line}" for line in problems[:shown]], *more]))
