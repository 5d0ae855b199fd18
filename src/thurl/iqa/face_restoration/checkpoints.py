"""Released files of the evaluation, turned once into formats that hold numbers only.

| file | layout | becomes |
|---|---|---|
| `adaface_ir50_ms1mv2.ckpt` and its relatives | Lightning: `state_dict`, names begin with `model.` | model folder |
| `pt_inception-2015-12-05-*.pth` | state dict of the FID network | read as it is (`fid_network`) |
| `inception_FFHQ_512.pth` | mapping with numpy arrays `mean` and `cov` | `.npz` (`statistics`) |

Read by `thurl.training.released_files.read_checkpoint`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from thurl.errors import DataError, UsageError
from thurl.iqa.face_restoration.adaface import DEPTHS, AdaFaceConfig, AdaFaceModel
from thurl.training.released_files import read_checkpoint


__all__ = ["adaface_from_official", "convert_adaface", "load_adaface"]

_PREFIX = "model."


def adaface_from_official(state: Mapping[str, Any], architecture: str | None = None) -> AdaFaceModel:
    """Build AdaFace from the tensors of a released checkpoint.

    Args:
        state: names to tensors; either all below `model.`, as Lightning stores them, or without that prefix.
        architecture: one of `DEPTHS`; found from the number of blocks when None.

    Returns:
        the model in evaluation mode.

    Raises:
        DataError: a tensor is missing, has another shape, is not finite, or fits nowhere.
        UsageError: no such architecture.
    """
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    below = {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
    tensors = below or tensors
    if architecture is None:
        blocks = len({name.split(".")[1] for name in tensors if name.startswith("body.")})
        known = {sum(depths): name for name, depths in DEPTHS.items()}
        if blocks not in known:
            raise DataError(
                f"{blocks} blocks below `body.`: the released AdaFace models have "
                + ", ".join(f"{count} ({name})" for count, name in known.items())
            )
        architecture = known[blocks]
    if architecture not in DEPTHS:
        raise UsageError(f"architecture {architecture!r} is none of {', '.join(DEPTHS)}")
    model = AdaFaceModel(AdaFaceConfig(depths=DEPTHS[architecture]))
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in tensors]
    problems += [f"{name} fits nowhere" for name in tensors if name not in own]
    for name, value in own.items():
        if name in tensors and tensors[name].shape != value.shape:
            problems.append(f"{name} has the shape {tuple(tensors[name].shape)}, {tuple(value.shape)} is needed")
        elif name in tensors and not tensors[name].isfinite().all():
            problems.append(f"{name} holds values that are not finite")
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(f"not an AdaFace checkpoint of {architecture}: {'; '.join(problems[:5])}{more}")
    model.load_state_dict(tensors)
    return model.eval()


def convert_adaface(
    path: str | os.PathLike[str], folder: str | os.PathLike[str], architecture: str | None = None
) -> AdaFaceModel:
    """Turn a released `.ckpt` into a folder for `AdaFaceModel.from_pretrained`.

    Raises:
        UsageError: `folder` holds a model already.
        DataError, MissingRequirementError: as `read_checkpoint` and `adaface_from_official`.
    """
    target = Path(folder)
    if (target / "config.json").exists():
        raise UsageError(f"{target} holds a model already; choose another folder")
    model = adaface_from_official(_state_of(path), architecture)
    model.save_pretrained(target)
    return model


def load_adaface(path: str | os.PathLike[str]) -> AdaFaceModel:
    """AdaFace from a converted folder or straight from a released `.ckpt`, in evaluation mode.

    Raises:
        DataError, MissingRequirementError: the folder or file cannot be used.
    """
    if not os.path.isdir(path):
        return adaface_from_official(_state_of(path))
    try:
        model, info = AdaFaceModel.from_pretrained(path, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: not an AdaFace folder: {str(error).splitlines()[0]}") from None
    if lost := sorted(info["missing_keys"]) + sorted(str(key) for key in info.get("mismatched_keys") or ()):
        raise DataError(f"{path}: {len(lost)} parameters have no value, for example {', '.join(lost[:3])}")
    return model.eval()


def _state_of(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    content = read_checkpoint(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__}; a mapping from names to tensors is needed")
    return content
