"""`thurl exif detect | explain`."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from thurl.forensics.exif.camera import write_photographs
from thurl.forensics.exif.detector import load_detector
from thurl.forensics.exif.explanations import explain
from thurl.forensics.exif.inputs import find_pictures
from thurl.forensics.exif.loading import load_model, load_processor
from thurl.forensics.exif.scoring import COLUMNS, FaceDetector, Rule


CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def judge(models, detector):
    return FaceDetector.from_pretrained(models.blades, detector)


@pytest.fixture
def common(models, detector):
    return ("-m", models.blades, "-d", detector, *CPU)


def rows(text):
    return [json.loads(line) for line in text.splitlines()]


# --- detect ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ((), Rule()),
        (("--fpr", 0.05), Rule(rate=0.05)),
        (("--fpr", 0.1, "--two-sided"), Rule(rate=0.1, two_sided=True)),
        (("--official", "--fpr", 0.05), Rule(rate=0.05, official=True)),
    ],
)
def test_detect_says_what_the_library_says(thurl, judge, common, faces, options, rule):
    found = rows(thurl("detect", faces.test, *common, *options, "--json").stdout)
    expected = [verdict.row() for verdict in judge.score(find_pictures([faces.test]).paths, rule)]
    assert found == expected and len(found) == 40


def test_bad_files_are_lines_with_their_error(thurl, common, faces, bad_files, tmp_path):
    bare = tmp_path / "bare.png"  # no EXIF, four channels: judged like any other
    Image.new("RGBA", (30, 30), (200, 100, 50, 255)).save(bare)
    result = thurl("detect", faces.test, bad_files, bare, *common, "--json")
    found = rows(result.stdout)
    failed = [row for row in found if row["error"]]
    assert len(found) == 45 and len(failed) == 4 and found[-1]["decision"]
    assert all(row["decision"] is row["p_value"] is row["log_likelihood"] is None for row in failed)
    assert "41 of 45 pictures judged" in result.stderr and result.stderr.count("warning: ") == 4
    assert "none of the 4 pictures" in thurl("detect", bad_files, *common, code=1).output


def test_what_stands_on_the_terminal(thurl, common, faces, bad_files):
    picture = sorted(faces.test.iterdir())[0]
    first, second = thurl("detect", picture, bad_files / "empty.jpg", *common).stdout.splitlines()
    assert first.split()[0] in ("photographic", "generated") and first.split()[1] == "p" and str(picture) in first
    assert second.startswith("- ") and second.endswith("empty.jpg")


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl"])
def test_reports(thurl, common, faces, bad_files, tmp_path, ending):
    path = tmp_path / "out" / f"report.{ending}"
    arguments = ("detect", faces.test, bad_files / "text.jpg", *common, "-o", path)
    printed = thurl(*arguments).stdout
    assert printed == f"written to {path}\n"
    text = path.read_text()
    if ending == "csv":
        found = list(csv.DictReader(text.splitlines()))
        assert tuple(found[0]) == COLUMNS and found[-1]["error"] and not found[-1]["p_value"]
    else:
        found = json.loads(text) if ending == "json" else rows(text)
    assert len(found) == 41
    assert "--overwrite" in thurl(*arguments, code=2).output
    thurl(*arguments, "--overwrite")
    assert path.read_text() == text


def test_a_report_is_a_list_for_the_next_run(thurl, common, faces, tmp_path):
    report = tmp_path / "report.csv"
    thurl("detect", faces.test, *common, "-o", report)
    arguments = ("detect", report, *common, "--json")
    assert "--allow-outside" in thurl(*arguments, code=1).output
    again = rows(thurl(*arguments, "--allow-outside").stdout)
    assert [row["image"] for row in again] == [str(path) for path in sorted(faces.test.iterdir())]


def test_lists_patterns_and_boxes(thurl, judge, common, faces, tmp_path):
    large = np.zeros((80, 100, 3), np.uint8)
    picture = Image.open(sorted(faces.test.iterdir())[0])
    large[20:60, 30:70] = np.asarray(picture)
    Image.fromarray(large).save(tmp_path / "large.png")
    box = (35, 25, 65, 55)
    (tmp_path / "list.csv").write_text("image,left,top,right,bottom,note\nlarge.png,35,25,65,55,x\nlarge.png,,,,,y\n")
    cropped, whole = rows(thurl("detect", tmp_path / "list.csv", *common, "--json").stdout)
    expected = judge.score([tmp_path / "large.png"] * 2, boxes=[box, None])
    assert [cropped["log_likelihood"], whole["log_likelihood"]] == pytest.approx([v.score for v in expected], rel=1e-9)
    assert abs(cropped["log_likelihood"] - whole["log_likelihood"]) > 1e-3
    arguments = ("detect", tmp_path / "*.png", faces.root / "te*", *common, "--boxes", tmp_path / "list.csv", "--json")
    result = thurl(*arguments)
    found = rows(result.stdout)
    assert len(found) == 41 and found[0]["log_likelihood"] == pytest.approx(cropped["log_likelihood"], rel=1e-4)
    assert "40 of 41 pictures have no box" in result.stderr


def test_another_kind_of_pictures_is_noticed(thurl, common, faces, tmp_path, caplog):
    thurl("detect", faces.test, *common)
    assert "not distributed like" not in caplog.text
    flat = tmp_path / "flat"
    flat.mkdir()
    for grey in range(30):
        Image.new("RGB", (40, 40), (grey, grey, grey)).save(flat / f"{grey:02}.png")
    thurl("detect", flat, *common)
    assert "calibrate again" in caplog.text


def test_the_false_alarm_rate_holds_for_new_photographs(thurl, common, tmp_path):
    """Asked for 20 % of 200 photographs after calibration with 110 others; within 4 standard errors of both draws."""
    write_photographs(tmp_path / "new", 200, seed=5, start=1000)
    found = rows(thurl("detect", tmp_path / "new", *common, "--fpr", 0.2, "--json").stdout)
    share = np.mean([row["decision"] == "generated" for row in found])
    spread = np.sqrt(0.2 * 0.8 / 200 + 0.2 * 0.8 / 111)
    assert abs(share - 0.2) < 4 * spread


def test_wrong_calls(thurl, models, common, detector, faces, tmp_path):
    picture = sorted(faces.test.iterdir())[0]
    result = thurl("detect", picture, *common, "-o", "report.txt", "--fpr", 2, code=2)
    assert ".csv, .json, .jsonl" in result.output and "--fpr is 2" in result.output  # both at once
    result = thurl("detect", tmp_path / "a.jpg", tmp_path / "b.jpg", *common, code=1)
    assert "a.jpg" in result.output and "b.jpg" in result.output
    (tmp_path / "empty").mkdir()
    assert "no pictures in" in thurl("detect", tmp_path / "empty", *common, code=1).output
    assert "no calibration for the domain" in thurl("detect", picture, *common, "--domain", "phne", code=2).output
    assert "too few" in thurl("detect", picture, *common, "--fpr", 0.001, code=1).output
    other = ("detect", picture, "-m", models.ordinal, "-d", detector, *CPU)
    assert "made with the encoder" in thurl(*other, code=1).output
    assert "no detector" in thurl("detect", picture, "-m", models.blades, *CPU, code=2).output
    thurl("detect", *common, code=2)


def test_a_detector_that_was_never_calibrated(thurl, models, faces, tmp_path):
    path = tmp_path / "oc.safetensors"
    thurl("fit", faces.fit, "-m", models.blades, "-o", path, "--components", 2, *CPU)
    arguments = ("detect", faces.test, "-m", models.blades, "-d", path, *CPU)
    assert "not calibrated" in thurl(*arguments, code=2).output
    assert load_detector(path).in_sample
    thurl(*arguments, "--official")


# --- explain ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["blades", "ordinal"])
def test_explain_gives_the_library_s_readings(thurl, models, faces, bad_files, name):
    folder = getattr(models, name)
    pictures = [*sorted(faces.test.iterdir())[:5], bad_files / "empty.jpg"]
    result = thurl("explain", *pictures, "-m", folder, "--reference", faces.calibrate, "-b", 2, *CPU, "--json")
    found = rows(result.stdout)
    expected = explain(load_model(folder), load_processor(folder), pictures, batch_size=2)
    assert [row["image"] for row in found] == [str(path) for path in pictures] and found[-1]["error"]
    for row, own in zip(found[:-1], expected[:-1], strict=True):
        assert row["manipulated"] == pytest.approx(own.manipulated, rel=1e-6)
        assert row["regions"] == pytest.approx(dict(own.regions), rel=1e-6)
        assert set(row["ranks"]) == {"iso", "aperture", "exposure_time", "focal_length"}
        assert all(0 <= rank <= 1 for rank in row["ranks"].values())
        for task, shares in own.settings.items():
            assert row["settings"][task] == pytest.approx(dict(shares), rel=1e-6)


def test_explain_as_text(thurl, models, faces):
    picture = sorted(faces.test.iterdir())[0]
    text = thurl("explain", picture, "-m", models.blades, *CPU).stdout
    assert text.splitlines()[0] == str(picture)
    for word in ("iso", "make", "level", "mouth", "eye", "nose", "edited"):
        assert word in text
    assert "reference" not in text and "nan" not in text


def test_explain_needs_heads(thurl, models, faces, bad_files):
    picture = sorted(faces.test.iterdir())[0]
    assert "no pretext tasks" in thurl("explain", picture, "-m", models.encoder, *CPU, code=2).output
    assert "none of the 4" in thurl("explain", bad_files, "-m", models.blades, *CPU, code=1).output
    arguments = ("explain", picture, "-m", models.blades, "--reference", bad_files, *CPU)
    assert "--reference" in thurl(*arguments, code=1).output
