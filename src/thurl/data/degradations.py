"""Four ways to spoil a picture, five levels each, and how much quality each level costs.

Level 0 leaves the picture as it is; level 4 is the worst. Strengths are in pixels and grey values of the given
picture and are made for small pictures (about 56 to 112 pixels a side). The quality table is ours, not a measurement
of human opinion. Its point is that every kind has its own slope, so neither the kind nor the level alone tells the
order: a moderate blur is far worse than an extreme darkening.

| kind | what | strength at levels 1 2 3 4 | quality at levels 0 1 2 3 4 |
|---|---|---|---|
| noise | Gaussian noise, standard deviation in grey values (0-255) | 12 28 55 100 | 1 .80 .56 .34 .16 |
| blur | Gaussian blur, standard deviation in pixels | .8 1.6 3 6 | 1 .52 .28 .12 .02 |
| blocks | mean over square blocks of this side in pixels | 2 4 7 14 | 1 .70 .42 .22 .06 |
| darkness | grey values times this factor | .6 .36 .2 .08 | 1 .94 .87 .76 .62 |
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from thurl.errors import DataError


if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

__all__ = ["KINDS", "LEVELS", "QUALITY", "SEVERITIES", "STRENGTH", "degrade", "describe", "quality"]


KINDS = ("noise", "blur", "blocks", "darkness")
LEVELS = (0, 1, 2, 3, 4)
SEVERITIES = ("no", "slight", "moderate", "strong", "extreme")

STRENGTH: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "noise": (0.0, 12.0, 28.0, 55.0, 100.0),
        "blur": (0.0, 0.8, 1.6, 3.0, 6.0),
        "blocks": (1.0, 2.0, 4.0, 7.0, 14.0),
        "darkness": (1.0, 0.6, 0.36, 0.2, 0.08),
    }
)

QUALITY: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "noise": (1.0, 0.80, 0.56, 0.34, 0.16),
        "blur": (1.0, 0.52, 0.28, 0.12, 0.02),
        "blocks": (1.0, 0.70, 0.42, 0.22, 0.06),
        "darkness": (1.0, 0.94, 0.87, 0.76, 0.62),
    }
)


def quality(kind: str, level: int) -> float:
    """Quality in [0, 1] of a perfect picture degraded so.

    Raises:
        DataError: unknown kind or level.
    """
    _check(kind, level)
    return QUALITY[kind][level]


def describe(kind: str, level: int) -> str:
    """Two words: severity and kind, "no flaw" at level 0 whatever the kind.

    Raises:
        DataError: unknown kind or level.
    """
    _check(kind, level)
    return f"{SEVERITIES[level]} {kind}" if level else "no flaw"


def degrade(image: Image.Image, kind: str, level: int, rng: np.random.Generator) -> Image.Image:
    """Degraded RGB copy of `image`, same size; the input stays as it is. Same rng state, same picture.

    Args:
        image: picture of any mode; converted to RGB.
        kind: one of `KINDS`.
        level: one of `LEVELS`; 0 returns an undegraded copy.
        rng: used by "noise" only.

    Raises:
        DataError: unknown kind or level.
    """
    import numpy as np
    from PIL import Image, ImageFilter

    _check(kind, level)
    picture = image.convert("RGB") if image.mode != "RGB" else image.copy()
    if level == 0:
        return picture
    strength = STRENGTH[kind][level]
    if kind == "blur":
        return picture.filter(ImageFilter.GaussianBlur(strength))
    if kind == "blocks":
        width, height = picture.size
        side = int(strength)
        small = picture.resize((max(1, width // side), max(1, height // side)), Image.Resampling.BOX)
        return small.resize((width, height), Image.Resampling.NEAREST)
    pixels = np.asarray(picture, dtype=np.float32)
    pixels = pixels * strength if kind == "darkness" else pixels + rng.normal(0.0, strength, pixels.shape)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _check(kind: str, level: int) -> None:
    if kind not in KINDS:
        raise DataError(f"kind={kind!r} is unknown: must be one of {', '.join(KINDS)}")
    if level not in LEVELS:
        raise DataError(f"level={level!r} is unknown: must be a whole number from {LEVELS[0]} to {LEVELS[-1]}")
