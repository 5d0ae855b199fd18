"""`thurl exif fit | calibrate`."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from thurl.forensics.exif.calibration import Calibration
from thurl.forensics.exif.detector import load_detector
from thurl.forensics.exif.features import extract_features
from thurl.forensics.exif.fitting import fit_one_class
from thurl.forensics.exif.inputs import find_pictures
from thurl.forensics.exif.loading import load_tower
from thurl.forensics.exif.manifest import read_manifest, split_records


CPU = ("--device", "cpu")


@pytest.fixture
def fitted(thurl, models, faces, tmp_path):
    path = tmp_path / "oc.safetensors"
    thurl("fit", faces.fit, "-m", models.blades, "-o", path, "--components", 2, *CPU)
    return path


# --- fit -------------------------------------------------------------------------------------------------------------


def test_fit_is_the_library_s_fit(models, faces, fitted):
    tower = load_tower(models.blades)
    table = extract_features(tower, find_pictures([faces.fit]).paths)
    expected = fit_one_class(table, unit_length=True, components=2)
    found = load_detector(fitted, encoder=tower.encoder)
    assert found.kind == "oc" and found.training["photographs"] == 120 and not found.calibrations
    np.testing.assert_array_equal(found.scores(table.features), expected.scores(table.features))


def test_fit_of_a_folder_with_bad_files(thurl, models, faces, bad_files, tmp_path):
    path = tmp_path / "oc.safetensors"
    arguments = ("fit", faces.fit, bad_files, "-m", models.blades, "-o", path, "--components", 2, *CPU)
    result = thurl(*arguments, "--json")
    document = json.loads(result.stdout)
    assert document["photographs"] == 120 and document["unusable"] == 4
    assert all(f"{name}: " in result.stderr for name in ("empty.jpg", "text.jpg", "cut.jpg", "huge.png"))
    assert thurl("fit", bad_files, "-m", models.blades, "-o", tmp_path / "b", *CPU, code=1)


def test_defaults_follow_the_paper_of_the_model(thurl, models, faces, tmp_path):
    for name, unit, components in (("blades", True, 10), ("ordinal", False, 12)):
        path = tmp_path / f"{name}.safetensors"
        model = getattr(models, name)
        arguments = ("fit", faces.fit, "-m", model, "-o", path, *CPU, "--json")
        document = json.loads(thurl(*arguments).stdout)
        assert document["unit_length"] is unit and document["components"] == components and document["seed"] == 2024
    arguments = ("fit", faces.fit, "-m", models.encoder, "-o", tmp_path / "e.safetensors", "--components", 2, *CPU)
    assert "--features is missing" in thurl(*arguments, code=2).output
    document = json.loads(thurl(*arguments, "--features", "raw", "--covariance", "diag", "--json").stdout)
    assert document["unit_length"] is False and document["covariance"] == "diag"


def test_fit_of_one_part_of_a_manifest(thurl, models, faces, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(faces.fit, photos)
    thurl("scan", photos, "--group-by", "file")
    manifest, path = photos / "manifest.jsonl", tmp_path / "oc.safetensors"
    arguments = ("fit", manifest, "-m", models.blades, "-o", path, "--components", 2, *CPU, "--json")
    document = json.loads(thurl(*arguments, "--part", "train", "--split-seed", 3).stdout)
    parts = split_records(read_manifest(manifest), seed=3)
    assert document["photographs"] == len(parts["train"]) < 120
    # The parts are disjoint, so the calibration part may be used and the training part may not.
    common = ("-m", models.blades, "-d", path, "--split-seed", 3, "--fpr", 0.2, *CPU)
    thurl("calibrate", manifest, "--part", "calibration", *common)
    result = thurl("calibrate", manifest, "--part", "train", *common, "--domain", "again", code=1)
    assert f"{len(parts['train'])} of {len(parts['train'])} photographs were used to fit" in result.output
    assert "train, outer, validation, calibration" in thurl(*arguments, "--overwrite", "--part", "half", code=2).output


def test_the_binary_head(thurl, models, faces, fitted, tmp_path):
    path = tmp_path / "bc.safetensors"
    arguments = ("fit", faces.fit, "-g", faces.fakes / "grid", "-m", models.blades, "-o", path, "--epochs", 2, *CPU)
    printed = thurl(*arguments, "--hidden-size", 8, "--learning-rate", 0.01).stdout
    assert "binary head fitted to 120 photographs and 24 generated faces" in printed
    detector = load_detector(path)
    assert detector.kind == "bc" and detector.scorer.config.hidden_size == 8
    assert detector.training["epochs"] == 2 and detector.training["learning_rate"] == 0.01
    outliers = (*arguments, "--overwrite", "--pseudo-outliers", 0.1, "--one-class", fitted, "--json")
    assert json.loads(thurl(*outliers).stdout)["pseudo_outliers"] == 12


def test_all_wrong_options_at_once(thurl, models, faces, fitted, tmp_path):
    arguments = ("fit", faces.fit, "-m", models.blades, "-o", fitted, "--epochs", 3, "--hidden-size", 3, *CPU)
    output = thurl(*arguments, code=2).output
    assert "--epochs" in output and "--hidden-size" in output and "--overwrite" in output
    arguments = ("fit", faces.fit, "-g", faces.fakes, "-m", models.blades, "-o", tmp_path / "x", "--pca", 2, *CPU)
    output = thurl(*arguments, "--pseudo-outliers", 0.1, code=2).output
    assert "--pca" in output and "go together" in output


def test_models_that_are_not_there(thurl, faces, tmp_path):
    target = ("-o", tmp_path / "x.safetensors", *CPU)
    assert "config.json" in thurl("fit", faces.fit, "-m", tmp_path / "nowhere", *target, code=3).output
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    assert "'bert'" in thurl("fit", faces.fit, "-m", folder, *target, code=1).output
    assert "--device" in thurl("fit", faces.fit, "-m", tmp_path, *target[:2], "--device", "quantum", code=3).output


def test_a_model_without_processor_or_weights(thurl, models, faces, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(models.blades, folder)
    (folder / "preprocessor_config.json").unlink()
    arguments = ("fit", faces.fit, "-m", folder, "-o", tmp_path / "x.safetensors", *CPU)
    assert "preprocessor_config.json" in thurl(*arguments, code=3).output
    shutil.copy(models.blades / "preprocessor_config.json", folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    thurl(*arguments, code=1)
    weights.unlink()
    assert "model.safetensors" in thurl(*arguments, code=3).output


# --- calibrate -------------------------------------------------------------------------------------------------------


def test_calibrate_stores_the_library_s_thresholds(models, faces, detector):
    tower = load_tower(models.blades)
    found = load_detector(detector, encoder=tower.encoder)
    scores = found.scores(extract_features(tower, find_pictures([faces.calibrate]).paths).features)
    expected = Calibration.of(scores, [0.01, 0.05])
    assert found.calibrations[""].rates == (0.01, 0.05)
    np.testing.assert_array_equal(found.calibrations[""].scores, expected.scores)


def test_calibrate_adds_domains_and_replaces_only_when_asked(thurl, models, faces, fitted):
    common = ("-m", models.blades, "-d", fitted, *CPU)
    thurl("calibrate", faces.calibrate, *common, "--fpr", 0.05)
    before = load_detector(fitted).calibrations[""]
    assert "--overwrite replaces it" in thurl("calibrate", faces.test, *common, "--fpr", 0.1, code=2).output
    document = json.loads(thurl("calibrate", faces.test, *common, "--fpr", 0.1, "--domain", "phone", "--json").stdout)
    after = load_detector(fitted)
    assert document["domains"] == ["", "phone"] and document["photographs"] == 40
    assert document["thresholds"] == {"0.1": after.calibrations["phone"].threshold(0.1)}
    np.testing.assert_array_equal(after.calibrations[""].scores, before.scores)
    thurl("calibrate", faces.test, *common, "--fpr", 0.1, "--overwrite")
    assert load_detector(fitted).calibrations[""].rates == (0.1,)


def test_calibrate_into_another_file(thurl, models, faces, fitted, tmp_path):
    before, other = fitted.read_bytes(), tmp_path / "other.safetensors"
    thurl("calibrate", faces.calibrate, "-m", models.blades, "-d", fitted, "-o", other, *CPU)
    assert fitted.read_bytes() == before and load_detector(other).calibrations[""].rates == (0.01, 0.05)


@pytest.mark.parametrize(
    "rates", [("--fpr", "0.1", ".2"), ("--fpr", "0.1", "--fpr", "2e-1"), ("--fpr=0.1", "--fpr", "0.2")]
)
def test_several_rates(thurl, models, faces, fitted, monkeypatch, rates):
    monkeypatch.chdir(faces.test)
    common = ("-m", models.blades, "-d", fitted, *CPU, "--json")
    # The photographs follow the numbers; the folder `.` is none of them.
    document = json.loads(thurl("calibrate", *rates, ".", *common, "--overwrite").stdout)
    assert list(document["thresholds"]) == ["0.1", "0.2"] and document["photographs"] == 40


def test_too_few_calibration_photographs(thurl, models, faces, fitted, bad_files, tmp_path):
    common = ("-m", models.blades, "-d", fitted, *CPU)
    few = sorted(faces.test.iterdir())[:18]
    before = fitted.read_bytes()
    assert "at least 99 are needed" in thurl("calibrate", *few, *common, code=1).output
    assert "at least 19 are needed" in thurl("calibrate", *few, *common, "--fpr", 0.05, code=1).output
    # Bad files do not count.
    result = thurl("calibrate", *few, bad_files, *common, "--fpr", 0.05, code=1)
    assert "18 usable photographs are too few" in result.output
    assert fitted.read_bytes() == before
    assert "between 0 and 1" in thurl("calibrate", faces.test, *common, "--fpr", 5, code=2).output


def test_photographs_of_the_fit_are_refused(thurl, models, faces, fitted, tmp_path):
    common = ("-m", models.blades, "-d", fitted, "--fpr", 0.05, *CPU)
    copies = tmp_path / "copies"
    shutil.copytree(faces.calibrate, copies)
    shutil.copy(sorted(faces.fit.iterdir())[0], copies / "renamed.jpg")
    result = thurl("calibrate", copies, *common, code=1)
    assert "1 of 111 photographs were used to fit" in result.output
    (copies / "renamed.jpg").unlink()
    thurl("calibrate", copies, *common)


def test_a_detector_of_another_encoder(thurl, models, faces, fitted):
    result = thurl("calibrate", faces.calibrate, "-m", models.ordinal, "-d", fitted, *CPU, code=1)
    assert "made with the encoder" in result.output
    broken = fitted.with_name("broken.safetensors")
    broken.write_bytes(fitted.read_bytes()[:100])
    assert "not a readable" in thurl("calibrate", faces.calibrate, "-m", models.blades, "-d", broken, *CPU,
                                     code=1).output  # fmt: skip
    thurl("calibrate", faces.calibrate, "-m", models.blades, "-d", fitted.with_name("none"), *CPU, code=3)
    assert "no detector" in thurl("calibrate", faces.calibrate, "-m", models.blades, *CPU, code=2).output
