"""Edits as files: safetensors with the touched rows and columns, metadata as JSON. Nothing in one is executed.

Tensors are `<label>.neurons` (int64), `<label>.change` and, unless left out, `<label>.original`; the metadata entry
`edit` says which matrices they belong to, which model they were made for, and what was edited.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from thurl.editing.delta import Delta, UnitChange
from thurl.editing.units import Unit
from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.messages import printable, shown
from thurl.training.tensor_files import read_tensors, write_tensors


__all__ = ["load_delta", "save_delta"]

_VERSION = 1
_ENTRY = "edit"
# Far above what the file of a real edit needs: a unit takes some 500 bytes of it.
_LARGEST_HEADER = 16 << 20
_STORED = {"float32": torch.float32, "float16": torch.float16}
_CHANGES = (torch.float16, torch.float32, torch.float64)
_ORIGINALS = (*_CHANGES, torch.bfloat16)
_LABEL = re.compile(r"[a-z][a-z0-9_]{0,31}")
_PARAMETER = re.compile(r"[A-Za-z0-9_.]{1,256}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_ADVICE = "take another copy of the edit, or make it again"


def save_delta(path: Path, delta: Delta, dtype: str = "float32", originals: bool = True) -> float:
    """Write an edit; the file is whole or not there.

    Args:
        dtype: of the changes in the file: `float32` keeps them as they are, `float16` takes half the space and rounds.
        originals: also keep the weights the edit replaces, with which it can be taken back from any edited model;
            without them the file is half as large, and only the base model brings them back.

    Returns:
        The largest rounding error of a change, in units of the weights; 0 for `float32` of a model up to float32.

    Raises:
        UsageError: another dtype, or changes too large for float16.
    """
    if dtype not in _STORED:
        raise UsageError(f"dtype {dtype!r}: must be one of {', '.join(_STORED)}")
    tensors, error = {}, 0.0
    for change in delta.changes:
        label = change.unit.label
        stored = change.change.to(_STORED[dtype])
        if not stored.isfinite().all():
            raise UsageError(f"{label}: a change of {float(change.change.abs().max()):g} does not fit into {dtype}")
        error = max(error, float((stored.double() - change.change.double()).abs().max()))
        tensors[f"{label}.neurons"], tensors[f"{label}.change"] = change.neurons, stored
        if originals and change.original is not None:
            tensors[f"{label}.original"] = change.original
    entry = {
        "version": _VERSION,
        "base": delta.base,
        "units": [asdict(unit) for unit in delta.units],
        "changed": [change.unit.label for change in delta.changes],
        "density": delta.density,
        "sparsity": 1 - delta.density,
        "dtype": dtype,
        "history": delta.history,
    }
    write_tensors(path, {name: tensor.cpu() for name, tensor in tensors.items()}, {_ENTRY: json.dumps(entry)})
    return error


def load_delta(path: Path) -> Delta:
    """What `save_delta` wrote, on the CPU; changes are float32, or float64 where they were.

    Raises:
        MissingRequirementError: no such file.
        DataError: not an edit, or one whose tensors do not fit what it says about them.
    """
    if not path.is_file():
        raise MissingRequirementError(f"{path}: no such file; give the file of an edit")
    with path.open("rb") as file:
        if int.from_bytes(file.read(8), "little") > _LARGEST_HEADER:
            raise DataError(f"{path}: a header of more than {_LARGEST_HEADER >> 20} MiB is none of an edit; {_ADVICE}")
    tensors, metadata = read_tensors(path, _ADVICE)
    try:
        entry = json.loads(metadata[_ENTRY])
        units = tuple(_unit(item) for item in entry["units"])
        if entry["version"] != _VERSION:
            raise DataError(f"version {shown(entry['version'])}; this thurl reads {_VERSION}")
        if not units or len({unit.label for unit in units}) < len(units) or len({unit.size for unit in units}) > 1:
            raise DataError("units that are none, of several sizes or there twice")
        if not isinstance(entry["base"], str) or not _FINGERPRINT.fullmatch(entry["base"]):
            raise DataError("a base model without a fingerprint")
        history = entry["history"]
        if not isinstance(history, list) or not all(isinstance(item, dict) for item in history):
            raise DataError("a history that is no list of objects")
        chosen = [unit for unit in units if unit.label in entry["changed"]]
        changes = tuple(_change(unit, tensors) for unit in chosen)
        if tensors:
            raise DataError(f"tensors of no unit, such as {printable(min(tensors))}")
    except DataError as error:
        raise DataError(f"{path}: {error}; {_ADVICE}") from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = printable(str(error))[:80]
        raise DataError(f"{path}: not the file of an edit ({type(error).__name__}: {reason}); {_ADVICE}") from None
    return Delta(entry["base"], units, changes, tuple(history))


def _unit(item: dict[str, Any]) -> Unit:
    unit = Unit(**{field.name: item[field.name] for field in fields(Unit)})
    numbers = (unit.layer, unit.axis, unit.size, unit.groups)
    texts = ((unit.name, _LABEL), (unit.parameter, _PARAMETER))
    if not all(type(number) is int for number in numbers) or not all(
        isinstance(text, str) and rule.fullmatch(text) for text, rule in texts
    ):
        raise DataError("a unit whose numbers or names are none")
    # A matrix larger than these bounds does not exist; they keep products of them small.
    if not (0 <= unit.layer < 1 << 16 and unit.axis in (0, 1) and 0 < unit.size < 1 << 24 and unit.groups in (1, 2)):
        raise DataError(f"a unit {unit.label} with values out of range")
    return unit


def _change(unit: Unit, tensors: dict[str, torch.Tensor]) -> UnitChange:
    """Of a unit, taking its tensors out."""
    neurons, change = tensors.pop(f"{unit.label}.neurons"), tensors.pop(f"{unit.label}.change")
    original = tensors.pop(f"{unit.label}.original", None)
    if neurons.dtype != torch.int64 or neurons.dim() != 1 or not len(neurons):
        raise DataError(f"{unit.label}: neurons of {neurons.dtype} {list(neurons.shape)} instead of int64 [K]")
    if int(neurons[0]) < 0 or int(neurons[-1]) >= unit.size or not (neurons[1:] > neurons[:-1]).all():
        raise DataError(f"{unit.label}: neurons that are not ascending or not in 0 to {unit.size - 1}")
    wanted = len(neurons) * unit.groups
    if change.dim() != 2 or change.shape[unit.axis] != wanted or not change.numel():
        raise DataError(f"{unit.label}: a change of shape {list(change.shape)} for {wanted} rows or columns")
    if change.dtype not in _CHANGES or not change.isfinite().all():
        raise DataError(f"{unit.label}: a change of {change.dtype} that is no finite number everywhere")
    if original is not None and (original.shape != change.shape or original.dtype not in _ORIGINALS):
        raise DataError(f"{unit.label}: original weights of {original.dtype} {list(original.shape)} do not fit")
    return UnitChange(unit, neurons, change.to(torch.promote_types(change.dtype, torch.float32)), original)
