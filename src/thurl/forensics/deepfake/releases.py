"""Names in released data sets: what DeepfakeBench calls them, and who is in a video.

FaceForensics++ calls a fake `TARGET_SOURCE`, two numbers of real videos: the frames are the target's. Celeb-DF calls
it `idA_idB_NUMBER` and the real video `idA_NUMBER`; DeepFakeDetection `TT_SS__SCENE__HASH` and `TT__SCENE`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType


__all__ = ["BENCH_LABELS", "BENCH_MANIPULATIONS", "COMPRESSED", "last_number", "people_in"]

BENCH_LABELS: Mapping[str, int] = MappingProxyType(
    {
        "FF-real": 0,
        "FF-DF": 1,
        "FF-F2F": 1,
        "FF-FS": 1,
        "FF-NT": 1,
        "FF-FH": 1,
        "FF-SH": 1,
        "DFD_real": 0,
        "DFD_fake": 1,
        "CelebDFv1_real": 0,
        "CelebDFv1_fake": 1,
        "CelebDFv2_real": 0,
        "CelebDFv2_fake": 1,
        "DFDCP_Real": 0,
        "DFDCP_FakeA": 1,
        "DFDCP_FakeB": 1,
        "DFDC_Real": 0,
        "DFDC_Fake": 1,
        "DF_real": 0,
        "DF_fake": 1,
        "UADFV_Real": 0,
        "UADFV_Fake": 1,
        "roop_Real": 0,
        "roop_Fake": 1,
    }
)
"""Labels of DeepfakeBench's configuration: 1 is fake."""

BENCH_MANIPULATIONS: Mapping[str, str] = MappingProxyType(
    {
        "FF-real": "real",
        "FF-DF": "Deepfakes",
        "FF-F2F": "Face2Face",
        "FF-FS": "FaceSwap",
        "FF-NT": "NeuralTextures",
        "FF-FH": "FaceShifter",
    }
)
"""Labels whose manipulation has a name; the others are manipulations by their own name."""

COMPRESSED = ("FaceForensics++", "FF-DF", "FF-F2F", "FF-FS", "FF-NT", "DeepFakeDetection", "FaceShifter")
"""Data sets that DeepfakeBench files by compression."""

_CELEB_FAKE = re.compile(r"(id\d+)_(id\d+)_(\d+)")
_CELEB_REAL = re.compile(r"(id\d+)_(\d+)")
_DFD_FAKE = re.compile(r"(\d\d)_(\d\d)(__.+)__[A-Z0-9]+")
_DFD_REAL = re.compile(r"(\d\d)__.+")
_FF_FAKE = re.compile(r"(\d{3})_(\d{3})")
_FF_REAL = re.compile(r"\d{3}")


def people_in(video: str) -> tuple[tuple[str, ...], str]:
    """Who is in a video, and the real video that it was made from.

    Args:
        video: its name in FaceForensics++, FaceShifter, DeepFakeDetection or Celeb-DF.

    Returns:
        Names of the people, first whose frames these are; and the name of the real video, "" for a real one. Of a name
        of another form nothing is known: () and "".
    """
    if match := _FF_FAKE.fullmatch(video):
        return (match[1], match[2]), match[1]
    if match := _CELEB_FAKE.fullmatch(video):
        return (match[1], match[2]), f"{match[1]}_{match[3]}"
    if match := _DFD_FAKE.fullmatch(video):
        return (match[1], match[2]), match[1] + match[3]
    if match := _CELEB_REAL.fullmatch(video) or _DFD_REAL.fullmatch(video):
        return (match[1],), ""
    return ((video,), "") if _FF_REAL.fullmatch(video) else ((), "")


def last_number(name: str) -> int | None:
    """The digits that a file's name ends with, before its ending; None where there are none."""
    match = re.search(r"(\d+)$", name.rsplit(".", 1)[0])
    return int(match[1]) if match else None
