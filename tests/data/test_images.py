"""Every kind of picture a folder of strangers may hold: a documented result or an error that names it."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from thurl.data.images import BLACK, ImageError, ensure_min_side, open_image


RED = (200, 30, 40)


def _encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _noise(width=40, height=30, seed=0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _png_header(width: int, height: int) -> bytes:
    """A valid PNG that claims a size and holds almost no data: what a decompression bomb looks like."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP", "JPEG", "GIF"])
def test_the_allowed_formats_decode_to_rgb(tmp_path, format):
    path = tmp_path / "a.dat"  # the content decides, not the ending
    options = {"lossless": True} if format == "WEBP" else {"quality": 98} if format == "JPEG" else {}
    path.write_bytes(_encode(Image.new("RGB", (40, 30), RED), format, **options))
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert np.abs(np.asarray(image).astype(int) - RED).max() <= 4


def test_lossless_pixels_are_untouched_and_all_sources_agree(tmp_path):
    noise = _noise()
    path = tmp_path / "a.png"
    noise.save(path)
    expected = np.asarray(noise)
    for source in (path, str(path), path.read_bytes(), noise):
        assert np.array_equal(np.asarray(open_image(source)), expected)


def test_a_pil_source_is_left_alone():
    source = _noise()
    result = open_image(source)
    result.putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(np.asarray(source), np.asarray(_noise()))


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_files_are_closed_even_when_decoding_fails(tmp_path):
    good, bad = tmp_path / "a.png", tmp_path / "b.png"
    _noise().save(good)
    bad.write_bytes(good.read_bytes()[:500])
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for _ in range(5):
        open_image(good)
        with pytest.raises(ImageError):
            open_image(bad)
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(format, orientation):
    # Four flat quadrants survive JPEG; the stored pixels are what the camera would have written.
    upright = np.zeros((32, 64, 3), np.uint8)
    upright[:16, :32], upright[:16, 32:], upright[16:, :32] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    stored_by_tag = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(stored_by_tag[orientation]))
    options = {"quality": 95, "subsampling": 0} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    image = open_image(_encode(stored, format, exif=exif, **options))
    assert image.size == (64, 32)
    assert np.abs(np.asarray(image).astype(int) - upright).max() <= 30
    again = open_image(image)
    assert np.array_equal(np.asarray(again), np.asarray(image))
    assert not image.info and 0x0112 not in image.getexif()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_lose_the_picture():
    jpeg = _encode(Image.new("RGB", (16, 16), RED), "JPEG")
    junk = b"Exif\x00\x00MM\x00*\xff\xff\xff\xff" + b"\x01" * 40
    broken = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(junk) + 2) + junk + jpeg[2:]
    assert open_image(broken).size == (16, 16)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"])
def test_a_truncated_picture_names_the_file(tmp_path, format):
    path = tmp_path / f"half.{format.lower()}"
    content = _encode(_noise(200, 200), format)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match="half.*(truncated|corrupt|not a picture)"):
        open_image(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b""), "0 bytes"),
        (lambda p: p.mkdir(), "folder"),
        (lambda p: p.write_text("image,mos\na.png,3\n"), "not a picture in one of the formats"),
        (lambda p: p.write_bytes(b"P6 1 1 255\n\x00\x00\x00"), "not a picture in one of the formats"),
        (lambda p: None, "no such file"),
        (lambda p: os.mkfifo(p), "not a regular file"),
    ],
    ids=["zero_bytes", "folder", "text", "ppm", "missing", "pipe"],
)
def test_things_that_are_no_picture_name_the_file(tmp_path, make, message):
    path = tmp_path / "thing.png"
    make(path)
    with pytest.raises(ImageError, match=rf"thing\.png: .*{message}"):
        open_image(path)


def test_other_kinds_of_argument_are_refused():
    with pytest.raises(ImageError, match="int is not a path"):
        open_image(3)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="zero byte|null"):
        open_image("a\0b.png")


def test_the_formats_can_be_narrowed():
    with pytest.raises(ImageError, match="formats PNG;"):
        open_image(_encode(_noise(), "JPEG"), formats=["PNG"], name="x")


def test_20000_by_20000_is_refused_before_decoding(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(_png_header(20000, 20000))
    with pytest.raises(ImageError, match=r"bomb\.png: .*400000000 pixels.*178956970.*max_pixels"):
        open_image(path)


def test_the_pixel_cap_is_checked_before_decoding():
    # The body is missing: reaching the decoder would give another message.
    with pytest.raises(ImageError, match="5000x5000 = 25000000 pixels; at most 1000000 pixels"):
        open_image(_png_header(5000, 5000), max_pixels=1_000_000)
    with pytest.raises(ImageError, match="40x30"):
        open_image(_noise(), max_pixels=1199)
    assert open_image(_noise(), max_pixels=1200).size == (40, 30)


def test_1x1_comes_back_as_it_is_or_enlarged():
    dot = _encode(Image.new("RGB", (1, 1), RED), "PNG")
    assert open_image(dot).size == (1, 1)
    big = open_image(dot, min_side=28)
    assert big.size == (28, 28)
    assert (np.asarray(big) == RED).all()


def test_cmyk_becomes_rgb():
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    image = open_image(_encode(cyan, "JPEG", quality=95))
    red, green, blue = np.asarray(image)[8, 8].astype(int)
    assert red < 20 and green > 235 and blue > 235


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for format in ("PNG", "TIFF"):
        image = open_image(_encode(Image.fromarray(ramp), format))
        values = np.asarray(image)
        assert np.abs(values[..., 0].astype(int) - np.arange(256).reshape(16, 16)).max() <= 1
        assert (values[..., 0] == values[..., 1]).all()


def test_sixteen_bit_colour_png_keeps_the_high_byte():
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    pixels = b"\0" + struct.pack(">6H", 65535, 32768, 0, 257 * 200, 257 * 30, 257 * 40)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    values = np.asarray(open_image(png))
    assert np.abs(values[0].astype(int) - [(255, 128, 0), RED]).max() <= 1


def test_float_pictures_are_scaled_or_refused():
    def tiff(value):
        return _encode(Image.fromarray(np.full((4, 4), value, np.float32)), "TIFF")

    assert (np.asarray(open_image(tiff(0.5))) == 128).all()
    for value in (3.0, float("nan"), -1.0):
        with pytest.raises(ImageError, match="pic: decimal pixels outside 0..1"):
            open_image(tiff(value), name="pic")


def test_32_bit_whole_numbers_without_a_defined_range_are_refused():
    with pytest.raises(ImageError, match="pic: whole-number pixels from 70000 to 70000"):
        open_image(_encode(Image.fromarray(np.full((4, 4), 70000, np.int32)), "TIFF"), name="pic")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composited_on_white(mode):
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
    assert (np.asarray(open_image(_encode(clear, "PNG"))) == 255).all()
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128)).convert(mode)
    assert np.abs(np.asarray(open_image(_encode(half, "PNG"))).astype(int) - 127).max() <= 1


def test_transparency_takes_another_background_and_leaves_a_note():
    half = Image.new("RGBA", (2, 1), (200, 100, 0, 255))
    half.putpixel((1, 0), (200, 100, 0, 0))
    notes = []
    values = np.asarray(open_image(_encode(half, "PNG"), background=BLACK, notes=notes))
    assert values.tolist() == [[[200, 100, 0], [0, 0, 0]]]
    assert notes == ["transparency put on black"]
    open_image(_encode(half, "PNG"), notes=notes)
    open_image(_encode(Image.new("L", (2, 2)), "PNG"), notes=notes)
    open_image(Image.fromarray(np.zeros((2, 2), dtype=np.uint16)), notes=notes)
    open_image(Image.new("RGB", (2, 2)), notes=notes)
    assert notes[1:] == ["transparency put on white", "converted from L", "16 bits scaled to 8"]


def test_palette_with_transparency_is_composited_on_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 200, 30, 40])
    image.putpixel((1, 1), 1)
    for format in ("PNG", "GIF"):
        values = np.asarray(open_image(_encode(image, format, transparency=0)))
        assert tuple(values[0, 0]) == (255, 255, 255)
        assert tuple(values[1, 1]) == RED


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_grey_bilevel_and_palette_become_rgb(mode):
    image = Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode)
    assert (np.asarray(open_image(_encode(image, "PNG"))) == 255).all()


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animated_and_many_paged_pictures_give_the_first_frame(format):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if format == "WEBP" else {}
    content = _encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(content)).n_frames == 3
    assert np.abs(np.asarray(open_image(content)).astype(int) - RED).max() <= 2


def test_jpeg_with_several_views_gives_the_first():
    # Phones write such files; Pillow calls them MPO.
    views = [Image.new("RGB", (16, 16), colour) for colour in (RED, (0, 255, 0))]
    content = _encode(views[0], "MPO", save_all=True, append_images=views[1:], quality=95)
    assert np.abs(np.asarray(open_image(content)).astype(int) - RED).max() <= 4


def test_a_symbolic_link_is_followed(tmp_path):
    _noise().save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    assert open_image(tmp_path / "b.png").size == (40, 30)


@pytest.mark.parametrize(
    ("size", "expected"), [((1, 1), (28, 28)), ((10, 20), (28, 56)), ((20, 10), (56, 28)), ((27, 400), (28, 415))]
)
def test_small_sides_are_enlarged_in_shape(size, expected):
    assert ensure_min_side(Image.new("RGB", size), 28).size == expected


def test_enlarging_one_picture_never_touches_the_next():
    sizes = [(10, 10), (300, 200), (28, 28), (5, 50), (640, 480)]
    result = [ensure_min_side(Image.new("RGB", size), 28).size for size in sizes]
    assert result == [(28, 28), (300, 200), (28, 28), (28, 280), (640, 480)]


def test_a_strip_the_model_cannot_take_is_named():
    with pytest.raises(ImageError, match="strip: 1x300 is longer than 200 times"):
        open_image(Image.new("RGB", (1, 300)), min_side=28, name="strip")
    assert open_image(Image.new("RGB", (1, 300))).size == (1, 300)
