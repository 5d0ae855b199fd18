"""What training pictures are spoilt with: one of five ways at one of two levels, with probability 0.3.

The kinds and levels are those of the official code of arXiv 2408.16305, after DeeperForensics-1.0 (arXiv 2001.03024):

| kind | what | levels 1 and 2 |
|---|---|---|
| blocks | grey (128) squares of 8 pixels at random places | 16 and 32, times min(height, width) // 256 |
| noise | Gaussian noise in YCbCr, pixels in [0, 1] | variance 0.001 and 0.002 |
| blur | Gaussian blur of this kernel size k, sigma k / 6 | 7 and 9 |
| pixelate | bilinear down by this factor and back; called JPEG officially | 2 and 3 |
| jpeg | JPEG compression of one of these qualities | 90; 75 or 80 |

Deliberate differences: pictures below 256 pixels, which officially get no blocks at all, get 16 or 32 whose side is
smaller in proportion; the three official JPEG qualities, drawn there whatever the level, are sorted into two levels.

The numbers are drawn first (`draw_augmentation`) and then applied (`augment`), which is a pure function of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thurl.errors import UsageError
from thurl.forensics.pixels import bilinear_resize
from thurl.messages import nearest
from thurl.restoration.degradation import blur, blur_kernel, jpeg


__all__ = ["KINDS", "LEVELS", "PROBABILITY", "Augmentation", "augment", "draw_augmentation"]

PROBABILITY = 0.3
"""Share of training pictures that are spoilt, officially."""

LEVELS = (1, 2)

_BLOCKS, _BLOCK_SIDE, _REFERENCE = (16, 32), 8, 256
_GREY = 128
_VARIANCES = (0.001, 0.002)
_KERNELS = (7, 9)
_FACTORS = (2, 3)
_QUALITIES = ((90,), (75, 80))
# ITU-R BT.601 at full range, as in JPEG.
_TO_YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_FROM_YCBCR = np.linalg.inv(_TO_YCBCR)


@dataclass(frozen=True)
class Augmentation:
    """One way to spoil a picture.

    Args:
        kind: one of `KINDS`.
        level: one of `LEVELS`.
        seed: of what is random in it.

    Raises:
        UsageError: another kind or level.
    """

    kind: str
    level: int
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.kind not in KINDS:
            names = ", ".join(KINDS)
            problems.append(f"augmentation {self.kind!r} is unknown{nearest(self.kind, KINDS)}; it must be of {names}")
        if self.level not in LEVELS:
            problems.append(f"augmentation level is {self.level!r}; it must be 1 or 2")
        if problems:
            raise UsageError(problems)


def draw_augmentation(
    rng: np.random.Generator, probability: float = PROBABILITY, kinds: Sequence[str] | None = None
) -> Augmentation | None:
    """One augmentation with equal chances of kinds and levels, or None. Always takes the same number of draws.

    Args:
        rng: what is drawn from.
        probability: of an augmentation, in [0, 1].
        kinds: of `KINDS`; all of them when None.
    """
    names = KINDS if kinds is None else tuple(kinds)
    hit, kind = rng.random() < probability, rng.integers(len(names))
    level, seed = rng.integers(len(LEVELS)), int(rng.integers(2**63))
    return Augmentation(names[int(kind)], LEVELS[int(level)], seed) if hit else None


def augment(pixels: NDArray[np.uint8], augmentation: Augmentation) -> NDArray[np.uint8]:
    """A picture (H, W, 3) uint8 spoilt so; the same for the same arguments, the input stays as it is."""
    rng = np.random.default_rng(augmentation.seed)
    return _APPLY[augmentation.kind](pixels, augmentation.level - 1, rng)


def _blocks(pixels: NDArray[np.uint8], place: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    short = min(height, width)
    count = _BLOCKS[place] * max(short // _REFERENCE, 1)
    side = min(max(round(_BLOCK_SIDE * min(short / _REFERENCE, 1)), 1), short)
    result = pixels.copy()
    tops, lefts = rng.integers(0, height - side + 1, count), rng.integers(0, width - side + 1, count)
    for top, left in zip(tops, lefts, strict=True):
        result[top : top + side, left : left + side] = _GREY
    return result


def _noise(pixels: NDArray[np.uint8], place: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    colours = pixels @ _TO_YCBCR.T
    colours += 255 * np.sqrt(_VARIANCES[place]) * rng.standard_normal(pixels.shape)
    return _bytes(colours @ _FROM_YCBCR.T)


def _blur(pixels: NDArray[np.uint8], place: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    # The mirrored border must not reach beyond the picture's other side.
    size = min(_KERNELS[place], 2 * min(pixels.shape[:2]) - 1)
    sigma = _KERNELS[place] / 6
    return _bytes(blur(pixels.astype(np.float32), blur_kernel((sigma, sigma), size=size)))


def _pixelate(pixels: NDArray[np.uint8], place: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    small = bilinear_resize(pixels, max(height // _FACTORS[place], 1), max(width // _FACTORS[place], 1))
    return _bytes(bilinear_resize(_bytes(small), height, width))


def _jpeg(pixels: NDArray[np.uint8], place: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    qualities = _QUALITIES[place]
    return np.array(jpeg(pixels, qualities[int(rng.integers(len(qualities)))]))


def _bytes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


_APPLY = {"blocks": _blocks, "noise": _noise, "blur": _blur, "pixelate": _pixelate, "jpeg": _jpeg}

KINDS = tuple(_APPLY)
"""Names of the ways."""
