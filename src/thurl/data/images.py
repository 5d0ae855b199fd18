"""Opening pictures that nobody has checked: the only place of thurl that decodes them.

Every picture comes back as 8-bit RGB, upright, with its file closed. What happens to the others:

| found | result |
|---|---|
| EXIF orientation | applied unless `upright=False`, then dropped with all other metadata: nothing applies it twice |
| broken EXIF | orientation ignored; the pixels are fine |
| animated GIF, PNG, WebP, several pages or views | the first frame |
| transparency | composited on white, as a browser shows it, or on another `background` |
| CMYK, palette, grey, YCbCr | converted to RGB; colour profiles are not applied |
| 16 bits per channel | the high byte of each value (65535 gives 255), as for 16-bit colour |
| 32-bit float | 0..1 is scaled to 0..255; any other range is an error |
| more than `max_pixels` | an error before anything is decoded |
| truncated, empty, a folder, text, another format | an error that names the file |
"""

from __future__ import annotations

import io
import logging
import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from thurl.data.hub_pictures import is_hub_image, read_hub_image
from thurl.errors import ImageError


__all__ = ["ALLOWED_FORMATS", "BLACK", "WHITE", "ImageError", "ensure_min_side", "open_image"]

logger = logging.getLogger(__name__)

# GIF is in for its first frame; formats read by rarely exercised decoders (PSD, EPS, ICNS, ...) stay out. JPEG
# covers the files with several views that phones write (MPO).
ALLOWED_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")

# The size at which Pillow itself turns from a warning to an error: 0.5 GiB of RGB.
MAX_PIXELS = 178_956_970

WHITE = (255, 255, 255, 255)
BLACK = (0, 0, 0, 255)

_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(
    source: str | os.PathLike[str] | bytes | Image.Image,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: Collection[str] = ALLOWED_FORMATS,
    min_side: int = 1,
    upright: bool = True,
    background: tuple[int, int, int, int] = WHITE,
    notes: list[str] | None = None,
    name: str | None = None,
) -> Image.Image:
    """Decodes one picture to upright 8-bit RGB; the table at the top of this module says how.

    Args:
        source: path, encoded bytes, a PIL picture (left untouched; `formats` does not apply to it), or the
            `image` of a `RatedImage` that was read from a Hub data set.
        max_pixels: largest width x height; checked before decoding. Above 178,956,970 Pillow's own limit
            `PIL.Image.MAX_IMAGE_PIXELS` applies as well.
        formats: names of the file formats to accept, as Pillow calls them. The content counts, not the file's ending.
        min_side: pictures with a shorter side are enlarged with `ensure_min_side`; 1 leaves every picture as it is.
        upright: apply EXIF orientation. False leaves the pixels as the camera stored them, except in TIFF files,
            which Pillow turns while decoding.
        background: RGBA colour behind transparent pixels.
        notes: takes a line for each thing done to the picture that a person should know: transparency, 16 bits.
        name: what messages call the picture; the path when `None`.

    Returns:
        A new picture of mode RGB, (width, height) after orientation, no metadata.

    Raises:
        ImageError: the picture cannot be used.
    """
    if isinstance(source, Image.Image):
        name = name or getattr(source, "filename", "") or "picture"
        return _finish(source, name, max_pixels, min_side, upright, background, notes)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(
            io.BytesIO(source), name or "picture", max_pixels, formats, min_side, upright, background, notes
        )
    if is_hub_image(source):
        label, content = read_hub_image(str(source))
        name = name or label
        return open_image(
            content,
            max_pixels=max_pixels,
            formats=formats,
            min_side=min_side,
            upright=upright,
            background=background,
            notes=notes,
            name=name,
        )
    if not isinstance(source, (str, os.PathLike)):
        raise ImageError(f"{name or 'picture'}: {type(source).__name__} is not a path, bytes or a PIL picture")
    path = Path(source)
    name = name or str(path)
    try:
        # A named pipe or a device would block for ever; a symbolic link to a file is fine.
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"{name}: this is a folder; give the path of a picture")
        if not stat.S_ISREG(mode):
            raise ImageError(f"{name}: this is not a regular file; give the path of a picture")
        with path.open("rb") as file:
            return _decode(file, name, max_pixels, formats, min_side, upright, background, notes)
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file; check the path and the picture folder") from None
    except (OSError, ValueError) as error:
        # ValueError: a zero byte in the path.
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name}: cannot be read: {reason}; check the path and its permissions") from error


def ensure_min_side(image: Image.Image, min_side: int = 28, *, max_ratio: float = 200.0) -> Image.Image:
    """Enlarges a picture whose shorter side is below `min_side`, keeping its shape (LANCZOS); others come back as is.

    Each picture is judged alone: the size of one never changes another.

    Args:
        image: picture of any mode that can be resized.
        min_side: shortest side in pixels; Qwen2.5-VL needs 28.
        max_ratio: longest side over shortest; Qwen2-VL processors refuse more than 200.

    Raises:
        ImageError: the picture is narrower than `max_ratio` allows.
    """
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if long > max_ratio * short:
        raise ImageError(
            f"{getattr(image, 'filename', '') or 'picture'}: {width}x{height} is longer than {max_ratio:g} times its "
            "width; the model takes no such strip. Crop it or leave it out."
        )
    if short >= min_side:
        return image
    scale = min_side / short
    size = (max(min_side, round(width * scale)), max(min_side, round(height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _decode(
    file: BinaryIO,
    name: str,
    max_pixels: int,
    formats: Collection[str],
    min_side: int,
    upright: bool,
    background: tuple[int, int, int, int],
    notes: list[str] | None,
) -> Image.Image:
    if not file.read(1):
        raise ImageError(f"{name}: 0 bytes; the file is empty. Copy it again.")
    file.seek(0)
    try:
        image = Image.open(file, formats=list(formats))
    except Image.UnidentifiedImageError:
        raise ImageError(
            f"{name}: not a picture in one of the formats {', '.join(sorted(formats))}; "
            "convert it to PNG or remove it from the labels"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(_too_large(name, str(error), max_pixels)) from None
    except KeyError as error:
        raise ValueError(f"formats: {error} is not a format Pillow reads; use names such as PNG and JPEG") from None
    except Exception as error:
        raise _corrupt(name, error) from error
    with image:
        return _finish(image, name, max_pixels, min_side, upright, background, notes)


def _finish(
    image: Image.Image,
    name: str,
    max_pixels: int,
    min_side: int,
    upright: bool,
    background: tuple[int, int, int, int],
    notes: list[str] | None,
) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(_too_large(name, f"{width}x{height} = {width * height} pixels", max_pixels))
    if width < 1 or height < 1:
        raise ImageError(f"{name}: {width}x{height} holds no pixel; remove it from the labels")
    try:
        image.load()
        rgb = _to_rgb(_upright(image) if upright else image, name, background, [] if notes is None else notes)
    except ImageError:
        raise
    except Exception as error:
        raise _corrupt(name, error) from error
    # A copy never shares pixels with the caller's picture, and metadata such as the orientation must not be applied
    # a second time further on.
    result = rgb.copy() if rgb is image else rgb
    result.info = {}
    if min_side > 1:
        try:
            return ensure_min_side(result, min_side)
        except ImageError as error:
            raise ImageError(str(error).replace("picture:", f"{name}:", 1)) from None
    return result


# Pillow's decoders raise many kinds of exception on broken files (OSError, SyntaxError, struct.error, zlib.error,
# IndexError, ...), none of which a caller should have to know.
def _corrupt(name: str, error: Exception) -> ImageError:
    return ImageError(
        f"{name}: the picture is truncated or corrupt ({type(error).__name__}: {error}); copy it again or skip it"
    )


def _upright(image: Image.Image) -> Image.Image:
    # Read after load(): for TIFF Pillow has by then applied and removed the tag.
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception as error:
        logger.debug("%s: unreadable EXIF ignored: %s", getattr(image, "filename", "picture"), error)
        orientation = 1
    method = _ORIENTATIONS.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image, name: str, background: tuple[int, int, int, int], notes: list[str]) -> Image.Image:
    if image.mode == "F":
        notes.append("decimal pixels scaled to 8 bits")
        return _float_to_rgb(image, name)
    if image.mode == "I" or image.mode.startswith("I;"):
        notes.append("16 bits scaled to 8")
        return _integer_to_rgb(image, name)
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        notes.append("transparency put on " + {WHITE: "white", BLACK: "black"}.get(background, f"{background[:3]}"))
        return Image.alpha_composite(Image.new("RGBA", colour.size, background), colour).convert("RGB")
    if image.mode != "RGB":
        notes.append(f"converted from {image.mode}")
    return image.convert("RGB") if image.mode != "RGB" else image


def _integer_to_rgb(image: Image.Image, name: str) -> Image.Image:
    # convert("L") would clip everything above 255 to white.
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"{name}: whole-number pixels from {low} to {high}; 16 bits (0..65535) are the most supported"
        )
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")


def _float_to_rgb(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise ImageError(f"{name}: decimal pixels outside 0..1 have no defined brightness; save it with 8 or 16 bits")
    return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")


def _too_large(name: str, found: str, max_pixels: int) -> str:
    return f"{name}: {found}; at most {max_pixels} pixels are decoded. Scale it down or raise max_pixels."
