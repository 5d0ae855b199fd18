"""Header of a `.ddr` file: canonical JSON, deflated with a dictionary of the words it is made of."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from thurl.distillation.coded import CodedDataset, CodedSlice
from thurl.distillation.geometry import CodecConfig
from thurl.distillation.label_stream import label_runs
from thurl.errors import DataError, ThurlError
from thurl.messages import printable


__all__ = ["DICTIONARY", "HEADER_CAP", "Header", "SlicePlan", "header_of", "pack_header", "unpack_header"]

HEADER_CAP = 2**22
"""Largest header, inflated, in bytes."""

# A part of the format: a change makes files unreadable. What is likeliest stands last.
DICTIONARY = (
    b'"augmentation":"dsa","batch_size":256,"network":"convnet3","epochs":1000,"lr":0.01,"momentum":0.9,'
    b'"weight_decay":0.0005,[20],[24],[40],[320,40],[240,40],"soft":true,"labels":"hard","classes":["airplane","'
    b'automobile","bird"],"mean":[0.485,0.456,0.406],"std":[0.229,0.224,0.225],"mean":[0.4914,0.4822,0.4465],'
    b'"std":[0.2023,0.1994,0.201],"width":128}{"channels":1,"classes":100,"configs":[{"context":32,"depth":4,'
    b'"gain":16.0,"widths":[40]}],"height":28,"hints":{},"labels":"implicit","mean":[0.1307],"slices":[[0,0,10,20]],'
    b'"soft":false,"std":[0.3081],"width":28}{"channels":3,"classes":10,"configs":[{"context":8,"depth":2,'
    b'"gain":16.0,"widths":[24]}],"height":32,"hints":{},"labels":"implicit","mean":[0.5,0.5,0.5],"slices":[[0,0,1,10'
    b'],[0,1,1,10],[0,2,1,10]],"soft":false,"std":[0.25,0.25,0.25],"width":32}'
)

_KEYS = {"channels", "classes", "configs", "height", "hints", "labels", "mean", "slices", "soft", "std", "width"}
_CONFIG_KEYS = {"context", "depth", "gain", "widths"}


@dataclass(frozen=True)
class SlicePlan:
    """What the header says of a slice.

    Args:
        config: shapes.
        samples: number of them.
        runs: labels, see `thurl.distillation.label_stream.label_runs`; empty where a section holds them.
    """

    config: CodecConfig
    samples: int
    runs: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """All of a file but integers of networks, latents and labels; see `CodedDataset` for the fields."""

    slices: tuple[SlicePlan, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    hints: dict[str, Any] = field(default_factory=dict)
    implicit: bool = True
    soft: bool = False


def header_of(dataset: CodedDataset, implicit: bool) -> Header:
    """The header of a data set, with labels in the header (`implicit`) or in a section of their own."""
    return Header(
        tuple(_plan(part, implicit) for part in dataset.slices), dataset.classes, dataset.mean, dataset.std,
        dataset.hints, implicit, dataset.soft_labels is not None,
    )  # fmt: skip


def pack_header(header: Header) -> bytes:
    """Canonical JSON (sorted keys, no blanks, UTF-8), deflated without a frame.

    Raises:
        DataError: numbers that are not finite, text that is not Unicode, a header too large to be read.
    """
    configs = list(dict.fromkeys(plan.config for plan in header.slices))
    first = configs[0]
    numbered = header.classes == tuple(str(i) for i in range(len(header.classes)))
    document = {
        "channels": first.channels,
        "classes": len(header.classes) if numbered else list(header.classes),
        "configs": [
            {"context": c.context, "depth": c.depth, "gain": float(c.gain), "widths": list(c.widths)} for c in configs
        ],
        "height": first.height,
        "hints": header.hints,
        "labels": "implicit" if header.implicit else "hard",
        "mean": [float(value) for value in header.mean],
        "slices": [[configs.index(p.config), *(p.runs if header.implicit else (p.samples,))] for p in header.slices],
        "soft": header.soft,
        "std": [float(value) for value in header.std],
        "width": first.width,
    }
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        data = text.encode("utf-8")
        _parsed(json.loads(text))
    except (TypeError, ValueError, ThurlError) as error:
        raise DataError(
            f"the header cannot be written: {error}; hints and names must be JSON values: finite numbers and text"
        ) from None
    if len(data) > HEADER_CAP:
        raise DataError(f"a header of {len(data)} bytes: at most {HEADER_CAP} can be read; shorten names and hints")
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    return deflater.compress(data) + deflater.flush()


def unpack_header(data: bytes, name: str) -> Header:
    """Read and check a header.

    Raises:
        DataError: not deflated JSON of the right keys and ranges, or larger than `HEADER_CAP`.
    """
    inflater = zlib.decompressobj(-15, DICTIONARY)
    try:
        text = inflater.decompress(data, HEADER_CAP)
        if not inflater.eof or inflater.unused_data:
            raise DataError(f"more than {HEADER_CAP} bytes, or not all of it is there")
        document = json.loads(text)
        return _parsed(document)
    except (ThurlError, ValueError, RecursionError, zlib.error) as error:
        # A header made to harm could hold a number or list of megabytes.
        reason = printable(str(error)[:300])
        raise DataError(
            f"{name}: the header cannot be used: {reason}; the file is damaged or from another program"
        ) from None


def _plan(part: CodedSlice, implicit: bool) -> SlicePlan:
    return SlicePlan(part.config, len(part.labels), tuple(label_runs(part.labels)) if implicit else ())


def _parsed(document: Any) -> Header:
    if not isinstance(document, dict) or set(document) != _KEYS:
        raise DataError(f"its keys must be {', '.join(sorted(_KEYS))}")
    classes = document["classes"]
    names = [str(i) for i in range(_whole(classes, 1, 2**16))] if isinstance(classes, int) else classes
    _need(_list_of(names, lambda item: isinstance(item, str)), "classes must be a number or a list of names")
    _need(0 < len(names) <= 2**16, f"{len(names)} classes: 1 to 65536 are read")
    _need(document["labels"] in ("implicit", "hard"), "labels must be implicit or hard")
    _need(isinstance(document["soft"], bool), "soft must be true or false")
    _need(isinstance(document["hints"], dict), "hints must be an object")
    channels = document["channels"]
    for key in ("mean", "std"):
        fits = _list_of(document[key], _finite) and len(document[key]) == channels
        _need(fits, f"{key} must be {channels} finite numbers")
    configs = document["configs"]
    _need(_list_of(configs, lambda c: isinstance(c, dict) and set(c) == _CONFIG_KEYS), "configs must be a list of "
          f"objects with {', '.join(sorted(_CONFIG_KEYS))}")  # fmt: skip
    built = []
    for config in configs:
        _need(_list_of(config["widths"], _is_whole), "widths must be whole numbers")
        _need(_finite(config["gain"]), "gain must be a number")
        height, width, context, depth = document["height"], document["width"], config["context"], config["depth"]
        whole = [height, width, channels, context, depth]
        _need(_list_of(whole, _is_whole), "height, width, channels, context and depth must be whole numbers")
        built.append(
            CodecConfig(height, width, channels, context, depth, tuple(config["widths"]), float(config["gain"]))
        )
    implicit = document["labels"] == "implicit"
    slices = document["slices"]
    _need(_list_of(slices, lambda s: _list_of(s, _is_whole)) and slices, "slices must be lists of whole numbers")
    plans = tuple(_slice_plan(numbers, built, implicit, len(names)) for numbers in slices)
    return Header(
        plans, tuple(names), tuple(map(float, document["mean"])), tuple(map(float, document["std"])),
        document["hints"], implicit, document["soft"],
    )  # fmt: skip


def _slice_plan(numbers: Sequence[int], configs: list[CodecConfig], implicit: bool, classes: int) -> SlicePlan:
    _need(len(numbers) >= 2 and 0 <= numbers[0] < len(configs), f"slice {list(numbers[:4])} has no configuration")
    config, rest = configs[numbers[0]], tuple(numbers[1:])
    if not implicit:
        _need(len(rest) == 1, f"slice {list(numbers[:4])} must be a configuration and a number of samples")
        return SlicePlan(config, _whole(rest[0], 1, 2**31), ())
    _need(len(rest) % 3 == 0, f"slice {list(numbers[:4])} must be a configuration and runs of three numbers")
    samples = 0
    for first, many, count in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        _need(first >= 0 and many >= 1 and first + many <= classes, f"labels {first} to {first + many - 1} of a slice")
        samples += many * _whole(count, 1, 2**31)
    return SlicePlan(config, _whole(samples, 1, 2**31), rest)


def _need(condition: Any, message: str) -> None:
    if not condition:
        raise DataError(message)


def _list_of(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(fits(item) for item in value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any, least: int, most: int) -> int:
    _need(_is_whole(value) and least <= value <= most, f"{value!r} must be a whole number from {least} to {most}")
    return int(value)
