"""Other data sets of the same number of bits: real pictures as pixels, as JPEG or as WebP, and optimised pixels.

Every baseline says what was counted. Labels follow from the order and cost nothing. Coded pictures are counted three
ways: `scan`, the entropy coded data alone, which flatters JPEG since its tables are not in it; `shared_header`, one
header for the whole set, which a container could do; `file`, whole files.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from thurl.data.images import open_image
from thurl.distillation.pictures import PictureSet, RealBatches
from thurl.distillation.utility.base import Utility
from thurl.errors import DataError, UsageError


__all__ = [
    "COUNTINGS",
    "FORMATS",
    "Baseline",
    "coded_pictures",
    "fit_count",
    "fit_quality",
    "optimised_pixels",
    "pixel_bits",
    "pixel_pictures",
    "pixels_that_fit",
    "random_pictures",
]

FORMATS = ("jpeg", "webp")
COUNTINGS = ("file", "scan", "shared_header")
QUALITIES = (1, 95)
"""Lowest and highest; above 95 a JPEG grows without a gain one can see."""


@dataclass(frozen=True)
class Baseline:
    """A data set and its cost.

    Attributes:
        images: uint8 (N, channels, H, W), as a user would decode them.
        labels: int64 (N,).
        bits_per_class: by the counting that was asked for; the mean over classes.
        accounting: bits per class by every counting.
        decode_seconds: wall time of decoding all pictures on one thread; 0 for pixels.
        settings: how it was made.
    """

    images: torch.Tensor
    labels: torch.Tensor
    bits_per_class: float
    accounting: Mapping[str, float]
    decode_seconds: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)


def pixel_bits(per_class: int, channels: int, height: int, width: int, depth: int = 8) -> int:
    """Bits per class of raw pixels with `depth` bits per channel; published baselines count 32."""
    return per_class * channels * height * width * depth


def pixels_that_fit(budget: float, channels: int, height: int, width: int, depth: int = 8) -> int:
    """Pictures per class that `budget` bits per class hold as pixels; 0 if not one."""
    return int(budget // pixel_bits(1, channels, height, width, depth))


def pixel_pictures(images: torch.Tensor, labels: torch.Tensor, classes: int, **settings: Any) -> Baseline:
    """Pictures stored as 8-bit pixels; beside it the bits at 16 and 32 per channel.

    Args:
        images: uint8 (N, channels, H, W).
        labels: int64 (N,).
    """
    each = images[0].numel() * len(images) / classes
    accounting = {f"pixels_{depth}bit": each * depth for depth in (8, 16, 32)}
    return Baseline(images, labels, accounting["pixels_8bit"], accounting, settings=settings)


def random_pictures(pictures: PictureSet, per_class: int, generator: torch.Generator) -> Baseline:
    """Random real pictures as 8-bit pixels.

    Raises:
        DataError: classes with fewer pictures.
    """
    drawn = pictures.draw(per_class, generator)
    return pixel_pictures(drawn.images, drawn.labels, len(pictures.classes), kind="real", per_class=per_class)


def optimised_pixels(
    utility: Utility,
    pictures: PictureSet,
    per_class: int,
    iterations: int,
    generator: torch.Generator,
    lr: float = 0.01,
    device: torch.device | str = "cpu",
) -> Baseline:
    """Pixels trained by a utility loss: classical distillation, e.g. distribution matching.

    They start from random real pictures. Adam moves normalised values, which are then clipped to [0, 1] and rounded
    to 8 bits.

    Raises:
        DataError: classes with fewer pictures, or pixels that are no longer finite.
    """
    start = pictures.draw(per_class, generator)
    labels = start.labels.to(device)
    images = start.normalised(device).requires_grad_()
    real = RealBatches(pictures, device)
    optimizer = torch.optim.Adam([images], lr=lr)
    for _ in range(iterations):
        optimizer.zero_grad()
        utility.loss(images, labels, real, generator).backward()
        optimizer.step()
        utility.update()
    if not bool(images.isfinite().all()):
        raise DataError(f"optimised pixels are no longer finite after {iterations} iterations; lower lr ({lr})")
    mean, std = (torch.tensor(value, device=device)[:, None, None] for value in (pictures.mean, pictures.std))
    pixels = ((images.detach() * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    return pixel_pictures(
        pixels,
        start.labels,
        len(pictures.classes),
        kind=type(utility).__name__,
        per_class=per_class,
        iterations=iterations,
        lr=lr,
    )


def coded_pictures(
    pictures: PictureSet,
    per_class: int,
    quality: int,
    generator: torch.Generator,
    coder: str = "jpeg",
    counting: str = "scan",
) -> Baseline:
    """Random real pictures as JPEG (4:2:0, standard tables) or lossy WebP (effort 6), decoded again.

    Raises:
        UsageError: an unknown coder or counting, or a quality outside 1 to 95.
        DataError: classes with fewer pictures.
    """
    _check(coder, counting, quality)
    drawn = pictures.draw(per_class, generator)
    return _decoded(drawn, [_encode(image, coder, quality) for image in drawn.images], coder, counting, quality)


def fit_quality(
    pictures: PictureSet,
    per_class: int,
    budget: float,
    generator: torch.Generator,
    coder: str = "jpeg",
    counting: str = "scan",
) -> Baseline:
    """The highest quality at which `per_class` random pictures of each class cost at most `budget` bits per class.

    Raises:
        DataError: even the lowest costs more, or classes have fewer pictures.
    """
    _check(coder, counting)
    drawn, classes = pictures.draw(per_class, generator), len(pictures.classes)
    low, high = QUALITIES[0] - 1, QUALITIES[1]
    fitting: list[_File] = []
    # Bits rise with quality, but for single bytes; what is returned fits in any case.
    while low < high:
        quality = (low + high + 1) // 2
        files = [_encode(image, coder, quality) for image in drawn.images]
        if _accounting(files, classes)[counting] <= budget:
            low, fitting = quality, files
        else:
            high = quality - 1
    if not fitting:
        least = _accounting([_encode(image, coder, QUALITIES[0]) for image in drawn.images], classes)[counting]
        raise DataError(
            f"{per_class} pictures per class as {coder} cost {least:.0f} bits per class ({counting}) at the lowest "
            f"quality; {budget:.0f} is the budget. Take fewer pictures."
        )
    return _decoded(drawn, fitting, coder, counting, low)


def fit_count(
    pictures: PictureSet,
    quality: int,
    budget: float,
    generator: torch.Generator,
    coder: str = "jpeg",
    counting: str = "scan",
) -> Baseline:
    """The largest number of random pictures per class that costs at most `budget` bits per class at `quality`.

    At most as many as the smallest class has.

    Raises:
        DataError: not one fits.
    """
    _check(coder, counting, quality)
    most, classes = min(pictures.counts), len(pictures.classes)
    # In the order of `draw`, the first n of each class are what `draw(n)` with the same generator gives.
    drawn = pictures.draw(most, generator)
    place = torch.arange(len(drawn)) % most
    files: list[_File] = []
    chosen = torch.zeros(0, dtype=torch.int64)
    for count in range(1, most + 1):
        added = (place == count - 1).nonzero()[:, 0]
        more = [_encode(drawn.images[index], coder, quality) for index in added.tolist()]
        if _accounting(files + more, classes)[counting] > budget:
            break
        files, chosen = files + more, torch.cat([chosen, added])
    if not files:
        raise DataError(
            f"one picture per class as {coder} of quality {quality} costs more than {budget:.0f} bits ({counting}); "
            "lower the quality"
        )
    order = chosen.argsort()
    return _decoded(drawn.subset(chosen[order]), [files[i] for i in order.tolist()], coder, counting, quality)


@dataclass(frozen=True)
class _File:
    content: bytes
    scan: int  # bytes of entropy coded data


def _check(coder: str, counting: str, quality: int = QUALITIES[0]) -> None:
    problems = []
    if coder not in FORMATS:
        problems.append(f"coder: `{coder}` must be one of {', '.join(FORMATS)}")
    if counting not in COUNTINGS:
        problems.append(f"counting: `{counting}` must be one of {', '.join(COUNTINGS)}")
    if not QUALITIES[0] <= quality <= QUALITIES[1]:
        problems.append(f"quality: {quality} must be between {QUALITIES[0]} and {QUALITIES[1]}")
    if problems:
        raise UsageError(problems)


def _encode(image: torch.Tensor, coder: str, quality: int) -> _File:
    values = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(values[..., 0] if len(image) == 1 else values)
    buffer = io.BytesIO()
    if coder == "jpeg":
        picture.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
        return _File(buffer.getvalue(), _jpeg_scan(buffer.getvalue()))
    picture.convert("RGB").save(buffer, "WEBP", quality=quality, method=6)
    content = buffer.getvalue()
    # RIFF, size, WEBP, name of the chunk, its size; one chunk, padded to even bytes.
    return _File(content, int.from_bytes(content[16:20], "little"))


def _jpeg_scan(content: bytes) -> int:
    """Bytes between the header of the one scan and the end marker."""
    place = 2
    while content[place + 1] != 0xDA:  # start of scan
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return len(content) - (place + 2 + int.from_bytes(content[place + 2 : place + 4], "big")) - 2


def _accounting(files: list[_File], classes: int) -> dict[str, float]:
    scan, whole = sum(file.scan for file in files), sum(len(file.content) for file in files)
    header = max(len(file.content) - file.scan for file in files)
    return {
        name: 8 * size / classes for name, size in (("file", whole), ("scan", scan), ("shared_header", scan + header))
    }


def _decoded(drawn: PictureSet, files: list[_File], coder: str, counting: str, quality: int) -> Baseline:
    grey = drawn.images.shape[1] == 1
    start = time.perf_counter()
    decoded = [open_image(file.content, formats=(coder.upper(),), name=f"{coder} picture") for file in files]
    seconds = time.perf_counter() - start
    arrays = [np.asarray(picture.convert("L") if grey else picture) for picture in decoded]
    images = torch.from_numpy(np.stack(arrays)).reshape(len(arrays), *arrays[0].shape[:2], -1).permute(0, 3, 1, 2)
    accounting = _accounting(files, len(drawn.classes))
    return Baseline(
        images.contiguous(),
        drawn.labels,
        accounting[counting],
        accounting,
        seconds,
        {
            "kind": coder,
            "counting": counting,
            "quality": quality,
            "per_class": len(drawn) // len(drawn.classes),
        },
    )
