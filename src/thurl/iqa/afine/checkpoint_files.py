"""The files of a release of A-FINE as its parts: names to tensors and nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from thurl.errors import DataError, MissingRequirementError
from thurl.training.released_files import read_checkpoint


__all__ = ["STAGE_FILES", "read_official", "read_state"]

STAGE_FILES = {
    "finetuned_clip": "clip_model.pth",
    "natural": "net_qhead.pth",
    "fidelity": "net_dhead.pth",
    "natural_scale": "net_scale_nr.pth",
    "fidelity_scale": "net_scale_fr.pth",
    "adapter": "net_finalscore.pth",
}
"""Part of the release to the file that the training stages write it into."""


def read_official(path: str | os.PathLike[str]) -> dict[str, dict[str, torch.Tensor]]:
    """The parts of a released checkpoint, on the CPU, under its own names; parts that are not there are left out.

    Args:
        path: `afine.pth`, a folder with files of the training stages, or the parts flattened in a safetensors file.

    Raises:
        MissingRequirementError: nothing there, or a folder without any of the stages' files.
        DataError: a file that is no checkpoint, or holds more than tensors and plain values.
    """
    path = Path(path)
    if path.is_dir():
        found = {part: path / name for part, name in STAGE_FILES.items() if (path / name).is_file()}
        if not found:
            raise MissingRequirementError(
                f"{path}: none of the files {', '.join(STAGE_FILES.values())} is in this folder; give afine.pth "
                "itself, or the folder with the files of the training stages"
            )
        return {part: read_state(file) for part, file in found.items()}
    content = _read(path)
    if path.suffix == ".safetensors":
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in content.items():
            part, _, key = name.partition(".")
            parts.setdefault(part, {})[key] = tensor
        return parts
    if not content:
        raise DataError(f"{path}: an empty dictionary; a released checkpoint has the parts {', '.join(STAGE_FILES)}")
    return {str(part): _tensors(state, f"{path}: {part}") for part, state in content.items()}


def read_state(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """One state dictionary, also inside `params` or `state_dict`, on the CPU.

    Raises:
        MissingRequirementError, DataError: as `read_official`.
    """
    return _tensors(_read(Path(path)), str(path))


def _read(path: Path) -> Mapping[str, Any]:
    content = read_checkpoint(path)
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__}; a dictionary is needed")
    return content


def _tensors(state: Any, where: str) -> dict[str, torch.Tensor]:
    for wrapper in ("params", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping):
        raise DataError(f"{where}: a {type(state).__name__}; a dictionary from names to tensors is needed")
    if wrong := [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise DataError(f"{where}: these are no tensors: {', '.join(wrong[:5])}")
    return {str(key): value for key, value in state.items()}
