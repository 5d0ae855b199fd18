"""Nested states as files that are data and nothing else: JSON for the structure, safetensors for the tensors."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file


__all__ = ["load_state", "random_states", "save_state", "set_random_states"]


def random_states() -> dict[str, Any]:
    """States of the generators of Python, numpy, torch and this process's GPU."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Put back what `random_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def save_state(path: Path, state: Any) -> None:
    """Write nested dicts, lists and tuples to `path`.json, with the tensors in `path`.safetensors.

    Raises:
        TypeError: a value of another kind, or a key that is no string.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _packed(state, tensors)
    save_file(tensors, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(json.dumps(tree) + "\n", encoding="utf-8")


def load_state(path: Path) -> Any:
    """What `save_state` was given: the same values bit by bit, tensors on the CPU in memory of their own."""
    tensors = load_file(path.with_suffix(".safetensors"))
    # Copied, since products of matrices may depend on where in memory a matrix begins.
    return _unpacked(
        json.loads(path.with_suffix(".json").read_text(encoding="utf-8")),
        {name: tensor.clone() for name, tensor in tensors.items()},
    )


def _packed(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_packed(item, tensors) for item in value]
    if isinstance(value, torch.Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().contiguous().clone()  # safetensors refuses views of one memory
        return {"tensor": key}
    if isinstance(value, tuple):
        return {"tuple": [_packed(item, tensors) for item in value]}
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _packed(item, tensors) for key, item in value.items()}}
    raise TypeError(
        f"A checkpoint cannot hold {type(value).__name__}; it may have tensors, arrays, numbers, texts, None, and "
        "lists, tuples and dicts with text keys of these."
    )


def _unpacked(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_unpacked(item, tensors) for item in value["tuple"])
    if "array" in value:
        return np.asarray(value["array"], dtype=value["dtype"])
    return {key: _unpacked(item, tensors) for key, item in value["dict"].items()}
