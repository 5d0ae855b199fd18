"""Camera settings of a photograph: from raw EXIF values or texts to the nine labels of the pretext tasks.

Pure functions on plain values: no file is opened here, no torch. Every setting that cannot be used is absent with a
reason, never a guess. The class lists are those of the official code (`thurl.forensics.exif.tasks`); how a code or a
text becomes a class is ours, because the script that made the official labels is not released.

Deliberate differences from the official code: the aperture is FNumber where there is one and 2^(ApertureValue/2)
otherwise (ApertureValue is in APEX units, not an f-number); an exposure time is always in seconds; a photograph
without some setting keeps the others instead of being dropped; values no camera can have count as absent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from thurl.forensics.exif.tasks import CATEGORICAL_TASKS, ORDINAL_TASKS, class_names


__all__ = [
    "PLAUSIBLE",
    "RAW_TAGS",
    "REASONS",
    "SETTINGS",
    "CameraSettings",
    "class_from_text",
    "number_from_text",
    "settings_from_raw",
    "settings_from_texts",
]

SETTINGS = ORDINAL_TASKS + CATEGORICAL_TASKS
"""The nine settings, ordinal ones first, in the order of the tasks."""

RAW_TAGS: Mapping[str, int] = {
    "Make": 0x010F,
    "ExposureTime": 0x829A,
    "FNumber": 0x829D,
    "ExposureProgram": 0x8822,
    "ISO": 0x8827,
    "ApertureValue": 0x9202,
    "MeteringMode": 0x9207,
    "FocalLength": 0x920A,
    "ExposureMode": 0xA402,
    "WhiteBalance": 0xA403,
}
"""The ten EXIF tags the settings come from."""

PLAUSIBLE: Mapping[str, tuple[float, float]] = {
    "iso": (6.0, 4e6),
    "aperture": (0.5, 128.0),
    "exposure_time": (1e-6, 3600.0),
    "focal_length": (0.5, 5000.0),
}
"""Smallest and largest accepted value: ISO, f-number, seconds, millimetres (of the lens, not 35 mm equivalents)."""

NOT_WRITTEN = "not written"
NOT_A_NUMBER = "not a number"
ZERO_DENOMINATOR = "zero denominator"
OUT_OF_RANGE = "out of range"
NO_CLASS = "no class for it"
ELSEWHERE = "ISO written elsewhere"
UNREADABLE = "unreadable EXIF"

REASONS = (NOT_WRITTEN, NOT_A_NUMBER, ZERO_DENOMINATOR, OUT_OF_RANGE, NO_CLASS, ELSEWHERE, UNREADABLE)
"""Why a setting is absent; `CameraSettings.absent` and the coverage report use these words only."""

_SOURCES = {
    "iso": "ISO",
    "exposure_time": "ExposureTime",
    "focal_length": "FocalLength",
    "make": "Make",
    "metering_mode": "MeteringMode",
    "exposure_mode": "ExposureMode",
    "white_balance": "WhiteBalance",
    "exposure_program": "ExposureProgram",
}

# Codes of the EXIF standard. Codes without a class of their own (program: undefined, creative, action, bulb) are
# absent; MeteringMode 0 is "unknown".
_CODES: Mapping[str, Mapping[int, str]] = {
    "metering_mode": {
        1: "average",
        2: "centerweighted",
        3: "spot",
        4: "multi-spot",
        5: "multi-segment",
        6: "partial",
        255: "others",
    },
    "exposure_mode": {0: "auto", 1: "manual", 2: "auto-bracketing"},
    "white_balance": {0: "auto", 1: "manual"},
    "exposure_program": {
        1: "manual control",
        2: "normal program",
        3: "aperture priority",
        4: "shutter priority",
        7: "portrait mode",
        8: "landscape mode",
    },
}

# Found anywhere in the maker's name, first match wins.
_MAKERS = (
    ("nikon", "Nikon"),
    ("apple", "Apple"),
    ("fuji", "FUJIFILM"),
    ("canon", "Canon"),
    ("samsung", "Samsung"),
    ("sony", "Sony"),
    ("panasonic", "Panasonic"),
    ("nokia", "Nokia"),
    ("hmd global", "Nokia"),
    ("pentax", "Pentax"),
)

# Other spellings of metadata programs, letters and digits only.
_SPELLINGS: Mapping[str, Mapping[str, str]] = {
    "metering_mode": {
        "centerweightedaverage": "centerweighted",
        "centreweighted": "centerweighted",
        "centreweightedaverage": "centerweighted",
        "multisegment": "multi-segment",
        "pattern": "multi-segment",
        "matrix": "multi-segment",
        "multizone": "multi-segment",
        "other": "others",
    },
    "exposure_mode": {
        "autoexposure": "auto",
        "manualexposure": "manual",
        "autobracket": "auto-bracketing",
        "easy": "easy-shooting",
        "programae": "program",
        "aperturepriorityae": "aperture-priority",
        "shutterspeedpriorityae": "shutter-priority",
        "shutterpriorityae": "shutter-priority",
    },
    "white_balance": {
        "autowhitebalance": "auto",
        "manualwhitebalance": "manual",
    },
    "exposure_program": {
        "manual": "manual control",
        "program": "normal program",
        "programae": "normal program",
        "aperturepriorityae": "aperture priority",
        "shutterpriorityae": "shutter priority",
        "shutterspeedpriorityae": "shutter priority",
        "portrait": "portrait mode",
        "landscape": "landscape mode",
    },
}

_DIGITS = r"[0-9]{1,15}(?:\.[0-9]{0,15})?(?:[eE][+-]?[0-9]{1,3})?|\.[0-9]{1,15}"
_FRACTION = re.compile(rf"({_DIGITS})(?:\s*/\s*({_DIGITS}))?")
_UNITS = re.compile(r"(?:sec(?:onds?|s)?|s|mm)\.?$")


@dataclass(frozen=True)
class CameraSettings:
    """The nine settings of one photograph.

    Args:
        values: setting to value, for those that are there: ordinal ones as numbers (ISO; f-number; seconds;
            millimetres), categorical ones as the name of their class.
        absent: setting to one of `REASONS`, for all others.
    """

    values: Mapping[str, float | str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)

    def ordinal(self) -> list[float]:
        """The four ordinal settings in the order of the tasks, NaN where absent."""
        return [float(self.values.get(name, math.nan)) for name in ORDINAL_TASKS]

    def classes(self) -> list[int]:
        """Class numbers of the five categorical settings in the order of the tasks, -1 where absent."""
        return [
            class_names(name).index(str(self.values[name])) if name in self.values else -1
            for name in CATEGORICAL_TASKS
        ]


def settings_from_raw(
    raw: Mapping[str, float | str | None],
    reasons: Mapping[str, str] | None = None,
    *,
    canon_evaluative: bool = False,
) -> CameraSettings:
    """Labels from the raw values of EXIF tags.

    Args:
        raw: tag of `RAW_TAGS` to value as the file has it: numbers, `Make` a text, `None` or left out when absent.
        reasons: why a tag without a value has none; "not written" where nothing is said.
        canon_evaluative: metering code 5 of a Canon is its class "evaluative", as in the official labels, which were
            made from text dumps; "multi-segment" otherwise.
    """
    reasons = reasons or {}
    found: dict[str, float | str] = {}
    absent: dict[str, str] = {}

    def take(name: str, value: float | str | None, reason: str) -> None:
        if value is None:
            absent[name] = reason
        else:
            found[name] = value

    for name in SETTINGS:
        if name == "aperture":
            take(name, *_aperture(raw, reasons))
            continue
        tag = _SOURCES[name]
        value = raw.get(tag)
        if value is None:
            absent[name] = reasons.get(tag, NOT_WRITTEN)
        elif name == "make":
            take(name, *_maker(value))
        elif name in _CODES:
            take(name, *_code(name, value))
        else:
            take(name, *_ordinal(name, value))
    if canon_evaluative and found.get("make") == "Canon" and found.get("metering_mode") == "multi-segment":
        found["metering_mode"] = "evaluative"
    return CameraSettings(found, absent)


def settings_from_texts(texts: Mapping[str, str | None]) -> CameraSettings:
    """Labels from texts such as metadata programs print them.

    Args:
        texts: setting to text, see `number_from_text` and `class_from_text`.
    """
    found: dict[str, float | str] = {}
    absent: dict[str, str] = {}
    for name in SETTINGS:
        text = texts.get(name)
        value: float | str | None
        if text is None or not text.strip("\x00 \t\r\n"):
            value, reason = None, NOT_WRITTEN
        elif name in ORDINAL_TASKS:
            value, reason = number_from_text(text), NOT_A_NUMBER
            if value is not None:
                value, reason = _ordinal(name, value)
        else:
            value, reason = class_from_text(name, text), NO_CLASS
        if value is None:
            absent[name] = reason
        else:
            found[name] = value
    return CameraSettings(found, absent)


def number_from_text(text: str) -> float | None:
    """The number in "1/60 sec", "10/600 sec", "0.3 sec", "F2.8", "f/2.8", "F28/10", "4.15 mm" or "100, 100".

    Of several values the first counts. Nothing is evaluated: digits, at most one fraction, one unit.

    Returns:
        The number in the unit of the text, `None` when there is none or the denominator is 0.
    """
    body = re.split(r"[,;]", text.strip("\x00 \t\r\n"), maxsplit=1)[0].strip().lower()
    if body.startswith("f"):
        body = body[1:].lstrip().removeprefix("/").lstrip()
    found = _FRACTION.fullmatch(_UNITS.sub("", body).strip())
    if found is None:
        return None
    top, bottom = float(found[1]), float(found[2] or 1)
    value = top / bottom if bottom else math.nan
    return value if math.isfinite(value) else None


def class_from_text(setting: str, text: str) -> str | None:
    """The class of a categorical setting that a text names, `None` when it names none.

    Case, spaces and punctuation do not matter. A maker that is in no list is "others".

    Args:
        setting: one of the categorical tasks.
    """
    if setting == "make":
        return _maker(text)[0]
    key = _letters(text)
    for name in class_names(setting):
        if key == _letters(name):
            return name
    return _SPELLINGS[setting].get(key)


def _ordinal(name: str, value: float | str) -> tuple[float | None, str]:
    if isinstance(value, str):
        return None, NOT_A_NUMBER
    number = float(value)
    if not math.isfinite(number):
        return None, NOT_A_NUMBER
    if name == "iso" and number == 65535:
        # EXIF 2.3: the field is too narrow, the value stands in another tag.
        return None, ELSEWHERE
    low, high = PLAUSIBLE[name]
    return (number, "") if low <= number <= high else (None, OUT_OF_RANGE)


def _aperture(raw: Mapping[str, float | str | None], reasons: Mapping[str, str]) -> tuple[float | None, str]:
    # FNumber first: in real files the two disagree (f/2.88 and f/4), and FNumber is the one the photographer set.
    first_reason = reasons.get("FNumber", NOT_WRITTEN)
    f_number, apex = raw.get("FNumber"), raw.get("ApertureValue")
    if f_number is not None:
        value, first_reason = _ordinal("aperture", f_number)
        if value is not None:
            return value, ""
    if apex is None or isinstance(apex, str) or not abs(apex) < 64:
        if first_reason == NOT_WRITTEN and apex is not None:
            return None, NOT_A_NUMBER if isinstance(apex, str) else OUT_OF_RANGE
        return None, reasons.get("ApertureValue", NOT_WRITTEN) if first_reason == NOT_WRITTEN else first_reason
    value, reason = _ordinal("aperture", 2.0 ** (apex / 2))
    return value, reason if first_reason == NOT_WRITTEN else first_reason


def _maker(value: float | str) -> tuple[str | None, str]:
    if not isinstance(value, str):
        return None, NO_CLASS
    name = " ".join(value.replace("\x00", " ").split()).casefold()
    if not name:
        return None, NOT_WRITTEN
    return next((maker for part, maker in _MAKERS if part in name), "others"), ""


def _code(name: str, value: float | str) -> tuple[str | None, str]:
    if isinstance(value, str) or not math.isfinite(value) or value != int(value):
        return None, NOT_A_NUMBER
    found = _CODES[name].get(int(value))
    return (found, "") if found is not None else (None, NO_CLASS)


def _letters(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())
