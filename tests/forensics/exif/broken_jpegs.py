"""JPEG files with EXIF of every kind, built by hand, and seeded mutants of them."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from thurl.forensics.exif.settings import RAW_TAGS


# TIFF types.
BYTE, ASCII, SHORT, LONG, RATIONAL, SRATIONAL = 1, 2, 3, 4, 5, 10
_PACK = {BYTE: "B", SHORT: "H", LONG: "L"}

GOOD = {
    "Make": "Canon",
    "ExposureTime": IFDRational(1, 160),
    "FNumber": IFDRational(71, 10),
    "ExposureProgram": 1,
    "ISO": 100,
    "ApertureValue": IFDRational(45, 8),
    "MeteringMode": 5,
    "FocalLength": IFDRational(135, 1),
    "ExposureMode": 1,
    "WhiteBalance": 0,
}


def pixels(side: int = 16, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def plain(side: int = 16) -> bytes:
    buffer = io.BytesIO()
    pixels(side).save(buffer, "JPEG")
    return buffer.getvalue()


def with_exif(tags=None, format: str = "JPEG", main: tuple[str, ...] = ("Make",), side: int = 16, **options) -> bytes:
    """A picture whose tags Pillow has written, `main` into IFD0 and the others into the Exif directory."""
    exif = Image.Exif()
    inner = exif.get_ifd(0x8769)
    for tag, value in (GOOD if tags is None else tags).items():
        (exif if tag in main else inner)[RAW_TAGS[tag]] = value
    buffer = io.BytesIO()
    pixels(side).save(buffer, format, exif=exif, **options)
    return buffer.getvalue()


def with_block(block: bytes) -> bytes:
    """A JPEG with any bytes in its EXIF segments; several segments when they do not fit one."""
    parts = [block[i : i + 65000] for i in range(0, max(len(block), 1), 65000)]
    segments = [b"\xff\xe1" + struct.pack(">H", len(p) + 8) + b"Exif\x00\x00" + p for p in parts]
    return b"\xff\xd8" + b"".join(segments) + plain()[2:]


def directory(entries, start: int, order: str = "<") -> bytes:
    """One TIFF directory with its values behind it.

    Args:
        entries: (tag, type, values), values a list of numbers, of (top, bottom) or bytes; or
            (tag, type, count, four bytes) as is.
        start: where in the block it will lie.
    """
    head, behind = struct.pack(order + "H", len(entries)), b""
    end = start + 2 + 12 * len(entries) + 4
    for entry in entries:
        if len(entry) == 4:
            tag, kind, count, raw = entry
        else:
            tag, kind, values = entry
            if isinstance(values, bytes):
                raw, count = values, len(values)
            elif kind in (RATIONAL, SRATIONAL):
                code = "LL" if kind == RATIONAL else "ll"
                raw, count = b"".join(struct.pack(order + code, *pair) for pair in values), len(values)
            else:
                raw, count = struct.pack(order + _PACK[kind] * len(values), *values), len(values)
            if len(raw) > 4:
                place = end + len(behind)
                behind += raw + b"\x00" * (len(raw) % 2)
                raw = struct.pack(order + "L", place)
        head += struct.pack(order + "HHL", tag, kind, count) + raw.ljust(4, b"\x00")
    return head + b"\x00\x00\x00\x00" + behind


def block(main=(), inner=None, order: str = "<") -> bytes:
    """An EXIF block: IFD0, and the Exif directory unless `inner` is `None`."""
    header = (b"II*\x00" if order == "<" else b"MM\x00*") + struct.pack(order + "L", 8)
    if inner is None:
        return header + directory(main, 8, order)
    blank = directory([*main, (0x8769, LONG, [0])], 8, order)
    first = directory([*main, (0x8769, LONG, [8 + len(blank)])], 8, order)
    return header + first + directory(inner, 8 + len(blank), order)


def mutants(source: bytes, count: int, seed: int):
    """`count` damaged copies; damage falls on the headers, where a parser can be hurt."""
    rng = np.random.default_rng(seed)
    reach = min(len(source), 2000)
    for number in range(count):
        data = bytearray(source)
        place = int(rng.integers(2, reach - 8))
        kind = number % 6
        if kind == 0:  # bytes flipped
            for where in rng.integers(2, reach, int(rng.integers(1, 20))):
                data[where] ^= int(rng.integers(1, 256))
        elif kind == 1:  # cut off
            del data[place:]
        elif kind == 2:  # counts and offsets at their limits
            data[place : place + 4] = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00")[number % 3]
        elif kind == 3:  # noise
            data[place : place + 24] = rng.integers(0, 256, 24, dtype=np.uint8).tobytes()
        elif kind == 4:  # bytes missing
            del data[place : place + int(rng.integers(1, 30))]
        else:  # a stretch repeated
            data[place:place] = data[max(place - 24, 0) : place]
        yield bytes(data)
