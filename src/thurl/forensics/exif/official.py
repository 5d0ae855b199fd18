"""Released checkpoints of both methods to thurl's models, and back.

The files are pickles with the entries epoch, model, optimizer and lr_sched, which `thurl.training.released_files`
reads without running anything in them.

| layout | file | keys | becomes |
|---|---|---|---|
| `blades_oc` | `OC.pth` | 472, below `model.` | `BladesModel` |
| `blades_bc` | `BC.pth` | the same below `model.model.`, and `fc1`, `fc2` | `BladesModel` and `FaceHead` |
| `icassp` | the one-class method's | 335, below `model.`, and five heads | `ExifOrdinalModel` |
| `visual` | EXIF as Language (CVPR 2023), the start of both | `model.visual.*`, others left alone | `ExifEncoder` |

Every key of the visual tower must be there. Whatever else is missing keeps its random start and is named in
`config.untrained`; whatever else is there is left out and listed.

Two things of the released one-class weights are put right here and turned back by `to_official`:
- The official data class swaps two labels, so `fc_et` learned to rank the focal length and `fc_fl` the exposure time.
- It reads "1/60 sec" as 60, so what ranks the exposure time ranks its inverse for all but the longest exposures. The
  head's sign is turned, hence a higher score means a longer exposure, as with labels in seconds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from thurl.errors import DataError, UsageError
from thurl.forensics.exif.blades import BladesModel
from thurl.forensics.exif.config import BladesConfig, ExifEncoderConfig, ExifOrdinalConfig, FaceHeadConfig
from thurl.forensics.exif.encoder import ExifEncoder
from thurl.forensics.exif.head import FaceHead
from thurl.forensics.exif.ordinal import ExifOrdinalModel
from thurl.training.openai_clip import collected, from_openai, text_names, to_openai
from thurl.training.released_files import read_model_tensors


__all__ = [
    "DETECTOR_FILE",
    "LAYOUTS",
    "Converted",
    "convert_checkpoint",
    "from_official",
    "layout_of",
    "to_official",
]

DETECTOR_FILE = "detector.safetensors"
"""Name of the binary detector beside a converted encoder."""


LAYOUTS = ("blades_oc", "blades_bc", "icassp", "visual")

_HEADS = {
    "fc_iso": "iso",
    "fc_av": "aperture",
    "fc_et": "focal_length",  # named after the label it did not get
    "fc_fl": "exposure_time",
    "fc_face": "coarse_face",
}
_TURNED = "exposure_time"

# Official name to ours, below `model.`, of what surrounds the text tower.
_TEXT = {
    "text_projection": "text.text_projection.weight",
    "text_fc.weight": "text_fc.weight",
    "text_fc.bias": "text_fc.bias",
    "logit_scale": "logit_scale",
}


@dataclass
class Converted:
    """What came out of a checkpoint.

    Attributes:
        model: the encoder in its model, in evaluation mode.
        head: the binary detector's perceptron, for `blades_bc` only.
        layout: one of `LAYOUTS`.
        missing: official keys that were looked for and not found; none of the visual tower.
        unused: official keys that no part of the model has a place for.
    """

    model: PreTrainedModel
    head: FaceHead | None
    layout: str
    missing: list[str]
    unused: list[str]


def layout_of(state: Mapping[str, Any]) -> str:
    """Which of `LAYOUTS` a set of keys has.

    Raises:
        DataError: none of them.
    """
    if any(key.startswith("model.model.visual.") for key in state):
        return "blades_bc"
    if any(key.startswith("model.visual.") for key in state):
        if any(key.split(".")[0] in _HEADS for key in state):
            return "icassp"
        return "blades_oc" if any(key.startswith("model.text_fc.") for key in state) else "visual"
    found = ", ".join(sorted(state)[:3]) or "none"
    raise DataError(
        f"no key begins with `model.visual.` or `model.model.visual.` (found: {found}, ...): this is none of the "
        "released EXIF checkpoints"
    )


def from_official(
    state: Mapping[str, torch.Tensor],
    layout: str | None = None,
    *,
    config: BladesConfig | ExifOrdinalConfig | ExifEncoderConfig | None = None,
) -> Converted:
    """Build the model that a checkpoint's tensors belong to. The parts it lacks start from torch's current seed.

    Args:
        state: official names to tensors, from `read_model_tensors`. `module.` in front of every name is dropped.
        layout: one of `LAYOUTS`; found from the names when `None`.
        config: of the model, the released sizes by default: `ExifOrdinalConfig` for `icassp`, `ExifEncoderConfig` for
            `visual`, `BladesConfig` for the others.

    Raises:
        DataError: a key of the visual tower or of the binary head is missing, a tensor has another shape or holds
            values that are not finite; all problems together.
        UsageError: no such layout.
    """
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    layout = layout_of(state) if layout is None else layout
    if layout not in LAYOUTS:
        raise UsageError(f"layout {layout!r} is none of {', '.join(LAYOUTS)}")
    model = _build(layout, config)
    names = _names(model, "model.model." if layout == "blades_bc" else "model.")
    values, missing, problems = _collected(model.state_dict(), names, state)
    lacking = [key for key in missing if ".visual." in key]
    if lacking:
        problems.insert(
            0,
            f"{len(lacking)} of {sum('.visual.' in key for key in names)} keys of the visual tower are missing "
            f"({', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}); features without them mean nothing",
        )
    used = set(names)
    head = None
    if layout == "blades_bc":
        head, lost = _head(state, problems)
        used |= set(lost)
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(f"the {layout} checkpoint cannot be used: {'; '.join(problems[:5])}{more}")
    model.load_state_dict(values, strict=False)
    if not isinstance(model, ExifEncoder):
        model.config.untrained = _untrained(missing)
    return Converted(model.eval(), head, layout, missing, sorted(set(state) - used))


def to_official(model: PreTrainedModel, head: FaceHead | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a model under the official names; the inverse of `from_official`, bit by bit.

    The one-class method's file also has five keys of a text tower it never uses; they are not made up here, and the
    official code does not miss them.

    Args:
        model: a `BladesModel`, `ExifOrdinalModel` or `ExifEncoder`.
        head: with a `BladesModel`: names of `BC.pth`.

    Raises:
        UsageError: a head with another model.
    """
    if head is not None and not isinstance(model, BladesModel):
        raise UsageError(f"a binary head with {type(model).__name__}: the released BC layout has the BLADES encoder")
    names = _names(model, "model." if head is None else "model.model.")
    own = model.state_dict()
    state = {official: _forth(official, [own[name] for name in ours]) for official, ours in names.items()}
    if head is not None:
        state |= head.state_dict()
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def convert_checkpoint(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    layout: str | None = None,
    config: BladesConfig | ExifOrdinalConfig | ExifEncoderConfig | None = None,
    processor: Any = None,
) -> Converted:
    """Turn a released file into a folder: model, image processor and, for `BC.pth`, the binary detector.

    The released input transform is the image processor's default: 224 pixels, no anti-aliasing.

    Args:
        path: the released file.
        output: folder to write; made if it is not there.
        layout, config: as `from_official` takes them.
        processor: image processor to save beside the model; the released one when None.

    Raises:
        UsageError: `output` holds a model already.
        DataError, MissingRequirementError: as `read_model_tensors` and `from_official`.
    """
    from thurl.forensics.exif.detector import Detector, save_detector
    from thurl.forensics.exif.features import FeatureTower, visual_tower
    from thurl.forensics.processing import FaceImageProcessor

    folder = Path(output)
    if (folder / "config.json").exists():
        raise UsageError(f"{folder} holds a model already; choose another folder")
    converted = from_official(read_model_tensors(path), layout, config=config)
    processor = FaceImageProcessor() if processor is None else processor
    converted.model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if converted.head is not None:
        tower = FeatureTower(visual_tower(converted.model), processor)
        detector = Detector(
            converted.head,
            encoder=tower.fingerprint,
            unit_length=True,
            transform=tower.transform,
            training={"converted_from": "blades_bc"},
        )
        save_detector(detector, folder / DETECTOR_FILE)
    return converted


def _build(layout: str, config: Any) -> PreTrainedModel:
    if layout == "icassp":
        return ExifOrdinalModel(config or ExifOrdinalConfig())
    if layout == "visual":
        return ExifEncoder(config or ExifEncoderConfig())
    return BladesModel(config or BladesConfig())


def _names(model: PreTrainedModel, prefix: str) -> dict[str, list[str]]:
    """Official key to the one or three of ours it holds."""
    if isinstance(model, ExifEncoder):
        return {f"{prefix}visual.{name}": [name] for name in model.state_dict()}
    names = {f"{prefix}{name}": [name] for name in model.state_dict() if name.startswith("visual.")}
    if isinstance(model, ExifOrdinalModel):
        for official, task in _HEADS.items():
            names |= {f"{official}.{kind}": [f"heads.{task}.{kind}"] for kind in ("weight", "bias")}
        return names
    names |= {f"{prefix}{official}": [ours] for official, ours in _TEXT.items()}
    for official, ours in text_names(model.config.text_config.num_hidden_layers).items():
        names[f"{prefix}{official}"] = [f"text.text_model.{name}" for name in ours]
    return names


def _back(official: str, tensor: torch.Tensor) -> list[torch.Tensor]:
    """An official tensor as the one or three of ours."""
    return [-tensor] if _HEADS.get(official.split(".")[0]) == _TURNED else from_openai(official, tensor)


def _forth(official: str, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return -tensors[0] if _HEADS.get(official.split(".")[0]) == _TURNED else to_openai(official, tensors)


def _collected(
    own: Mapping[str, torch.Tensor], names: Mapping[str, list[str]], state: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], list[str], list[str]]:
    """`thurl.training.openai_clip.collected` with the heads turned."""
    return collected(own, names, state, back=_back, forth=_forth)


def _head(state: Mapping[str, torch.Tensor], problems: list[str]) -> tuple[FaceHead | None, list[str]]:
    keys = ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    if lacking := [key for key in keys if key not in state]:
        problems.append(f"the binary head lacks {', '.join(lacking)}")
        return None, keys
    first = state["fc1.weight"]
    if first.dim() != 2:
        problems.append(f"fc1.weight has the shape {tuple(first.shape)}, a matrix is needed")
        return None, keys
    head = FaceHead(FaceHeadConfig(feature_size=first.shape[1], hidden_size=first.shape[0]))
    values, _, wrong = _collected(head.state_dict(), {key: [key] for key in keys}, state)
    problems += wrong
    if not wrong:
        head.load_state_dict(values)
    return head.eval(), keys


def _untrained(missing: Sequence[str]) -> list[str]:
    """Parts of a model that lack at least one tensor."""
    parts = {_HEADS.get(key.split(".")[0], "text") for key in missing}
    return sorted(parts)
