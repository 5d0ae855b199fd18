"""A simulated camera: random scenes, photographs of them with real EXIF, and fakes. For tests and the tiny recipes.

The pictures look like masks in coloured fog: two eyes, a nose and a mouth, each with a lighter right side so that
turning or mirroring it shows. Their point is that settings leave a known trace in the pixels, so that what the methods
learn can be checked without a download:

| setting | range | trace |
|---|---|---|
| ISO | 100 to 1000 | sensor noise, standard deviation ISO / 10,000 of full scale |
| aperture | f/1.4 to f/16 | Gaussian defocus, 1.8 pixels wide open, 0.1 stopped down |
| exposure time | 1/2000 to 1/8 s | horizontal motion blur, up to 6 pixels |
| focal length | 18 to 200 mm | vignetting, corners darkened by up to 75 % at the short end |
| make | the ten classes | tone curve and saturation |
| white balance | auto, manual | a warm cast when manual |
| metering mode | seven codes | overall brightness |
| exposure program | six codes | contrast |
| exposure mode | three codes | none: a setting that cannot be learned |

Files go through Pillow's encoder with their EXIF inside and some tags left out, so that reader, scan and manifest see
what real photographs give them. Picture number i of a seed is the same whatever the number of pictures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from thurl.errors import UsageError
from thurl.forensics.crop import central_box
from thurl.forensics.exif.settings import RAW_TAGS


__all__ = ["FAKES", "SIZE", "fakes", "photographs", "write_fakes", "write_photographs"]

SIZE = 40
"""Side of the pictures in pixels."""

_CHUNK = 256
_MARGIN = 12
_SCALES = ((2, 0.22), (4, 0.18), (8, 0.18), (16, 0.18), (32, 0.18), (64, 0.12))
_NOISE = (0.01, 0.10)
_DEFOCUS = (1.8, 0.1)
_MOTION = 6.0
_VIGNETTE = 0.75
_GRID = 0.08

# Of the mask, in shares of the face box: centre, half axes, how far the ends are raised.
_FEATURES = (
    (0.30, 0.37, 0.12, 0.06, 0.0),
    (0.70, 0.37, 0.12, 0.06, 0.0),
    (0.50, 0.52, 0.07, 0.12, 0.0),
    (0.50, 0.81, 0.20, 0.07, 0.08),
)
_SHIFT = 0.02

# Maker as cameras write it: exponent of the tone curve, saturation.
_MAKERS = (
    ("NIKON CORPORATION", 0.80, 1.3),
    ("Apple", 0.90, 0.7),
    ("FUJIFILM", 1.00, 1.3),
    ("Canon", 1.10, 1.0),
    ("samsung", 1.20, 0.7),
    ("SONY", 0.80, 0.7),
    ("Panasonic", 0.90, 1.0),
    ("Nokia", 1.00, 0.7),
    ("PENTAX Corporation", 1.10, 1.3),
    ("OLYMPUS", 1.20, 1.0),
)
# EXIF code to brightness, and to contrast.
_METERING = {1: 0.88, 2: 0.92, 3: 0.96, 4: 1.00, 5: 1.04, 6: 1.08, 255: 1.12}
_PROGRAM = {1: 0.75, 2: 0.85, 3: 0.95, 4: 1.05, 7: 1.15, 8: 1.25}
_EXPOSURE_MODE = (0, 1, 2)

Draw = dict[str, np.ndarray]


def photographs(
    count: int, *, size: int = SIZE, seed: int = 0, start: int = 0
) -> tuple[np.ndarray, list[dict[str, float | str]]]:
    """Simulated photographs.

    Args:
        count: how many, 1 or more.
        size: side in pixels, 8 or more.
        seed: of scenes, settings and noise.
        start: number of the first picture; different numbers are different pictures.

    Returns:
        (count, size, size, 3) uint8, and for each the true values of the tags of
        `thurl.forensics.exif.settings.RAW_TAGS` (`ApertureValue` left out).
    """
    return _photographs(count, size, seed, start, lambda pixels: pixels)


def _reborn(count: int, size: int, seed: int, start: int) -> np.ndarray:
    """A photograph of half the size, noise included, with every pixel repeated."""
    half, _ = _photographs(count, (size + 1) // 2, seed, start, lambda pixels: pixels)
    return half.repeat(2, axis=1).repeat(2, axis=2)[:, :size, :size]


def _smooth(count: int, size: int, seed: int, start: int) -> np.ndarray:
    """A photograph of half the size without any noise, doubled bilinearly."""
    half, _ = _photographs(count, (size + 1) // 2, seed, start, lambda pixels: pixels, noise=False)
    up = _stretch(half.shape[1], 2 * half.shape[1])[:size]
    return np.rint(np.einsum("ai,nijc,bj->nabc", up, half.astype(np.float64), up, optimize=True)).astype(np.uint8)


def _grid(count: int, size: int, seed: int, start: int) -> np.ndarray:
    """A photograph with a checkerboard of period 2 and 8 % of full scale on it."""
    sign = 1 - 2 * (np.add.outer(np.arange(size), np.arange(size)) % 2)
    pattern = _GRID * sign[None, :, :, None]
    return _photographs(count, size, seed, start, lambda pixels: pixels + pattern)[0]


FAKES: Mapping[str, Callable[[int, int, int, int], np.ndarray]] = {"reborn": _reborn, "smooth": _smooth, "grid": _grid}
"""Kinds of fakes.

`reborn` (half resolution with noise, every pixel repeated) is the one that a trained encoder should find. `smooth` (no
noise, enlarged) looks like an excellent low-ISO photograph: at length 1 its likelihood may be too high, not too low.
`grid` (a checkerboard) is a cue that no setting explains, so training makes the encoder less sensitive to it.
"""


def fakes(kind: str, count: int, *, size: int = SIZE, seed: int = 0, start: int = 0) -> np.ndarray:
    """Simulated fakes: (count, size, size, 3) uint8; arguments as for `photographs`.

    Raises:
        UsageError: unknown kind.
    """
    if kind not in FAKES:
        raise UsageError(f"kind is {kind!r}; it must be one of {', '.join(FAKES)}")
    _check(count, size)
    return FAKES[kind](count, size, seed, start)


def write_photographs(
    folder: str | os.PathLike[str],
    count: int,
    *,
    size: int = SIZE,
    seed: int = 0,
    start: int = 0,
    format: str = "JPEG",
    missing: float = 0.1,
) -> list[Path]:
    """Writes photographs `photo_000000.jpg` ... with EXIF.

    Args:
        folder: made if it does not exist.
        format: "JPEG" (quality 97, full colour resolution) or "PNG".
        missing: chance in [0, 1] with which each tag of each picture is left out.

    Returns:
        The paths in order.

    Raises:
        UsageError: values out of their range.
    """
    if not 0 <= missing <= 1:
        raise UsageError(f"missing is {missing}; it must be a share from 0 to 1")
    pixels, raw = photographs(count, size=size, seed=seed, start=start)
    blocks = []
    for number, values in enumerate(raw, start=start):
        rng = _rng(seed, number, 1)
        kept = {tag: value for tag, value in values.items() if rng.random() >= missing}
        blocks.append(_exif(kept))
    return _write(Path(folder), "photo", pixels, start, format, blocks)


def write_fakes(
    folder: str | os.PathLike[str],
    kind: str,
    count: int,
    *,
    size: int = SIZE,
    seed: int = 0,
    start: int = 0,
    format: str = "JPEG",
) -> list[Path]:
    """Writes fakes `<kind>_000000.jpg` ... without EXIF, encoded like the photographs; see `write_photographs`."""
    pixels = fakes(kind, count, size=size, seed=seed, start=start)
    return _write(Path(folder), kind, pixels, start, format, [None] * count)


def _photographs(
    count: int,
    size: int,
    seed: int,
    start: int,
    finish: Callable[[np.ndarray], np.ndarray],
    *,
    noise: bool = True,
) -> tuple[np.ndarray, list[dict[str, float | str]]]:
    """Photographs with `finish` between sensor and rounding."""
    _check(count, size)
    parts, raw = [], []
    for begin, end in _chunks(start, start + count):
        rngs = [_rng(seed, number, 0) for number in range(begin, end)]
        draw = _draw(rngs)
        image = _develop(_expose(_scenes(rngs, size), draw, size), draw)
        sensor = np.stack([rng.standard_normal((size, size, 3)) for rng in rngs])
        if noise:
            image = image + sensor * draw["noise"][:, None, None, None]
        parts.append(np.rint(np.clip(finish(image), 0, 1) * 255).astype(np.uint8))
        raw += _raw(draw)
    return np.concatenate(parts), raw


def _draw(rngs: list[np.random.Generator]) -> Draw:
    """Settings of each picture: four numbers in [0, 1] and what they mean, and indices of the classes."""
    share = np.stack([rng.random(4) for rng in rngs])
    choice = np.stack(
        [rng.integers(0, [len(_MAKERS), len(_METERING), len(_PROGRAM), len(_EXPOSURE_MODE), 2]) for rng in rngs]
    )
    iso, aperture, exposure, focal = share.T
    return {
        "noise": _NOISE[0] + (_NOISE[1] - _NOISE[0]) * iso,
        "defocus": _DEFOCUS[0] + (_DEFOCUS[1] - _DEFOCUS[0]) * aperture,
        "motion": _MOTION * exposure,
        "vignette": _VIGNETTE * (1 - focal),
        "aperture": 1.4 * (16 / 1.4) ** aperture,
        "exposure": 250.0**exposure / 2000,
        "focal": 18 * (200 / 18) ** focal,
        "choice": choice,
    }


def _scenes(rngs: list[np.random.Generator], size: int) -> np.ndarray:
    """(N, size + margins, size + margins, 3) in about [0, 1]: random colours at six scales, and a mask on it."""
    wide = size + 2 * _MARGIN
    scene = np.full((len(rngs), wide, wide, 3), 0.5)
    for cells, weight in _SCALES:
        colour = np.stack([rng.uniform(-1, 1, (cells + 1, cells + 1, 3)) for rng in rngs])
        # Half of the contrast is grey: real scenes are less colourful than independent channels.
        colour = 0.5 * colour + 0.5 * colour[..., :1]
        up = _stretch(cells + 1, wide)
        scene += weight * np.einsum("ai,nijc,bj->nabc", up, colour, up, optimize=True)
    return _with_mask(scene, np.stack([rng.uniform(-1, 1, 5) for rng in rngs]), size)


def _with_mask(scene: np.ndarray, random: np.ndarray, size: int) -> np.ndarray:
    """Eyes, nose and mouth where `thurl.forensics.faces.average_landmarks` has them, moved a little."""
    left, _, right, _ = central_box((size, size))
    place = (np.arange(scene.shape[1]) - _MARGIN + 0.5 - left) / (right - left)
    x = place[None, None, :] - _SHIFT * random[:, 0, None, None]
    y = place[None, :, None] - _SHIFT * random[:, 1, None, None]
    # Dark features, a little different in colour from picture to picture.
    dark = 0.12 + 0.08 * random[:, None, None, 2:]
    for centre_x, centre_y, wide, high, bend in _FEATURES:
        across = (x - centre_x) / wide
        along = (y - centre_y + bend * across**2) / high
        opacity = np.exp(-((across**2 + along**2) ** 2))
        lighter = 0.45 / (1 + np.exp(-6 * across))
        scene = scene + opacity[..., None] * (dark + lighter[..., None] - scene)
    return scene


def _expose(scene: np.ndarray, draw: Draw, size: int) -> np.ndarray:
    """Defocus, motion and vignetting: (N, size, size, 3)."""
    wide = scene.shape[1]
    vertical, horizontal = np.fft.fftfreq(wide)[:, None], np.fft.rfftfreq(wide)[None, :]
    sigma = draw["defocus"][:, None, None]
    blur = np.exp(-2 * (np.pi * sigma) ** 2 * (vertical**2 + horizontal**2))
    blur = blur * np.sinc(draw["motion"][:, None, None] * horizontal)
    spectrum = np.fft.rfft2(scene, axes=(1, 2)) * blur[..., None]
    # The margin keeps what wraps round away from the picture.
    image = np.fft.irfft2(spectrum, s=(wide, wide), axes=(1, 2))[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    place = (np.arange(size) + 0.5) * 2 / size - 1
    radius = (place[:, None] ** 2 + place[None, :] ** 2) / 2
    return image * (1 - draw["vignette"][:, None, None, None] * radius[None, :, :, None])


def _develop(image: np.ndarray, draw: Draw) -> np.ndarray:
    """The maker's look, metering, white balance and program, before the noise: (N, size, size, 3)."""
    maker, metering, program, _, balance = draw["choice"].T

    def pick(table: Any, index: np.ndarray) -> np.ndarray:
        return np.array(table)[index][:, None, None, None]

    image = 0.5 + (image - 0.5) * pick(list(_PROGRAM.values()), program)
    grey = image.mean(axis=-1, keepdims=True)
    image = grey + (image - grey) * pick([m[2] for m in _MAKERS], maker)
    image = np.clip(image * pick(list(_METERING.values()), metering), 0, None) ** pick([m[1] for m in _MAKERS], maker)
    cast = np.where(balance[:, None] == 1, [1.1, 1.0, 0.85], [1.0, 1.0, 1.0])
    return image * cast[:, None, None, :]


def _raw(draw: Draw) -> list[dict[str, float | str]]:
    metering, program = list(_METERING), list(_PROGRAM)
    return [
        {
            "Make": _MAKERS[maker][0],
            "ExposureTime": float(draw["exposure"][i]),
            "FNumber": float(draw["aperture"][i]),
            "ExposureProgram": program[mode],
            "ISO": round(float(draw["noise"][i]) * 1e4),
            "MeteringMode": metering[meter],
            "FocalLength": float(draw["focal"][i]),
            "ExposureMode": _EXPOSURE_MODE[exposure],
            "WhiteBalance": int(balance),
        }
        for i, (maker, meter, mode, exposure, balance) in enumerate(draw["choice"])
    ]


def _exif(raw: Mapping[str, float | str]) -> Image.Exif:
    # As cameras do it: the maker in the main directory, the rest in the Exif directory, fractions with a denominator
    # that keeps the value to about 0.1 %.
    exif = Image.Exif()
    inner = exif.get_ifd(0x8769)
    for tag, value in raw.items():
        if tag == "Make":
            exif[RAW_TAGS[tag]] = value
        elif tag == "ExposureTime":
            inner[RAW_TAGS[tag]] = IFDRational(round(float(value) * 1e6), 10**6)
        elif tag in ("FNumber", "FocalLength"):
            inner[RAW_TAGS[tag]] = IFDRational(round(float(value) * 100), 100)
        else:
            inner[RAW_TAGS[tag]] = int(value)
    return exif


def _write(
    folder: Path, name: str, pixels: np.ndarray, start: int, format: str, blocks: Sequence[Image.Exif | None]
) -> list[Path]:
    endings = {"JPEG": "jpg", "PNG": "png"}
    if format not in endings:
        raise UsageError(f"format is {format!r}; it must be one of {', '.join(endings)}")
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"quality": 97, "subsampling": 0} if format == "JPEG" else {}
    paths = []
    for number, (image, exif) in enumerate(zip(pixels, blocks, strict=True), start=start):
        path = folder / f"{name}_{number:06d}.{endings[format]}"
        Image.fromarray(image).save(path, format, **options, **({} if exif is None else {"exif": exif}))
        paths.append(path)
    return paths


def _stretch(before: int, after: int) -> np.ndarray:
    """(after, before): linear interpolation from points at both ends and evenly between."""
    place = np.linspace(0, before - 1, after)
    low = np.minimum(place.astype(int), before - 2)
    matrix = np.zeros((after, before))
    rows = np.arange(after)
    matrix[rows, low] = 1 - (place - low)
    matrix[rows, low + 1] = place - low
    return matrix


def _rng(seed: int, number: int, stream: int) -> np.random.Generator:
    return np.random.default_rng((seed, number, stream))


def _chunks(start: int, end: int) -> Iterator[tuple[int, int]]:
    for begin in range(start, end, _CHUNK):
        yield begin, min(begin + _CHUNK, end)


def _check(count: int, size: int) -> None:
    if count < 1 or size < 8:
        raise UsageError(f"count is {count}, size {size}; at least 1 picture of at least 8 pixels")
