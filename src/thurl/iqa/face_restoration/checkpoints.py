"""Released files of the evaluation, turned once into formats that hold numbers only.

| file | layout | becomes |
|---|---|---|
| `adaface_ir50_ms1mv2.ckpt` and its relatives | Lightning: `state_dict`, names begin with `model.` | model folder |
| `pt_inception-2015-12-05-*.pth` | state dict of the FID network | read as it is (`fid_network`) |
| `inception_FFHQ_512.pth` | mapping with numpy arrays `mean` and `cov` | `.npz` (`statistics`) |

Everything is read with `weights_only=True`. A Lightning file also holds the training's settings in containers of other
packages; those become plain dictionaries; the packages are not imported.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.iqa.face_restoration.adaface import DEPTHS, AdaFaceConfig, AdaFaceModel


__all__ = ["adaface_from_official", "convert_adaface", "load_adaface", "read_checkpoint"]

_PREFIX = "model."

# What numpy arrays consist of in a pickle. All three only rebuild numbers; arrays of objects are refused afterwards.
_NUMPY_TYPES = ("float64", "float32", "int64", "int32")


class _Settings:
    """Stand-in for a container of another package: makes a plain dictionary, whatever it is asked to be."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()  # of the containers that torch fills and restores, the one that fits all of them


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """Content of a torch file, on the CPU; nothing in it is executed.

    Raises:
        MissingRequirementError: no such file.
        DataError: not a torch file, or one with something else than tensors, numpy numbers and plain containers.
    """
    if not os.path.isfile(path):
        raise MissingRequirementError(f"{path}: no such file; download the released checkpoint first")
    try:
        others = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        allowed = [*_numpy_parts(), *((_Settings, name) for name in others if _is_settings(name))]
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 - the format is a pickle
    except Exception as error:  # the unpickler raises whatever a broken file leads it to
        reason = _reason(error)
        raise DataError(
            f"{path}: not a checkpoint of tensors and plain values ({reason}); download it again, and do not open it "
            "in any other way if you do not trust it"
        ) from None


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


def _reason(error: Exception) -> str:
    """What went wrong, without torch's advice to load the file unsafely."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "GLOBAL" in line or line.startswith("Can only")]
    first = (told or lines or [type(error).__name__])[0]
    return "it holds other objects" if "Re-running" in first else first.partition(". Please use")[0]


def _numpy_parts() -> list[Any]:
    rebuild = np.empty(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    # The module moved in numpy 2; files written before and after name different places.
    names = [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    names += [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    kinds = [type(np.dtype(name)) for name in _NUMPY_TYPES]
    return [*names, np.ndarray, np.dtype, *kinds]


def _is_settings(name: str) -> bool:
    """Containers in which Lightning and argparse keep the settings of a training run."""
    package = name.split(".")[0]
    return package in ("pytorch_lightning", "lightning", "lightning_fabric", "omegaconf") or name in (
        "argparse.Namespace",
        "pathlib.PosixPath",
        "pathlib._local.PosixPath",
        "collections.defaultdict",
    )
