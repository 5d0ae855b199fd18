"""Raw tags and texts to labels: units, vocabularies, and what counts as absent."""

from __future__ import annotations

import math

import pytest

from thurl.forensics.exif.settings import class_from_text, number_from_text, settings_from_raw, settings_from_texts
from thurl.forensics.exif.tasks import CATEGORICAL_TASKS, class_names


def one(name, **raw):
    settings = settings_from_raw(raw)
    return settings.values.get(name, settings.absent.get(name))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"FNumber": 2.8, "ApertureValue": 4.0}, 2.8),  # FNumber wins
        ({"ApertureValue": 3.0}, 2**1.5),  # APEX
        ({"ApertureValue": 0.0}, 1.0),
        ({"ApertureValue": -1.0}, 2**-0.5),  # f/0.71 has a negative APEX value
        ({"FNumber": 0.0, "ApertureValue": 4.0}, 4.0),  # some cameras write 0 for "unknown"
        ({"FNumber": 0.0}, "out of range"),
        ({"FNumber": 0.0, "ApertureValue": 1e9}, "out of range"),
        ({"ApertureValue": 1e9}, "out of range"),
        ({"ApertureValue": 40.0}, "out of range"),
        ({}, "not written"),
    ],
)
def test_aperture(raw, expected):
    assert one("aperture", **raw) == (pytest.approx(expected) if isinstance(expected, float) else expected)


@pytest.mark.parametrize(
    ("name", "tag", "value", "expected"),
    [
        ("iso", "ISO", 6.0, 6.0),
        ("iso", "ISO", 5.9, "out of range"),
        ("iso", "ISO", 65535.0, "ISO written elsewhere"),
        ("iso", "ISO", 4e6, 4e6),
        ("iso", "ISO", 4.1e6, "out of range"),
        ("iso", "ISO", math.nan, "not a number"),
        ("exposure_time", "ExposureTime", 1 / 8000, 1 / 8000),
        ("exposure_time", "ExposureTime", 0.0, "out of range"),
        ("exposure_time", "ExposureTime", -1.0, "out of range"),
        ("exposure_time", "ExposureTime", 3601.0, "out of range"),
        ("exposure_time", "ExposureTime", math.inf, "not a number"),
        ("focal_length", "FocalLength", 0.4, "out of range"),
        ("focal_length", "FocalLength", 922.0, 922.0),
        ("focal_length", "FocalLength", "50 mm", "not a number"),
    ],
)
def test_plausible_ranges(name, tag, value, expected):
    assert one(name, **{tag: value}) == expected


@pytest.mark.parametrize(
    ("name", "tag", "expected"),
    [
        (
            "metering_mode",
            "MeteringMode",
            {
                0: "no class for it",
                1: "average",
                2: "centerweighted",
                3: "spot",
                4: "multi-spot",
                5: "multi-segment",
                6: "partial",
                7: "no class for it",
                255: "others",
                1.5: "not a number",
            },
        ),
        (
            "exposure_mode",
            "ExposureMode",
            {0: "auto", 1: "manual", 2: "auto-bracketing", 3: "no class for it", -1: "no class for it"},
        ),
        ("white_balance", "WhiteBalance", {0: "auto", 1: "manual", 2: "no class for it"}),
        (
            "exposure_program",
            "ExposureProgram",
            {
                0: "no class for it",
                1: "manual control",
                2: "normal program",
                3: "aperture priority",
                4: "shutter priority",
                5: "no class for it",
                6: "no class for it",
                7: "portrait mode",
                8: "landscape mode",
                9: "no class for it",
                4294967295: "no class for it",
            },
        ),
    ],
)
def test_codes(name, tag, expected):
    assert {code: one(name, **{tag: float(code)}) for code in expected} == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("NIKON CORPORATION", "Nikon"),
        ("Apple", "Apple"),
        ("Fuji Photo Film Co., Ltd.", "FUJIFILM"),
        ("Canon\x00", "Canon"),
        ("SAMSUNG TECHWIN", "Samsung"),
        ("sony", "Sony"),
        ("Panasonic", "Panasonic"),
        ("HMD Global", "Nokia"),
        ("PENTAX Corporation", "Pentax"),
        ("EASTMAN KODAK COMPANY", "others"),
        (" \x00", "not written"),
    ],
)
def test_makers(written, expected):
    assert one("make", Make=written) == expected


def test_evaluative_is_an_option_for_canon_only():
    for make, expected in (("Canon", "evaluative"), ("NIKON", "multi-segment")):
        raw = {"Make": make, "MeteringMode": 5.0}
        assert settings_from_raw(raw).values["metering_mode"] == "multi-segment"
        assert settings_from_raw(raw, canon_evaluative=True).values["metering_mode"] == expected


def test_labels_in_the_order_of_the_tasks():
    settings = settings_from_raw({"ISO": 200.0, "FocalLength": 50.0, "Make": "Pentax", "WhiteBalance": 1.0})
    ordinal = settings.ordinal()
    assert (ordinal[0], ordinal[3]) == (200.0, 50.0) and math.isnan(ordinal[1]) and math.isnan(ordinal[2])
    assert settings.classes() == [8, -1, -1, 1, -1]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1/60 sec", 1 / 60),
        ("10/600 sec", 1 / 60),
        ("2 sec", 2.0),
        ("0.3 sec", 0.3),
        ("13/10 sec", 1.3),
        ("1/1.3 s", 1 / 1.3),
        ("F2.8", 2.8),
        ("f/2.8", 2.8),
        ("F28/10", 2.8),
        ("50 mm", 50.0),
        ("4.15 mm", 4.15),
        ("100, 100", 100.0),
        ("200", 200.0),
        ("1e-3 sec", 0.001),
        ("1/0 sec", None),
        ("0/0", None),
        ("F", None),
        ("", None),
        ("nan", None),
        ("inf sec", None),
        ("1/2/3", None),
        ("-5 mm", None),
        ("__import__('os').getcwd()", None),
        ("9**9**9", None),
        ("9" * 400, None),
        ("1e999", None),
        ("٣ mm", None),  # Arabic-Indic digits
    ],
)
def test_numbers_of_texts(text, value):
    assert number_from_text(text) == (pytest.approx(value) if value is not None else None)


@pytest.mark.parametrize(
    ("setting", "text", "expected"),
    [
        ("metering_mode", "Center-weighted average", "centerweighted"),
        ("metering_mode", "Multi-segment", "multi-segment"),
        ("metering_mode", "Evaluative", "evaluative"),
        ("metering_mode", "Default", None),
        ("exposure_mode", "Aperture-priority AE", "aperture-priority"),
        ("exposure_mode", "Auto bracket", "auto-bracketing"),
        ("exposure_mode", "Easy", "easy-shooting"),
        ("white_balance", "Auto", "auto"),
        ("exposure_program", "Aperture-priority AE", "aperture priority"),
        ("exposure_program", "Program AE", "normal program"),
        ("exposure_program", "Portrait", "portrait mode"),
        ("exposure_program", "Not Defined", None),
        ("make", "NIKON CORPORATION", "Nikon"),
        ("make", "Leica", "others"),
    ],
)
def test_classes_of_texts(setting, text, expected):
    assert class_from_text(setting, text) == expected


def test_every_class_can_be_named_by_itself():
    for setting in CATEGORICAL_TASKS:
        for name in class_names(setting):
            assert class_from_text(setting, name.upper()) == name


def test_texts_to_settings():
    settings = settings_from_texts(
        {"iso": "100, 100", "aperture": "F", "exposure_time": "5000 sec", "focal_length": None, "make": "Canon"}
    )
    assert settings.values == {"iso": 100.0, "make": "Canon"}
    assert {
        name: settings.absent[name] for name in ("aperture", "exposure_time", "focal_length", "white_balance")
    } == {
        "aperture": "not a number",
        "exposure_time": "out of range",
        "focal_length": "not written",
        "white_balance": "not written",
    }
