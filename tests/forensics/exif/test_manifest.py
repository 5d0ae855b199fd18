"""From a folder to a manifest: what is kept, what is said about the rest, and parts without common content."""

from __future__ import annotations

import importlib.util
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.forensics.exif.coverage import BINS, coverage, coverage_plot, coverage_text
from thurl.forensics.exif.manifest import PARTS, FaceRecord, read_manifest, split_records, write_manifest
from thurl.forensics.exif.scan import scan_folder
from thurl.forensics.exif.settings import CameraSettings


_SPEC = importlib.util.spec_from_file_location("broken_jpegs", Path(__file__).with_name("broken_jpegs.py"))
build = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(build)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    (root / "b").mkdir(parents=True)
    (root / ".hidden").mkdir()
    canon = build.with_exif()
    (root / "b" / "canon.JPG").write_bytes(canon)
    (root / "b" / "copy.jpg").write_bytes(canon)
    (root / "nikon.png").write_bytes(build.with_exif({"Make": "NIKON", "ISO": 400}, format="PNG"))
    (root / "plain.jpg").write_bytes(build.plain())
    (root / "cut.jpg").write_bytes(build.with_exif(side=64)[:-400])
    (root / "text.jpg").write_text("no picture")
    (root / "empty.jpeg").write_bytes(b"")
    (root / "notes.txt").write_text("ignored")
    (root / ".hidden" / "x.jpg").write_bytes(canon)
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(build.with_exif({"Make": "Sony"}))
    (root / "link.jpg").symlink_to(outside)
    return root


def test_scan_keeps_the_good_and_lists_the_rest(folder):
    result = scan_folder(folder)
    assert [record.image for record in result.records] == ["b/canon.JPG", "nikon.png"]
    canon, nikon = result.records
    assert canon.settings.values == {
        "iso": 100.0,
        "aperture": 7.1,
        "exposure_time": 1 / 160,
        "focal_length": 135.0,
        "make": "Canon",
        "metering_mode": "multi-segment",
        "exposure_mode": "manual",
        "white_balance": "auto",
        "exposure_program": "manual control",
    }
    assert (canon.group, canon.camera, canon.size) == ("b", "Canon", (16, 16))
    assert nikon.settings.values == {"iso": 400.0, "make": "Nikon"} and nikon.group == "."
    reasons = {item.image: item.reason for item in result.skipped}
    assert set(reasons) == {"b/copy.jpg", "cut.jpg", "empty.jpeg", "link.jpg", "plain.jpg", "text.jpg"}
    for image, words in {
        "b/copy.jpg": "same file as b/canon.JPG",
        "cut.jpg": "truncated",
        "empty.jpeg": "empty",
        "link.jpg": "leads out",
        "plain.jpg": "no EXIF",
        "text.jpg": "not a picture",
    }.items():
        assert words in reasons[image]


def test_scan_options(folder):
    unlabelled = scan_folder(folder, keep_unlabelled=True, check_pixels=False)
    # Without decoding nobody notices that the end is missing; a picture without EXIF is one all the same.
    assert [r.image for r in unlabelled.records] == ["b/canon.JPG", "cut.jpg", "nikon.png", "plain.jpg"]
    assert coverage(unlabelled)["skipped"] == {
        "a link that leads out of the folder": 1,
        "not a picture in one of the formats JPEG, PNG, WEBP": 1,
        "same file as another": 1,
        "the file is empty": 1,
    }
    assert scan_folder(folder, canon_evaluative=True).records[0].settings.values["metering_mode"] == "evaluative"
    assert [r.group for r in scan_folder(folder, group_by="camera").records] == ["Canon", "NIKON"]
    assert [r.group for r in scan_folder(folder, group_by="file").records] == ["b/canon.JPG", "nikon.png"]
    assert scan_folder(folder, max_pixels=10).records == []
    calls = []
    scan_folder(folder, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 8) for i in range(1, 9)]


def test_scan_does_not_depend_on_the_number_of_processes(folder):
    assert scan_folder(folder, processes=2) == scan_folder(folder)


def test_scan_errors(tmp_path):
    with pytest.raises(MissingRequirementError, match="does not exist"):
        scan_folder(tmp_path / "none")
    with pytest.raises(MissingRequirementError, match="holds no file"):
        scan_folder(tmp_path)
    with pytest.raises(UsageError, match="folder, camera, file"):
        scan_folder(tmp_path, group_by="person")
    with pytest.raises(UsageError, match="processes"):
        scan_folder(tmp_path, processes=0)


def test_file_names_that_a_manifest_cannot_hold(folder):
    os.rename(folder / "nikon.png", folder / "ni\nkon.png")
    (reason,) = [s.reason for s in scan_folder(folder).skipped if "kon.png" in s.image]
    assert "control character" in reason


def test_manifest_round_trip_and_bytes(folder, tmp_path):
    records = scan_folder(folder).records
    path = tmp_path / "manifest.jsonl"
    write_manifest(path, records)
    content = path.read_bytes()
    assert [json.loads(line)["image"] for line in content.decode().splitlines()] == ["b/canon.JPG", "nikon.png"]
    line = json.loads(content.decode().splitlines()[1])
    assert line["iso"] == 400 and line["aperture"] is None and line["absent"]["aperture"] == "not written"
    again = read_manifest(path, images=folder)
    assert [record.image for record in again] == [str(folder / record.image) for record in records]
    assert [replace(a, image="") for a in again] == [replace(b, image="") for b in records]
    write_manifest(path, scan_folder(folder).records)
    assert path.read_bytes() == content


def test_manifest_keeps_boxes_landmarks_and_edits(tmp_path):
    points = tuple((float(i), 2.0 * i) for i in range(68))
    record = FaceRecord(
        "a.png", CameraSettings({"iso": 100.0}), box=(1, 2, 30, 40), landmarks=points, edited={"warp": "a_3.png"}
    )
    path = tmp_path / "m.jsonl"
    write_manifest(path, [record])
    (again,) = read_manifest(path)
    assert again.box == (1, 2, 30, 40) and again.landmarks == points
    assert again.edited == {"warp": str(tmp_path / "a_3.png")}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "not a JSON object"),
        ("[1]", "a list instead"),
        ('{"image": "../x.jpg"}', "outside the picture folder"),
        ('{"image": "/etc/x.jpg"}', "outside the picture folder"),
        ('{"iso": 100}', "image is empty"),
        ('{"image": "a.jpg", "ISO": 100}', "did you mean `iso`"),
        ('{"image": "a.jpg", "iso": 1}', "from 6 to"),
        ('{"image": "a.jpg", "iso": "100"}', "must be a number"),
        ('{"image": "a.jpg", "iso": NaN}', "must be a number"),
        ('{"image": "a.jpg", "iso": true}', "must be a number"),
        ('{"image": "a.jpg", "make": "Leica"}', "one of Nikon"),
        ('{"image": "a.jpg", "make": 3}', "one of Nikon"),
        ('{"image": "a.jpg", "box": [5, 5, 5, 9]}', "beyond left and top"),
        ('{"image": "a.jpg", "box": [1, 2, 3]}', "4 finite numbers"),
        ('{"image": "a.jpg", "landmarks": [[1, 2]]}', "68 points"),
        ('{"image": "a.jpg", "absent": []}', None),
        ('{"image": "a.jpg", "absent": ["iso"]}', "must be an object"),
        ('{"image": "a.jpg", "group": 3}', "must be a text"),
        ('{"image": "ok.jpg"}', "already in line 1"),
        ("[" * 100000, "not a JSON object"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "m.jsonl"
    path.write_text('{"image": "ok.jpg"}\n' + line + "\n", encoding="utf-8")
    if message is None:
        assert len(read_manifest(path)) == 2
        return
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(path)
    assert "row 2" in str(caught.value)


def test_missing_and_empty_manifests(tmp_path):
    with pytest.raises(MissingRequirementError, match="does not exist"):
        read_manifest(tmp_path / "m.jsonl")
    (tmp_path / "m.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="no photograph"):
        read_manifest(tmp_path / "m.jsonl")


# --- parts -----------------------------------------------------------------------------------------------------------


def records(count=200, groups=50):
    return [FaceRecord(f"{i}.jpg", group=f"g{i % groups}", sha256=f"{i:064x}") for i in range(count)]


def test_parts_are_disjoint_by_group_and_have_the_asked_sizes():
    parts = split_records(records())
    assert list(parts) == ["train", "outer", "validation", "calibration"]
    assert [len(part) for part in parts.values()] == [140, 20, 20, 20]
    places = Counter((record.group, name) for name, part in parts.items() for record in part)
    assert len({group for group, _ in places}) == len(places) == 50


def test_the_split_depends_on_seed_and_names_only():
    parts = split_records(records())
    backwards = split_records(records()[::-1])
    assert {k: set(map(id_of, v)) for k, v in parts.items()} == {k: set(map(id_of, v)) for k, v in backwards.items()}
    other = split_records(records(), seed=1)
    assert set(map(id_of, other["train"])) != set(map(id_of, parts["train"]))
    # Without groups the content names a picture, so the folder does not matter.
    here = [replace(r, group="") for r in records()]
    there = [replace(r, image="/elsewhere/" + r.image) for r in here]
    assert [r.sha256 for r in split_records(here)["outer"]] == [r.sha256 for r in split_records(there)["outer"]]
    # The split is fixed for ever: these numbers were written down when it was made.
    assert [r.image for r in split_records([replace(r, sha256="") for r in here])["outer"]][:4] == OUTER


OUTER = ["3.jpg", "19.jpg", "26.jpg", "29.jpg"]


def id_of(record):
    return record.image


def test_identical_files_stay_together_whatever_their_groups():
    twins = [replace(r, sha256=f"{i // 2:064x}") for i, r in enumerate(records(40, 40))]
    for part in split_records(twins, seed=3).values():
        assert all(count == 2 for count in Counter(record.sha256 for record in part).values())


def test_small_and_wrong_splits():
    few = records(4, 4)
    assert [len(part) for part in split_records(few).values()] == [1, 1, 1, 1]
    with pytest.raises(DataError, match="form 3 groups and 4 parts"):
        split_records(records(30, 3))
    with pytest.raises(UsageError, match="add up to 1"):
        split_records(few, parts={"train": 0.5, "test": 0.6})
    assert sum(PARTS.values()) == pytest.approx(1)


# --- coverage --------------------------------------------------------------------------------------------------------


def test_coverage_counts(folder):
    report = coverage(scan_folder(folder))
    assert json.loads(json.dumps(report)) == report
    assert (report["photographs"], report["all_ordinal"], report["all_settings"], report["groups"]) == (2, 1, 1, 2)
    iso, make = report["settings"]["iso"], report["settings"]["make"]
    assert iso["present"] == 2 and iso["quartiles"] == [100, 100, 100, 400, 400]
    assert sum(iso["histogram"]["counts"]) == 2 and len(iso["histogram"]["counts"]) == len(BINS["iso"]) + 1
    assert {k: v for k, v in make["histogram"].items() if v} == {"Nikon": 1, "Canon": 1}
    assert report["settings"]["aperture"]["absent"] == {"not written": 1}
    assert report["skipped"]["same file as another"] == 1 and len(report["skipped_files"]) == 6
    assert report["tied_pairs"]["iso"] == 0 and report["tied_pairs"]["aperture"] is None
    text = coverage_text(report)
    assert "2 photographs, 2 camera models" in text and "iso                      2 100.0%" in text


def test_coverage_bins_and_ties():
    items = [FaceRecord(f"{i}", CameraSettings({"iso": v})) for i, v in enumerate([49, 50, 99, 100, 100, 6400, 9000])]
    iso = coverage(items)["settings"]["iso"]
    assert iso["histogram"]["counts"] == [1, 2, 2, 0, 0, 0, 0, 0, 2]
    assert iso["quartiles"] == [49, 99, 100, 100, 9000]
    assert coverage(items)["tied_pairs"]["iso"] == pytest.approx(1 / 21)


def test_coverage_says_what_cannot_be_learned():
    def item(name, **settings):
        return FaceRecord(name, CameraSettings(settings), group="one")

    rows = [item(f"{i}", iso=100.0, aperture=float(i), make="Canon", white_balance="auto") for i in range(1, 20)]
    rows.append(item("last", iso=200.0, aperture=1.4, make="Sony", white_balance="auto"))
    notes = coverage(rows)["notes"]
    text = coverage_text(coverage(rows))
    assert all(note in text for note in notes)
    for start in ("All photographs are in one group", "exposure_mode is in no photograph",
                  "white_balance is always auto",
                  "make is Canon in 95%", "iso is the same in 90% of pairs"):  # fmt: skip
        assert sum(note.startswith(start) for note in notes) == 1, start
    assert not any(note.startswith("aperture") for note in notes)
    spread = [FaceRecord(f"{i}", CameraSettings({"iso": 100.0 + i}), group=f"{i}") for i in range(5)]
    assert not any(note.startswith(("iso", "All")) for note in coverage(spread)["notes"])


def test_formats_that_are_not_read_are_counted(folder):
    for name in ("a.HEIC", "b.heic", "c.dng", ".d.heic"):
        (folder / name).write_bytes(b"x")
    report = coverage(scan_folder(folder))
    assert report["not_read"] == {".dng": 1, ".heic": 2}
    assert "2  .heic" in coverage_text(report)


@pytest.mark.parametrize(
    ("maker", "model", "camera"),
    [
        ("NIKON CORPORATION", "NIKON D70", "NIKON D70"),
        ("Canon", "Canon EOS 40D", "Canon EOS 40D"),
        ("EASTMAN KODAK COMPANY", "KODAK CX7530", "KODAK CX7530"),
        ("RICOH", "RDC-5300", "RICOH RDC-5300"),
        ("Apple", "", "Apple"),
        ("", "X100", "X100"),
    ],
)
def test_the_maker_stands_once_in_a_camera_s_name(tmp_path, maker, model, camera):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x8827] = 100
    for tag, value in ((0x010F, maker), (0x0110, model)):
        if value:
            exif[tag] = value
    build.pixels().save(tmp_path / "a.jpg", exif=exif)
    (record,) = scan_folder(tmp_path).records
    assert record.camera == camera


def test_coverage_of_nothing_is_still_a_report():
    report = coverage([FaceRecord("a.jpg")])
    assert report["settings"]["iso"]["quartiles"] is None
    assert "iso                      0   0.0%" in coverage_text(report)


def test_coverage_plot(folder, tmp_path):
    coverage_plot(coverage(scan_folder(folder)), tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.size == (1200, 900) and len(picture.convert("L").getcolors()) > 10


def test_out_of_range_values_are_counted_by_reason(tmp_path):
    (tmp_path / "a.jpg").write_bytes(build.with_exif({"Make": "Canon", "ExposureTime": IFDRational(0, 1)}))
    report = coverage(scan_folder(tmp_path))
    assert report["settings"]["exposure_time"]["absent"] == {"out of range": 1}
