"""Label files of the official repositories: the correct parse, the official wrong one, and broken files."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.forensics.exif.importers import (
    official_numbers,
    read_blades_labels,
    read_fdf_boxes,
    read_icassp_labels,
)
from thurl.forensics.exif.settings import number_from_text


GOLDEN = Path(__file__).parents[2] / "golden"
CASES = json.loads((GOLDEN / "exif_icassp_string_parse.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["raw"]["Exposure Time"])
def test_the_official_parse_is_reproduced(case):
    assert official_numbers(case["raw"]) == case["official"]


def test_the_official_parse_is_wrong_and_ours_is_not():
    seconds = [number_from_text(case["raw"]["Exposure Time"]) for case in CASES]
    official = [case["official"]["Exposure Time"] for case in CASES]
    assert seconds == pytest.approx([1 / 60, 1 / 500, 2.0, 1 / 60, 0.3, 1 / 17, 1 / 8, 1.3])
    # The official numbers call 1/500 s longer than 2 s.
    assert (official[1] > official[2]) and (seconds[1] < seconds[2])


def texts(**changes):
    exif = {
        "ISO Speed Ratings": "200",
        "Aperture Value": "F2.8",
        "Exposure Time": "1/60 sec",
        "Focal Length": "50 mm",
    }
    return {"EXIF": {**exif, **changes}}


@pytest.fixture
def icassp(tmp_path):
    labels, images = tmp_path / "labels", tmp_path / "images" / "00"
    labels.mkdir()
    images.mkdir(parents=True)
    (labels / "17.json").write_text(json.dumps(texts()))
    (labels / "18.json").write_text(json.dumps(texts(**{"Aperture Value": "F"})))
    (labels / "19.json").write_text(json.dumps({"EXIF": {"Exposure Time": "__import__('os').abort()"}}))
    for name in ("17_0", "17_1", "18_0", "19_0", "20_0", *(f"17_0_{i}" for i in range(4)), "17_1_0"):
        (images / f"{name}.png").write_bytes(b"")
    return labels, tmp_path / "images"


def test_icassp_labels(icassp):
    labels, images = icassp
    records = read_icassp_labels(labels, images=images)
    found = {Path(record.image).name: record for record in records}
    # Faces of one photograph are one group; four copies beside a face are its edits; a single one is nothing.
    assert {name: record.group for name, record in found.items()} == {
        "17_0.png": "17",
        "17_1.png": "17",
        "18_0.png": "18",
        "19_0.png": "19",
    }
    edits = {kind: Path(path).name for kind, path in found["17_0.png"].edited.items()}
    assert edits == {
        "mouth_rotated": "17_0_0.png",
        "mouth_mirrored": "17_0_1.png",
        "eye_mirrored": "17_0_2.png",
        "warp": "17_0_3.png",
    }
    assert found["17_1.png"].edited == {}
    assert found["17_0.png"].settings.values == {
        "iso": 200.0,
        "aperture": 2.8,
        "exposure_time": pytest.approx(1 / 60),
        "focal_length": 50.0,
    }
    # What the official code drops or evaluates is a photograph with fewer settings here.
    assert "aperture" not in found["18_0.png"].settings.values and found["18_0.png"].settings.values["iso"] == 200
    assert found["19_0.png"].settings.absent["exposure_time"] == "not a number"


def test_icassp_labels_in_the_official_parse(icassp):
    labels, images = icassp
    records = read_icassp_labels(labels, images=images, parse="official")
    assert [Path(record.image).name for record in records] == ["17_0.png", "17_1.png"]
    assert records[0].settings.values["exposure_time"] == 60.0


def test_icassp_errors(icassp, tmp_path):
    labels, images = icassp
    with pytest.raises(UsageError, match="correct, official"):
        read_icassp_labels(labels, images=images, parse="legacy")
    with pytest.raises(MissingRequirementError, match="labels: folder"):
        read_icassp_labels(tmp_path / "none", images=images)
    with pytest.raises(DataError, match="no picture has a label"):
        read_icassp_labels(labels, images=labels)
    (labels / "21.json").write_text("[")
    (labels / "22.json").write_text('{"EXIF": 3}')
    with pytest.raises(DataError, match=r"2 rows cannot be used(.|\n)*21.json(.|\n)*22.json"):
        read_icassp_labels(labels, images=images)


def blades(**changes):
    entry = {
        "path": "/data/FDF/a.png",
        "EXIF_ordinal": {"ISO": 200, "Aperture": 2.8, "Exposure Time": "1/60 sec", "Focal Length": 50},
        "EXIF_categorical": {
            "Make": {"cls_label": 3},
            "Metering Mode": {"cls_label": 7},
            "Exposure Mode": {"cls_label": 5},
            "White Balance Mode": {"cls_label": 1},
            "Exposure Program": {"cls_label": 0},
        },
    }
    return {**entry, **changes}


def write(tmp_path, data):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(data))
    return path


def test_blades_labels(tmp_path):
    path = write(
        tmp_path, {"x": blades(), "y": blades(path="/data/FDF/b.png", EXIF_ordinal={"ISO": 0, "Aperture": "F"})}
    )
    first, second = read_blades_labels(path, images="/pictures", prefix="/data/FDF")
    assert first.image == "/pictures/a.png"
    assert first.settings.values == {
        "iso": 200.0,
        "aperture": 2.8,
        "exposure_time": pytest.approx(1 / 60),
        "focal_length": 50.0,
        "make": "Canon",
        "metering_mode": "evaluative",
        "exposure_mode": "easy-shooting",
        "white_balance": "manual",
        "exposure_program": "landscape mode",
    }
    assert second.settings.absent == {
        "iso": "out of range",
        "aperture": "not a number",
        "exposure_time": "not written",
        "focal_length": "not written",
    }


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (blades(path="/other/a.png"), None),
        (blades(EXIF_categorical={"Make": {"cls_label": 10}}), "Make is class 10; it must be 0 to 9"),
        (blades(EXIF_categorical={"Make": {"cls_label": -1}}), "0 to 9"),
        (blades(EXIF_categorical={"Make": {"cls_label": "Canon"}}), "0 to 9"),
        (blades(EXIF_ordinal=[1, 2]), "EXIF_ordinal"),
        ({"EXIF_ordinal": {}}, "with a `path`"),
        (3, "with a `path`"),
    ],
)
def test_blades_errors(tmp_path, entry, message):
    path = write(tmp_path, {"x": entry})
    if message is None:
        with pytest.raises(DataError, match="outside the picture folder"):
            read_blades_labels(path)
    else:
        with pytest.raises(DataError, match=message):
            read_blades_labels(path, prefix="/data/FDF")


@pytest.mark.parametrize(("times", "warned"), [([60, 200, 2], True), ([1 / 60, 1 / 200, 2], False)])
def test_blades_times_that_look_like_the_wrong_parse_are_reported(tmp_path, caplog, times, warned):
    data = {str(i): blades(path=f"{i}.png", EXIF_ordinal={"Exposure Time": t}) for i, t in enumerate(times)}
    with caplog.at_level(logging.WARNING):
        read_blades_labels(write(tmp_path, data))
    assert ("60 for 1/60 s" in caplog.text) == warned


def test_fdf_boxes(tmp_path):
    path = write(tmp_path, {"1": {"bounding_box": [0.1, 0.2, 0.5, 0.6]}, "2": {"bounding_box": [0, 0, 1, 1]}})
    assert read_fdf_boxes(path) == {"1": (0.1, 0.2, 0.5, 0.6), "2": (0.0, 0.0, 1.0, 1.0)}
    with pytest.raises(DataError, match="four numbers"):
        read_fdf_boxes(write(tmp_path, {"1": {"bounding_box": [0.1, 0.2, 0.5]}}))
