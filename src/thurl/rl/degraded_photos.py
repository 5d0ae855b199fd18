"""Degraded photographs as ordinary data sets: PNG files and a plain CSV, read back like any other labels.

Two training sets with different rating scales and no photograph in common are mixed without rescaling: one rated 1 to
5 (linear in quality), one rated 0 to 100 (quality to the power 1.7, so the two scales are not even proportional).
Ranking needs only the order inside each set.

A crop is used when its brightness is neither extreme nor constant (mean in [0.2, 0.85], standard deviation at least
0.08 of full scale): on a flat crop no blur, and on a black crop no darkening, can be seen by anybody.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from thurl.data.degradations import KINDS, LEVELS, degrade, quality
from thurl.data.photos import bundled_photos
from thurl.errors import DataError, UsageError


if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

__all__ = ["COLUMNS", "SCALES", "rating", "usable_crop", "vary_crop", "write_degraded_photos"]


COLUMNS = ("image", "mos", "dataset", "reference", "kind", "level")

# name: (lowest rating, highest rating, power of the quality)
SCALES: Mapping[str, tuple[float, float, float]] = {"five": (1.0, 5.0, 1.0), "hundred": (0.0, 100.0, 1.7)}

_TRIES = 50


def rating(value: float, scale: str) -> float:
    """Quality in [0, 1] on a rating scale: "five" (1 to 5, linear) or "hundred" (0 to 100, quality ** 1.7)."""
    if scale not in SCALES:
        raise UsageError(f"scale={scale!r} is unknown: must be one of {', '.join(SCALES)}")
    low, high, power = SCALES[scale]
    return low + (high - low) * value**power


def usable_crop(crop: Image.Image) -> bool:
    """True when degradations can be seen on this crop: not flat, not black, not white."""
    import numpy as np

    brightness = np.asarray(crop.convert("L"), dtype=np.float32) / 255.0
    return bool(0.2 <= brightness.mean() <= 0.85 and brightness.std() >= 0.08)


def write_degraded_photos(
    folder: str | Path,
    *,
    split: str = "train",
    group: str | None = None,
    photos: Mapping[str, Image.Image] | None = None,
    repeats: int = 20,
    scale: str = "five",
    dataset: str | None = None,
    size: int = 56,
    crop: tuple[int, int] = (128, 256),
    vary: bool = False,
    skip_unusable: bool = False,
    seed: int = 0,
) -> Path:
    """Write one data set of degraded crops; every kind and level equally often. Same arguments, same files.

    Args:
        folder: receives `images/*.png` and `labels.csv`.
        split, group: bundled photographs to use (see :func:`thurl.data.photos.bundled_photos`); the names also enter
            the random stream, so two splits never share their draws.
        photos: other photographs by name instead; each is drawn equally often as far as the counts allow.
        repeats: crops per kind and level; the set has `repeats * len(KINDS) * len(LEVELS)` pictures.
        scale: rating scale of the `mos` column, a name of `SCALES`.
        dataset: name in the `dataset` column; default the name of the folder.
        size: side of the pictures in pixels.
        crop: shortest and longest side of the square cut out, in pixels of the photograph; at most its shorter side.
        vary: turn, recolour and re-expose the crops before they are degraded (see :func:`vary_crop`), so that a few
            photographs look like more. For training sets only.
        skip_unusable: take the next photograph where one has no usable crop, instead of an error; for photographs
            nobody chose by hand.
        seed: of crops and noise.

    Returns:
        Path of `labels.csv` with the columns image, mos, dataset, reference (the photograph), kind, level.

    Raises:
        DataError: no photograph with a usable crop.
        UsageError: unknown scale, or counts and sizes that are not positive.
    """
    import numpy as np

    problems = []
    if repeats < 1:
        problems.append(f"repeats={repeats}: must be at least 1")
    if size < 8:
        problems.append(f"size={size}: must be at least 8 pixels")
    if not 8 <= crop[0] <= crop[1]:
        problems.append(f"crop={crop}: must be two sides in pixels, at least 8, the shorter one first")
    if problems:
        raise UsageError(problems)
    rating(1.0, scale)
    folder = Path(folder)
    name = dataset or folder.name
    pictures = dict(photos) if photos is not None else bundled_photos(split, group=group)
    if not pictures:
        raise DataError("photos is empty: needs at least one photograph")
    stream = [seed, *f"{split}/{group}".encode()]
    order = np.random.default_rng([*stream, 0]).permutation(
        np.resize(np.arange(len(pictures)), repeats * len(KINDS) * len(LEVELS))
    )
    names = sorted(pictures)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for index, photo in enumerate(order):
        kind, level = KINDS[index % len(KINDS)], LEVELS[index // len(KINDS) % len(LEVELS)]
        rng = np.random.default_rng([*stream, 1, index])
        for attempt in range(len(names)):
            chosen = names[(photo + attempt) % len(names)]
            try:
                cut = _cut(pictures[chosen], chosen, size, crop, vary, rng)
                break
            except DataError:
                if not skip_unusable or attempt + 1 == len(names):
                    raise
        file = f"images/{index:05d}.png"
        degrade(cut, kind, level, rng).save(folder / file, compress_level=1)
        rows.append((file, f"{rating(quality(kind, level), scale):.4f}", name, chosen, kind, level))
    labels = folder / "labels.csv"
    with labels.open("w", newline="", encoding="utf-8") as stream_out:
        writer = csv.writer(stream_out)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return labels


def vary_crop(crop: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A natural variant of an undegraded crop: quarter turns, other colours, exposure (gamma) and contrast."""
    import numpy as np
    from PIL import Image

    pixels = np.rot90(np.asarray(crop.convert("RGB"), dtype=np.float32) / 255.0, int(rng.integers(4)))
    pixels = pixels[..., rng.permutation(3)]
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = grey + rng.uniform(0.0, 1.3) * (pixels - grey)
    pixels = np.clip(pixels, 0.0, 1.0) ** np.exp(rng.uniform(-0.4, 0.4))
    pixels = pixels.mean() + rng.uniform(0.7, 1.3) * (pixels - pixels.mean())
    return Image.fromarray(np.rint(np.clip(pixels, 0.0, 1.0) * 255).astype(np.uint8))


def _cut(
    photo: Image.Image, name: str, size: int, crop: tuple[int, int], vary: bool, rng: np.random.Generator
) -> Image.Image:
    """A usable random square of the photograph, mirrored half of the time, resized to `size` x `size`."""
    from PIL import Image, ImageOps

    shorter = min(photo.size)
    low, high = min(crop[0], shorter), min(crop[1], shorter)
    for _ in range(_TRIES):
        side = int(rng.integers(low, high + 1))
        left = int(rng.integers(0, photo.size[0] - side + 1))
        top = int(rng.integers(0, photo.size[1] - side + 1))
        square = photo.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
        if rng.random() < 0.5:
            square = ImageOps.mirror(square)
        if vary:
            square = vary_crop(square, rng)
        if usable_crop(square):
            return square
    raise DataError(
        f"photograph {name!r}: no usable crop in {_TRIES} tries (too dark, too bright or flat); leave it out"
    )
