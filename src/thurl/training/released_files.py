"""Released files as tensors and plain values: the one place that opens a pickle, and nothing in it is executed.

Torch's files are read with `weights_only=True`. A Lightning file also holds the settings of its training in containers
of other packages; those become plain dictionaries, and the packages are not imported. Objects of a class that a
method expects become `Record`s. What a file means is for its method to say (`thurl.distillation.released`,
`thurl.forensics.exif.official`, `thurl.forensics.deepfake.official`, `thurl.iqa.afine.checkpoint_files`,
`thurl.iqa.face_restoration.checkpoints`).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from thurl.errors import DataError, MissingRequirementError


__all__ = ["Record", "read_checkpoint", "read_model_tensors"]

# What numpy arrays consist of in a pickle. All three only rebuild numbers; arrays of objects are refused afterwards.
_NUMPY_TYPES = ("float64", "float32", "int64", "int32")


class _Settings:
    """Stand-in for a container of another package: makes a plain dictionary, whatever it is asked to be."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()  # of the containers that torch fills and restores, the one that fits all of them


class Record:
    """What is left of an object of a class that is not imported.

    Attributes:
        state: the object's attributes by name; empty if the file gives none.
    """

    def __init__(self, *_: Any, **__: Any) -> None:
        self.state: dict[str, Any] = {}

    def __new__(cls, *_: Any, **__: Any) -> Record:
        record = super().__new__(cls)
        record.state = {}  # the unpickler may make one without its `__init__`
        return record

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise TypeError("attributes that are not a dictionary")
        self.state = dict(state)


def read_checkpoint(path: str | os.PathLike[str], *, records: Iterable[str] = ()) -> Any:
    """Content of a torch or safetensors file, on the CPU; nothing in it is executed.

    Args:
        path: the file.
        records: full names of the classes whose objects become a `Record`, such as `package.module.Class`. They are
            not imported. Objects of all other classes are refused.

    Raises:
        MissingRequirementError: no such file.
        DataError: no such format, or a file with something else than tensors, numpy numbers and plain containers.
    """
    if not os.path.isfile(path):
        raise MissingRequirementError(f"{path}: no such file; download the released checkpoint first")
    try:
        if os.fspath(path).endswith(".safetensors"):
            return load_file(path)
        others = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        allowed = [*_numpy_parts(), *((_Settings, name) for name in others if _is_settings(name))]
        allowed += [(Record, name) for name in records]
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 - the format is a pickle
    except Exception as error:  # the unpickler raises whatever a broken file leads it to
        reason = _reason(error)
        raise DataError(
            f"{path}: not a checkpoint of tensors and plain values ({reason}); download it again, and do not open it "
            "in any other way if you do not trust it. Of TorchScript archives save the state dictionary"
        ) from None


def read_model_tensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors of a released file, on the CPU, under its own names.

    Raises:
        MissingRequirementError: no such file.
        DataError: not a checkpoint, one that holds more than tensors and plain values, or one without tensors.
    """
    content = read_checkpoint(path)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__}; a mapping from names to tensors is needed")
    state = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not state:
        raise DataError(f"{path}: holds no tensors; the weights of a released file lie under the entry `model`")
    return state


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
    """Containers in which Lightning, yacs and argparse keep the settings of a training run."""
    package = name.split(".")[0]
    return package in ("pytorch_lightning", "lightning", "lightning_fabric", "omegaconf") or name in (
        "argparse.Namespace",
        "yacs.config.CfgNode",
        "pathlib.PosixPath",
        "pathlib._local.PosixPath",
        "collections.defaultdict",
    )
