"""Triplets with a known order, without a download: procedural textures or photographs, spoilt in steps.

Each content has six levels of each kind of distortion; a lower level is better. A *perfect* triplet compares two
levels against the clean content, an *imperfect* one against a reference that is itself distorted (level 0 to 4), so
that a test image may beat its reference, which is what A-FINE is about (arXiv 2503.11221).

The pictures are PNG files and the triplets files of the released format, so a generated set goes through the same
readers as a real one. Strengths are for pictures of about 64 pixels and are ours.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from thurl.errors import DataError
from thurl.iqa.afine.triplets import Triplet, compare, write_triplets
from thurl.training.results import write_atomically


if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = [
    "LEVELS",
    "REFERENCES",
    "STRENGTH",
    "distort",
    "photo_contents",
    "texture",
    "texture_contents",
    "write_generated",
]

LEVELS = 6
"""Levels 0 (clean) to 5."""

STRENGTH: Mapping[str, tuple[float, ...]] = {
    "blur": (0.0, 0.7, 1.2, 1.8, 2.6, 3.6),  # standard deviation in pixels
    "noise": (0.0, 8.0, 16.0, 26.0, 38.0, 54.0),  # standard deviation in grey values
    "jpeg": (100.0, 40.0, 22.0, 13.0, 8.0, 4.0),  # quality; level 0 is not compressed at all
}

REFERENCES = ("perfect", "imperfect")

_CROP_TRIES = 8
_LEAST_DETAIL = 4.0  # mean step between neighbouring pixels in grey values; a sky has about 1


def texture(rng: np.random.Generator, size: int = 64) -> Picture:
    """One texture with edges: gratings of random direction and colour under filled polygons and lines.

    Args:
        rng: of the draw.
        size: side in pixels.
    """
    y, x = np.mgrid[:size, :size] / size
    pixels = np.full((size, size, 3), rng.uniform(60, 195, 3))
    for _ in range(rng.integers(2, 5)):
        angle, frequency, phase = rng.uniform(0, np.pi), rng.uniform(2, 14), rng.uniform(0, 2 * np.pi)
        wave = np.sin(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)) + phase)
        pixels += wave[..., None] * rng.uniform(-28, 28, 3)
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(3, 8)):
        corners = [tuple(point) for point in rng.uniform(-0.1, 1.1, (rng.integers(3, 6), 2)) * size]
        draw.polygon(corners, fill=tuple(int(value) for value in rng.integers(0, 256, 3)))
    for _ in range(rng.integers(3, 9)):
        ends = [tuple(point) for point in rng.uniform(0, 1, (2, 2)) * size]
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        draw.line(ends, fill=colour, width=int(rng.integers(1, 4)))
    return picture


def texture_contents(count: int, *, size: int = 64, seed: int = 0) -> dict[str, Picture]:
    """`count` textures by name; no two seeds share one."""
    return {f"t{seed}x{i:04d}": texture(np.random.default_rng((seed, i)), size) for i in range(count)}


def photo_contents(
    photos: Mapping[str, Picture], count: int, *, size: int = 64, seed: int = 0, scale: float = 2.0
) -> dict[str, Picture]:
    """Crops of photographs, taken in turn and reduced by `scale`, which takes the camera's own blur and coding away.

    A crop with little detail is drawn again, a few times; blur cannot be seen in a clear sky.

    Args:
        photos: by name.
        count: crops in all.
        size: side of a crop in pixels after reduction.
        seed: of the draws.
        scale: >= 1.

    Raises:
        DataError: no photograph, or one smaller than `size` times `scale`, all of them.
    """
    side = round(size * scale)
    small = [f"{name}: {photo.width}x{photo.height}" for name, photo in photos.items() if min(photo.size) < side]
    if not photos or small:
        raise DataError(f"photographs of {side}x{side} pixels or more are needed; too small: {', '.join(small[:20])}")
    found: dict[str, Picture] = {}
    names = list(photos)
    for i in range(count):
        name = names[i % len(names)]
        rng = np.random.default_rng((seed, i))
        best: tuple[float, Picture] | None = None
        for _ in range(_CROP_TRIES):
            left, top = (int(rng.integers(0, extent - side + 1)) for extent in photos[name].size)
            box = (left, top, left + side, top + side)
            crop = photos[name].convert("RGB").resize((size, size), Image.Resampling.BOX, box=box)
            detail = _detail(crop)
            if best is None or detail > best[0]:
                best = (detail, crop)
            if detail >= _LEAST_DETAIL:
                break
        assert best is not None
        found[f"{name}x{i:04d}"] = best[1]
    return found


def distort(picture: Picture, kind: str, level: int, rng: np.random.Generator) -> Picture:
    """A distorted copy; level 0 is a plain one.

    Args:
        picture: RGB.
        kind: of `STRENGTH`.
        level: 0 to 5.
        rng: used by "noise" only.

    Raises:
        DataError: an unknown kind or level.
    """
    if kind not in STRENGTH or level not in range(LEVELS):
        raise DataError(f"kind {kind!r}, level {level}: one of {', '.join(STRENGTH)} and 0 to {LEVELS - 1} are needed")
    if level == 0:
        return picture.copy()
    strength = STRENGTH[kind][level]
    if kind == "blur":
        return picture.filter(ImageFilter.GaussianBlur(strength))
    if kind == "noise":
        pixels = np.asarray(picture, dtype=np.float32) + rng.normal(0.0, strength, (picture.height, picture.width, 3))
        return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    coded = io.BytesIO()
    picture.save(coded, "JPEG", quality=int(strength))
    return Image.open(coded, formats=["JPEG"]).convert("RGB")


def write_generated(
    folder: Path,
    contents: Mapping[str, Picture],
    *,
    kinds: Sequence[str] = ("blur", "noise"),
    triplets: int = 1000,
    seed: int = 0,
) -> dict[str, Path]:
    """Write the pictures and for each of `REFERENCES` a file of triplets.

    Also `mos/<content>_<kind>.txt`, opinions (5 minus the level) in the layout of `thurl.data.formats.by_reference`.

    Args:
        folder: gets `images/`, `mos/`, `perfect.csv`, `imperfect.csv`.
        contents: clean pictures by name.
        kinds: of `STRENGTH`.
        triplets: in each of the two files.
        seed: of noise and draws.

    Returns:
        path of the triplets by kind of reference.

    Raises:
        DataError: no content, or an unknown kind.
    """
    if not contents or not kinds or not set(kinds) <= set(STRENGTH):
        raise DataError(f"{len(contents)} contents, kinds {list(kinds)}: some content and kinds of {list(STRENGTH)}")
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    scenes = [(name, kind) for name in contents for kind in kinds]
    for number, (name, kind) in enumerate(scenes):
        lines = []
        for level in range(LEVELS):
            picture = distort(contents[name], kind, level, np.random.default_rng((seed, 1, number, level)))
            picture.save(images / _file(name, kind, level))
            lines.append(f"{_file(name, kind, level)},{_file(name, kind, 0)},{LEVELS - 1 - level}\n")
        write_atomically(folder / "mos" / f"{name}_{kind}.txt", "".join(lines))
    written = {}
    for place, references in enumerate(REFERENCES):
        rng = np.random.default_rng((seed, 2, place))
        found = [_draw(rng, scenes, images, imperfect=references == "imperfect") for _ in range(triplets)]
        written[references] = folder / f"{references}.csv"
        write_triplets(written[references], found, images=images)
    return written


def _draw(rng: np.random.Generator, scenes: Sequence[tuple[str, str]], images: Path, *, imperfect: bool) -> Triplet:
    name, kind = scenes[int(rng.integers(len(scenes)))]
    first, second = (int(level) for level in rng.choice(LEVELS, size=2, replace=False))
    reference = int(rng.integers(0, LEVELS - 1)) if imperfect else 0
    one, two, clean = (str(images / _file(name, kind, level)) for level in (first, second, reference))
    g12, g1r, g2r = (compare(-a, -b) for a, b in ((first, second), (first, reference), (second, reference)))
    return Triplet(one, two, clean, g12, g1r, g2r)


def _file(name: str, kind: str, level: int) -> str:
    return f"{name}_{kind}{level}.png"


def _detail(picture: Picture) -> float:
    grey = np.asarray(picture.convert("L"), dtype=np.float32)
    return float((np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()) / 2)
