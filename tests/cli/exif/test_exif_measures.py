"""`thurl exif evaluate | robustness`."""

from __future__ import annotations

import json
import shutil

import pytest

from thurl.forensics.exif.detector import load_detector
from thurl.forensics.exif.evaluation import evaluate_tables, robustness_report
from thurl.forensics.exif.features import extract_features
from thurl.forensics.exif.inputs import find_pictures
from thurl.forensics.exif.loading import load_tower
from thurl.forensics.exif.scoring import Rule
from thurl.forensics.perturbations import PERTURBATIONS


CPU = ("--device", "cpu")


@pytest.fixture
def common(models, detector, faces):
    return (faces.fakes / "grid", faces.fakes / "smooth", "-p", faces.test, "-m", models.blades, "-d", detector, *CPU)


def test_evaluate_is_the_library_s_evaluation(thurl, models, detector, faces, common, tmp_path):
    path = tmp_path / "results.json"
    result = thurl("evaluate", *common, "--fpr", 0.05, "-o", path)
    written = json.loads(path.read_text())
    tower, loaded = load_tower(models.blades), load_detector(detector)
    tables = {
        name: extract_features(tower, find_pictures([place]).paths)
        for name, place in (("", faces.test), ("grid", faces.fakes / "grid"), ("smooth", faces.fakes / "smooth"))
    }
    expected = evaluate_tables(loaded, tables.pop(""), tables, Rule(rate=0.05))
    assert {key: written[key] for key in expected} == json.loads(json.dumps(expected))
    assert written["photographs_seen_before"] == {"fitted_to": 0, "calibrated_with": 0}
    assert "versions" in written["environment"]
    names = [line.split()[0] for line in result.stdout.splitlines()]
    assert names[:4] == ["generator", "grid", "smooth", "mean"]
    for key in ("accuracy", "FPR", "TPR", "AUC", "AP generated", "AP photographic", "AUC 2-sided", "too high"):
        assert key in result.stdout.splitlines()[0]
    printed = thurl("evaluate", *common, "--fpr", 0.05, "--json").stdout
    assert json.loads(printed)["generators"] == written["generators"]


def test_evaluate_with_bad_files_and_names(thurl, models, detector, faces, bad_files, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(faces.fakes / "grid", mixed / "deep")
    shutil.copytree(bad_files, mixed / "bad")
    rest = ("-p", faces.test, "-m", models.blades, "-d", detector, *CPU, "--json")
    document = json.loads(thurl("evaluate", f"GAN={mixed}", *rest, "--all-photographs").stdout)
    entry = document["generators"]["GAN"]
    assert entry["n"] == 24 and entry["unusable"] == 4 and entry["n_photographs"] == 40
    document = json.loads(thurl("evaluate", f"GAN={mixed}", *rest, "--limit", 10).stdout)
    assert document["generators"]["GAN"]["n"] == document["generators"]["GAN"]["n_photographs"] == 10
    assert "none of 4 pictures" in thurl("evaluate", bad_files, *rest, code=1).output


def test_photographs_of_the_calibration_are_noticed(thurl, models, detector, faces):
    rest = ("-m", models.blades, "-d", detector, *CPU, "--json")
    result = thurl("evaluate", faces.fakes / "grid", "-p", faces.calibrate, "-p", faces.fit, *rest)
    assert "120 of 230 photographs were fitted to" in result.stderr
    assert "110 of 230 photographs were calibrated with" in result.stderr
    assert json.loads(result.stdout)["photographs_seen_before"] == {"fitted_to": 120, "calibrated_with": 110}


def test_robustness_is_the_library_s_report(thurl, models, detector, faces, common):
    document = json.loads(thurl("robustness", *common, "--fpr", 0.05, "--json").stdout)
    assert list(document["perturbations"]) == list(PERTURBATIONS)
    plain = json.loads(thurl("evaluate", *common, "--fpr", 0.05, "--json").stdout)
    assert document["perturbations"]["none"]["generators"] == plain["generators"]
    tower, loaded = load_tower(models.blades), load_detector(detector)
    fakes = {name: find_pictures([faces.fakes / name]).paths for name in ("grid", "smooth")}
    expected = robustness_report(
        tower, loaded, find_pictures([faces.test]).paths, fakes, Rule(rate=0.05), perturbations=("jpeg_50",)
    )
    assert document["perturbations"]["jpeg_50"] == json.loads(json.dumps(expected["jpeg_50"]))
    printed = thurl("robustness", *common, "--perturbation", "blur_1", "--perturbation", "none").stdout.splitlines()
    assert [line.split()[0] for line in printed[:3]] == ["perturbation", "blur_1", "none"]
    assert printed[0].endswith("AUC grid  AUC smooth")


def test_wrong_calls(thurl, models, detector, faces, common, tmp_path):
    rest = ("-p", faces.test, "-m", models.blades, "-d", detector, *CPU)
    output = thurl("evaluate", "=x", faces.fakes / "grid", f"grid={faces.fakes / 'smooth'}", *rest, code=2).output
    assert "NAME=FOLDER" in output and "is called grid, too" in output
    assert "no such file" in thurl("evaluate", tmp_path / "none", *rest, code=1).output
    assert "warp" in thurl("robustness", *common, "--perturbation", "warp", code=2).output
    thurl("evaluate", faces.fakes, "-m", models.blades, "-d", detector, code=2)  # no photographs
    (tmp_path / "there.json").write_text("{}")
    assert "--overwrite" in thurl("evaluate", *common, "-o", tmp_path / "there.json", code=2).output
    other = ("evaluate", faces.fakes / "grid", "-p", faces.test, "-m", models.ordinal, "-d", detector, *CPU)
    assert "made with the encoder" in thurl(*other, code=1).output
