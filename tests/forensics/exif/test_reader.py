"""The EXIF reader: right values, and a result for whatever a file holds."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from PIL.TiffImagePlugin import IFDRational

from thurl.forensics.exif.reader import EXIF_FORMATS, read_exif
from thurl.forensics.exif.settings import PLAUSIBLE, RAW_TAGS, REASONS, SETTINGS
from thurl.forensics.exif.tasks import CATEGORICAL_TASKS, ORDINAL_TASKS, class_names


_SPEC = importlib.util.spec_from_file_location("broken_jpegs", Path(__file__).with_name("broken_jpegs.py"))
build = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(build)

CANON = {
    "Make": "Canon",
    "ExposureTime": 0.00625,
    "FNumber": 7.1,
    "ExposureProgram": 1.0,
    "ISO": 100.0,
    "ApertureValue": 5.625,
    "MeteringMode": 5.0,
    "FocalLength": 135.0,
    "ExposureMode": 1.0,
    "WhiteBalance": 0.0,
}


def raw(main=(), inner=None, order="<"):
    reading = read_exif(build.with_block(build.block(main, inner, order)))
    assert reading.ok, reading.problem
    return reading


def check_consistent(reading):
    """What holds for every reading, whatever the file."""
    assert set(reading.raw) == set(RAW_TAGS)
    assert set(reading.reasons) == {tag for tag, value in reading.raw.items() if value is None}
    assert set(reading.reasons.values()) <= set(REASONS)
    for tag, value in reading.raw.items():
        assert value is None or isinstance(value, str if tag == "Make" else float)
        assert not isinstance(value, float) or math.isfinite(value)
    settings = reading.settings()
    assert set(settings.values) | set(settings.absent) == set(SETTINGS)
    assert not set(settings.values) & set(settings.absent)
    assert set(settings.absent.values()) <= set(REASONS)
    for name in ORDINAL_TASKS:
        if name in settings.values:
            assert PLAUSIBLE[name][0] <= settings.values[name] <= PLAUSIBLE[name][1]
    for name, number in zip(CATEGORICAL_TASKS, settings.classes(), strict=True):
        assert -1 <= number < len(class_names(name)) and (number == -1) == (name in settings.absent)


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", EXIF_FORMATS)
def test_all_tags_of_every_format(format, tmp_path):
    content = build.with_exif(format=format)
    path = tmp_path / "picture"
    path.write_bytes(content)
    for source in (content, path, str(path)):
        reading = read_exif(source)
        assert reading.ok and reading.raw == CANON and reading.reasons == {}
        assert (reading.size, reading.format) == ((16, 16), format)


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_and_tags_in_the_main_directory(order):
    # Two real cameras keep ExposureMode and WhiteBalance in IFD0.
    reading = raw(
        [(0x010F, build.ASCII, b"PENTAX \x00"), (0xA402, build.SHORT, [1]), (0xA403, build.SHORT, [1])],
        [(0x829D, build.RATIONAL, [(28, 10)])],
        order,
    )
    found = {tag: value for tag, value in reading.raw.items() if value is not None}
    assert found == {"Make": "PENTAX", "FNumber": 2.8, "ExposureMode": 1.0, "WhiteBalance": 1.0}
    assert set(reading.reasons.values()) == {"not written"}


def test_the_exif_directory_wins_over_the_main_one():
    reading = raw([(0x8827, build.SHORT, [400])], [(0x8827, build.SHORT, [200])])
    assert reading.raw["ISO"] == 200


@pytest.mark.parametrize("offset", [60, 5000, 2**32 - 1])
def test_a_lost_exif_directory_leaves_the_main_one(offset):
    main = [(0x010F, 2, b"Canon\x00"), (0xA403, 3, [1]), (0x8769, 4, [offset])]
    reading = read_exif(build.with_block(build.block(main)))
    assert reading.ok and (reading.raw["Make"], reading.raw["WhiteBalance"]) == ("Canon", 1.0)
    assert reading.raw["ISO"] is None
    check_consistent(reading)


def test_without_an_exif_directory_the_main_one_is_enough():
    assert raw([(0x829A, build.RATIONAL, [(1, 50)])]).raw["ExposureTime"] == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("tag", "entry", "value", "reason"),
    [
        ("FNumber", (0x829D, 5, [(28, 0)]), None, "zero denominator"),
        ("FNumber", (0x829D, 5, [(0, 0)]), None, "zero denominator"),
        ("ExposureTime", (0x829A, 5, [(0, 10)]), 0.0, None),
        ("FocalLength", (0x920A, 10, [(-50, 1)]), -50.0, None),
        ("FocalLength", (0x920A, 2, b"50 mm\x00"), None, "not a number"),
        ("ISO", (0x8827, 3, [200, 400]), 200.0, None),
        ("ISO", (0x8827, 4, [70000]), 70000.0, None),
        ("ISO", (0x8827, 1, b"d"), 100.0, None),  # BYTE where SHORT belongs
        ("FNumber", (0x829D, 11, 1, struct.pack("<f", math.nan)), None, "not a number"),
        ("FNumber", (0x829D, 11, 1, struct.pack("<f", math.inf)), None, "not a number"),
        ("FNumber", (0x829D, 11, 1, struct.pack("<f", 2.5)), 2.5, None),
        ("ExposureTime", (0x829A, 5, 0, b"\0\0\0\0"), None, "not written"),  # count 0
        ("ExposureTime", (0x829A, 5, 0xFFFFFFFF, b"\x40\0\0\0"), None, "not written"),
        ("ExposureTime", (0x829A, 77, 1, b"\x01\0\0\0"), None, "not written"),  # no such type
    ],
)
def test_odd_values(tag, entry, value, reason):
    reading = raw((), [entry])
    assert (reading.raw[tag], reading.reasons.get(tag)) == (value, reason)
    check_consistent(reading)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"NIKON CORPORATION\x00", "NIKON CORPORATION"),
        (b"  Sony \x00\x00", "Sony"),
        (b"Apple\x00hidden", "Apple"),
        (b"\x00\x00\x00", None),
        (b"   \x00", None),
        (b"Ca\x1b[31mnon\x00", "Ca[31mnon"),
    ],
)
def test_texts_lose_padding_and_control_characters(written, read):
    assert raw([(0x010F, build.ASCII, written)]).raw["Make"] == read


def test_exif_behind_the_pixels_of_a_png():
    content = build.with_exif(format="PNG")
    start = content.index(b"eXIf") - 4
    (length,) = struct.unpack_from(">L", content, start)
    chunk = content[start : start + 12 + length]
    moved = content[:start] + content[start + len(chunk) :]
    end = moved.index(b"IEND") - 4
    assert read_exif(moved).problem == "no EXIF in the file"  # the control
    assert read_exif(moved[:end] + chunk + moved[end:]).raw == CANON


# --- anything else ---------------------------------------------------------------------------------------------------


def test_a_thousand_mutants_give_results():
    sources = [
        build.with_exif(),
        build.with_block(
            build.block(
                [(0x010F, 2, b"FUJIFILM\x00"), (0x0110, 2, b"Model\x00")],
                [(0x829A, 5, [(1, 60)]), (0x829D, 5, [(28, 10)]), (0x8827, 3, [100, 200]), (0x927C, 7, b"M" * 300)],
                ">",
            )
        ),
        build.with_exif(format="PNG"),
        build.with_exif(format="WEBP"),
    ]
    readings, slowest = [], 0.0
    for seed, source in enumerate(sources):
        assert read_exif(source).ok
        for mutant in build.mutants(source, 300, seed):
            start = time.process_time()
            reading = read_exif(mutant)
            slowest = max(slowest, time.process_time() - start)
            check_consistent(reading)
            readings.append(reading)
    assert len(readings) == 1200
    # The damage is real, and not everything is thrown away because of it.
    assert sum(not reading.ok for reading in readings) > 200
    assert sum(reading.raw["Make"] is not None for reading in readings) > 200
    print(f"slowest of 1200 mutants: {slowest * 1e3:.1f} ms of processor time")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the file is empty"),
        (b"\xff\xd8\xff", "not a picture"),
        (b"image,iso\na.jpg,100\n", "not a picture"),
        (build.plain(), "no EXIF"),
        (build.with_block(b"JUNK" * 20), "no TIFF header"),
        (build.with_block(b"II*\x00\xff\xff\xff\xff" + b"\0" * 20), "corrupt EXIF"),
    ],
)
def test_files_without_usable_exif(content, problem):
    reading = read_exif(content)
    assert not reading.ok and problem in reading.problem
    check_consistent(reading)
    assert not reading.settings().values


def test_blocks_that_would_cost_seconds_are_refused_before_parsing(monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("parsed")

    header = b"II*\x00" + struct.pack("<L", 8)
    many = header + struct.pack("<H", 5000) + struct.pack("<HHLL", 999, 1, 1, 0) * 5000
    shared = [(0x8769, 4, 1, struct.pack("<L", 8))] + [(1000 + i, 5, 4000, b"\x40\0\0\0") for i in range(400)]
    overlapping = header + build.directory(shared, 8) + b"\1" * 40000
    large = build.block([(0x010F, 2, b"Canon\x00"), (0x927C, 7, b"M" * 200000)])
    # The same shapes within the limits are read.
    for fine in (
        header + struct.pack("<H", 500) + struct.pack("<HHLL", 999, 1, 1, 0) * 500 + b"\0" * 4,
        build.block([(0x010F, 2, b"Canon\x00"), (0x927C, 7, b"M" * 60000)]),
    ):
        assert read_exif(build.with_block(fine)).ok
    monkeypatch.setattr("PIL.Image.Exif.load", never)
    monkeypatch.setattr("PIL.TiffImagePlugin.ImageFileDirectory_v2.load", never)
    for block, problem in ((many, "5000 entries"), (overlapping, "claim"), (large, "bytes; at most")):
        assert problem in read_exif(build.with_block(block)).problem


def test_size_limits(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(build.with_exif())
    size = path.stat().st_size
    assert read_exif(path, max_bytes=size).ok
    assert f"{size} bytes; at most {size - 1}" in read_exif(path, max_bytes=size - 1).problem
    assert read_exif(path, max_pixels=256).ok
    assert "16x16 pixels; at most 255" in read_exif(path, max_pixels=255).problem


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path, problem in (
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe.jpg", "not a regular file"),
        (tmp_path / "none.jpg", "cannot be read"),
        ("a\0b.jpg", "cannot be read"),
    ):
        assert problem in read_exif(path).problem


def test_formats_are_an_allow_list():
    assert read_exif(build.with_exif(), formats=["PNG"]).problem.startswith("not a picture in one of the formats PNG")
    with pytest.raises(ValueError, match="TIFF not read for EXIF"):
        read_exif(b"x", formats=["TIFF"])


# --- real files ------------------------------------------------------------------------------------------------------

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def headers():
    """What 44 real files (GitHub `ianare/exif-samples`) hold before their pixels, and the tags three readers agree on.

    Previews, thumbnails, maker notes, profiles, comments and XMP are blanked: no picture of anybody's is in there. The
    one file about XMP keeps it.
    """
    with np.load(GOLDEN / "exif_headers.npz", allow_pickle=False) as file:
        content = {name: file[name].tobytes() for name in file.files}
    samples = json.loads((GOLDEN / "exif_samples.json").read_text(encoding="utf-8"))["samples"]
    assert len(content) == len(samples) == 44
    return [(sample, content[sample["file"]]) for sample in samples]


def test_headers_of_real_files_give_exactly_the_verified_values(headers):
    values = 0
    for sample, content in headers:
        reading = read_exif(content)
        check_consistent(reading)
        assert reading.raw == sample["tags"], sample["file"]
        values += sum(value is not None for value in reading.raw.values())
        if sample["decodes"]:
            assert reading.size == (sample["width"], sample["height"])
    assert values > 200


def test_mutants_of_headers_of_real_files(headers):
    for seed, (_, content) in enumerate(headers):
        for mutant in build.mutants(content, 6, seed):
            check_consistent(read_exif(mutant))


def _samples() -> Path:
    shared = os.environ.get("THURL_SHARED_DATA")
    if not shared:
        pytest.skip("THURL_SHARED_DATA does not name the folder with exif_samples/")
    folder = Path(shared) / "exif_samples"
    if not (folder / "index.json").is_file():
        pytest.skip(f"{folder} holds no index.json")
    return folder


def test_real_files_give_exactly_the_verified_values(headers):
    folder = _samples()
    samples = json.loads((folder / "index.json").read_text(encoding="utf-8"))["samples"]
    assert len(samples) == 44
    for sample, (golden, header) in zip(samples, headers, strict=True):
        reading = read_exif(folder / sample["file"])
        check_consistent(reading)
        assert reading.raw == sample["tags"], sample["file"]
        assert golden == sample and read_exif(header) == reading  # the blanked headers say the same
    apertures = {name: read_exif(folder / name).settings().values["aperture"] for name in
                 ("Ricoh_Caplio_RR330.jpg", "exif-org__ricoh-rdc5300.jpg")}  # fmt: skip
    # FNumber wins over an ApertureValue that says f/4; and APEX alone is converted.
    assert apertures["Ricoh_Caplio_RR330.jpg"] == pytest.approx(2.88)
    apex = read_exif(folder / "exif-org__ricoh-rdc5300.jpg").raw["ApertureValue"]
    assert apertures["exif-org__ricoh-rdc5300.jpg"] == pytest.approx(2 ** (apex / 2))


def test_mutants_of_real_files():
    folder = _samples()
    slowest = 0.0
    for seed, path in enumerate(sorted(folder.glob("*.jp*g"))):
        for mutant in build.mutants(path.read_bytes(), 24, seed):
            start = time.process_time()
            reading = read_exif(mutant)
            slowest = max(slowest, time.process_time() - start)
            check_consistent(reading)
    print(f"slowest mutant of a real file: {slowest * 1e3:.1f} ms of processor time")


def test_rationals_are_divided_exactly():
    content = build.with_exif({"ExposureTime": IFDRational(10, 600), "FNumber": IFDRational(28, 10)})
    assert read_exif(content).raw["ExposureTime"] == 10 / 600
