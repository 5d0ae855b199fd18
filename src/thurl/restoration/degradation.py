"""The way a good picture becomes a bad one: blur, downsampling, noise, JPEG, and back to its size.

First-order model of blind face restoration, as GFP-GAN (arXiv 2101.04061) trains with:

    y = resize_back(JPEG_q(downsample_r(x * k) + n))

What differs from its code: shrinking averages over the pixels it drops (Pillow), the method of shrinking is drawn, and
noise may be Poisson or the same in all channels. No colour jitter: the colours are part of what is restored.

The numbers are drawn first (`draw_degradation`) and then applied (`degrade`), which is a pure function of them.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from thurl.data.images import open_image
from thurl.errors import UsageError
from thurl.messages import nearest


__all__ = [
    "RESIZE_METHODS",
    "Degradation",
    "DegradationConfig",
    "blur",
    "blur_kernel",
    "degradation_problems",
    "degrade",
    "draw_degradation",
    "jpeg",
    "resize",
]

RESIZE_METHODS = {
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
"""Names of the resize methods. All of them average over dropped pixels where they shrink."""

_FINEST = 0.05
"""Blur of a smaller standard deviation, in pixels, changes no pixel."""


@dataclass(frozen=True)
class DegradationConfig:
    """What is drawn from. A range is (lowest, highest), drawn uniformly. The defaults are those of GFP-GAN's code.

    Args:
        blur_sigma: standard deviation of the Gaussian blur in pixels.
        anisotropic: probability of two standard deviations and an angle instead of one.
        kernel_size: side of the blur kernel in pixels, odd.
        downsample: factor by which the sides shrink; below 1 they grow.
        downsample_methods: of `RESIZE_METHODS`, drawn with equal probability.
        noise: standard deviation in grey values (0 to 255).
        poisson: probability of Poisson noise, whose standard deviation at mid grey is the one drawn.
        grey_noise: probability that all channels get the same noise.
        jpeg: quality, whole numbers from 1 to 100.
        upsample_method: of `RESIZE_METHODS`, for the way back.

    Raises:
        UsageError: values outside these rules, all of them.
    """

    blur_sigma: tuple[float, float] = (0.1, 10.0)
    anisotropic: float = 0.5
    kernel_size: int = 41
    downsample: tuple[float, float] = (0.8, 8.0)
    downsample_methods: tuple[str, ...] = ("area", "bilinear", "bicubic")
    noise: tuple[float, float] = (0.0, 20.0)
    poisson: float = 0.0
    grey_noise: float = 0.0
    jpeg: tuple[int, int] = (60, 100)
    upsample_method: str = "bilinear"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        problems = degradation_problems(vars(self))
        if problems:
            raise UsageError([f"{name} {text}" for name, text in problems])


def degradation_problems(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is wrong with the values of all fields of `DegradationConfig`, as (field, message)."""
    found = []
    limits = {"blur_sigma": (0, math.inf), "downsample": (0.1, 64), "noise": (0, 255), "jpeg": (1, 100)}
    for name, (least, most) in limits.items():
        value = values[name]
        if len(value) != 2 or not least <= value[0] <= value[1] <= most or not math.isfinite(value[1]):
            rule = f"two numbers from {least:g}" + ("" if most == math.inf else f" to {most:g}")
            found.append((name, f"is {list(value)}, but must be {rule}, the smaller one first"))
    for name in ("anisotropic", "poisson", "grey_noise"):
        if not 0 <= values[name] <= 1:
            found.append((name, f"is {values[name]}, but must be a probability from 0 to 1"))
    if values["kernel_size"] < 1 or values["kernel_size"] % 2 == 0:
        found.append(("kernel_size", f"is {values['kernel_size']}, but must be an odd number of pixels"))
    if not values["downsample_methods"]:
        found.append(("downsample_methods", "is empty, but must name at least one method"))
    named = [("downsample_methods", name) for name in values["downsample_methods"]]
    for field, name in [*named, ("upsample_method", values["upsample_method"])]:
        if name not in RESIZE_METHODS:
            message = f"has {name!r}, but must be of {', '.join(RESIZE_METHODS)}{nearest(name, RESIZE_METHODS)}"
            found.append((field, message))
    return found


@dataclass(frozen=True)
class Degradation:
    """The numbers of one degradation; see `DegradationConfig` for their units.

    Args:
        sigma: standard deviations along the two axes of the blur.
        angle: of the first axis, in radians.
        kernel_size: side of the blur kernel.
        factor: by which the sides shrink.
        method: of shrinking.
        noise: standard deviation in grey values.
        poisson, grey_noise: kind of noise.
        noise_seed: what the noise is drawn from.
        quality: of JPEG.
        upsample_method: for the way back.
    """

    sigma: tuple[float, float]
    angle: float
    kernel_size: int
    factor: float
    method: str
    noise: float
    poisson: bool
    grey_noise: bool
    noise_seed: int
    quality: int
    upsample_method: str

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"sigma": list(self.sigma)}


def draw_degradation(config: DegradationConfig, rng: np.random.Generator) -> Degradation:
    """Draw one. The same number of draws is taken whatever comes out, so that one choice never shifts the others."""
    first, second = rng.uniform(*config.blur_sigma, size=2)
    uneven, angle = rng.random() < config.anisotropic, rng.uniform(0, math.pi)
    factor = rng.uniform(*config.downsample)
    method = config.downsample_methods[rng.integers(len(config.downsample_methods))]
    noise, poisson, grey = rng.uniform(*config.noise), rng.random(), rng.random()
    return Degradation(
        sigma=(float(first), float(second if uneven else first)),
        angle=float(angle) if uneven else 0.0,
        kernel_size=config.kernel_size,
        factor=float(factor),
        method=method,
        noise=float(noise),
        poisson=bool(poisson < config.poisson),
        grey_noise=bool(grey < config.grey_noise),
        noise_seed=int(rng.integers(2**63)),
        quality=int(rng.integers(config.jpeg[0], config.jpeg[1] + 1)),
        upsample_method=config.upsample_method,
    )


def degrade(pixels: NDArray[np.uint8], degradation: Degradation) -> NDArray[np.uint8]:
    """Apply a degradation.

    Args:
        pixels: (H, W, 3) uint8; not changed.
        degradation: the numbers.

    Returns:
        (H, W, 3) uint8, the same for the same arguments.
    """
    height, width = _check_picture(pixels)
    kernel = blur_kernel(degradation.sigma, degradation.angle, degradation.kernel_size)
    picture = blur(pixels.astype(np.float32), kernel)
    small = max(1, round(height / degradation.factor)), max(1, round(width / degradation.factor))
    picture = resize(picture, small, degradation.method)
    picture = _add_noise(picture, degradation)
    packed = jpeg(np.clip(np.rint(picture), 0, 255).astype(np.uint8), degradation.quality)
    if packed.size != (width, height):
        packed = packed.resize((width, height), RESIZE_METHODS[degradation.upsample_method])
    return np.array(packed)


def blur_kernel(sigma: Sequence[float], angle: float = 0.0, size: int = 41) -> NDArray[np.float64]:
    """Gaussian kernel with the standard deviations `sigma` along two axes turned by `angle`.

    Args:
        sigma: two standard deviations in pixels, 0 or more.
        angle: of the first axis against the rows, in radians.
        size: largest side, odd; a kernel that fits into four standard deviations is smaller.

    Returns:
        (k, k) float64, k odd and at most `size`, sum 1.
    """
    widest = max(sigma)
    radius = min(size // 2, math.ceil(4 * widest))
    if widest < _FINEST or radius == 0:
        return np.ones((1, 1))
    deviations = np.maximum(np.asarray(sigma, dtype=np.float64), _FINEST)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    kernel = np.exp(-0.5 * ((along / deviations[0]) ** 2 + (across / deviations[1]) ** 2))
    return kernel / kernel.sum()


def blur(picture: NDArray[np.float32], kernel: NDArray[np.float64]) -> NDArray[np.float32]:
    """Convolve every channel of (H, W, C) float32 with a (k, k) kernel; mirrored at the border."""
    if kernel.size == 1:
        return picture
    from scipy import signal

    radius = kernel.shape[0] // 2
    padded = np.pad(picture, ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    return signal.fftconvolve(padded, kernel[..., None].astype(np.float32), mode="valid", axes=(0, 1))


def resize(picture: NDArray[np.float32], size: tuple[int, int], method: str) -> NDArray[np.float32]:
    """Resize (H, W, C) float32 to `size` = (height, width), without rounding; the same size comes back as it is."""
    if picture.shape[:2] == tuple(size):
        return picture
    channels = [
        np.asarray(Image.fromarray(channel).resize((size[1], size[0]), RESIZE_METHODS[method]))
        for channel in np.ascontiguousarray(np.moveaxis(picture, 2, 0), dtype=np.float32)
    ]
    return np.stack(channels, axis=2)


def _add_noise(picture: NDArray[np.float32], degradation: Degradation) -> NDArray[np.float32]:
    """Noise of the drawn standard deviation; Poisson noise of a picture in [0, 255]."""
    if degradation.noise <= 0:
        return picture
    rng = np.random.default_rng(degradation.noise_seed)
    shape = (*picture.shape[:2], 1) if degradation.grey_noise else picture.shape
    if not degradation.poisson:
        return picture + (degradation.noise * rng.standard_normal(shape)).astype(np.float32)
    # Counts of mean `light * photons` have the standard deviation sqrt(0.5 / photons) at mid grey.
    photons = 0.5 * (255 / degradation.noise) ** 2
    light = np.clip(picture / 255, 0, 1)
    light = light.mean(axis=2, keepdims=True) if degradation.grey_noise else light
    return picture + (255 * (rng.poisson(light * photons) / photons - light)).astype(np.float32)


def jpeg(picture: NDArray[np.uint8] | Image.Image, quality: int) -> Image.Image:
    """A picture, (H, W, 3) uint8 or RGB, after JPEG compression of a quality from 1 to 100."""
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(buffer, format="JPEG", quality=quality)
    return open_image(buffer.getvalue())


def _check_picture(pixels: NDArray[np.uint8]) -> tuple[int, int]:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"a picture of {pixels.dtype} {pixels.shape}; it must be uint8 (H, W, 3)")
    return pixels.shape[0], pixels.shape[1]
