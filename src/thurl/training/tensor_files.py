"""Safetensors files that are whole or not there, whatever kills the process that writes them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from thurl.errors import DataError


__all__ = ["UNFIT", "read_tensors", "write_tensors"]

UNFIT = (SafetensorError, StrictDataclassError, RuntimeError, ValueError, TypeError, KeyError)
"""What `from_pretrained` of transformers raises where config.json or the weights are damaged, beside OSError."""


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write beside `path`, then move there in one step. Two processes that write the same file do no harm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        # Cloned: safetensors refuses views of one memory.
        whole = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
        save_file(whole, temporary, metadata=dict(metadata))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_tensors(
    path: Path, advice: str = "delete it, it is made again"
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors, each in memory of its own, and metadata.

    Args:
        advice: what to do about a file that cannot be read.

    Raises:
        DataError: not a whole safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            # Copied, since products of matrices may depend on where in memory a matrix begins.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a whole safetensors file: {error}; {advice}") from error
