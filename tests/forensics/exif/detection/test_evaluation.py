"""Metrics per generator and on average, against the official values and by hand; robustness on simulated pictures."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from thurl.errors import DataError, UsageError
from thurl.forensics.exif.calibration import Calibration
from thurl.forensics.exif.camera import fakes, photographs
from thurl.forensics.exif.evaluation import evaluate_scores, evaluate_tables, robustness_report
from thurl.forensics.exif.scoring import Rule
from thurl.forensics.perturbations import PERTURBATIONS


GOLDEN = load_file(Path(__file__).resolve().parents[3] / "golden" / "exif_gmm.safetensors")


@pytest.mark.parametrize("rate", ["0.05", "0.01"])
def test_official_numbers(rate):
    result = evaluate_scores(
        GOLDEN["loglik_real"], {"x": GOLDEN["loglik_fake"]}, threshold=GOLDEN[f"threshold_fa{rate}"][0], match=False
    )
    found = result["generators"]["x"]
    assert found["accuracy"] * 100 == pytest.approx(GOLDEN[f"acc_fa{rate}"][0])
    assert found["fpr"] == result["photographs"]["fpr"] == pytest.approx(GOLDEN[f"fpr_heldout_fa{rate}"][0])
    assert found["auc"] * 100 == pytest.approx(GOLDEN["auc_pct"][0])
    assert found["ap_generated"] * 100 == pytest.approx(GOLDEN["ap_positive_is_generated_pct"][0])
    assert found["ap_photographic"] * 100 == pytest.approx(GOLDEN["ap_positive_is_photographic_pct"][0])


def test_numbers_by_hand():
    real, fake = [1.0, 2.0, 3.0, 4.0, math.nan], [0.0, 1.5, 5.0]
    calibration = Calibration.of(np.arange(1, 20) / 4, [])  # 0.25 to 4.75
    result = evaluate_scores(real, {"a": fake}, threshold=1.75, match=False, calibration=calibration, rate=0.1)
    a = result["generators"]["a"]
    assert result["photographs"] == {"n": 4, "unusable": 1, "fpr": 0.25, "fpr_two_sided": 0.0}
    assert (a["n"], a["n_photographs"], a["fpr"]) == (3, 4, 0.25)
    assert a["tpr"] == pytest.approx(2 / 3) and a["accuracy"] == pytest.approx(5 / 7)
    assert a["auc"] == pytest.approx(7 / 12)
    # Generated first: 0 | 1 (photograph) | 1.5 | 2, 3, 4 (photographs) | 5
    assert a["ap_generated"] == pytest.approx((1 + 2 / 3 + 3 / 7) / 3)
    assert a["tpr_two_sided"] == pytest.approx(2 / 3) and a["too_high"] == pytest.approx(1 / 3)


def test_the_mean_over_generators_is_unweighted():
    rng = np.random.default_rng(0)
    real = rng.normal(size=400)
    result = evaluate_scores(
        real, {"far": rng.normal(size=300) - 4, "same": rng.normal(size=20)}, threshold=-1.6, seed=1
    )
    far, same = result["generators"]["far"], result["generators"]["same"]
    assert (far["n_photographs"], same["n_photographs"]) == (300, 20)
    for name in ("accuracy", "auc", "tpr", "ap_generated", "ap_photographic"):
        assert result["mean"][name] == pytest.approx((far[name] + same[name]) / 2)
    assert math.isnan(result["mean"]["auc_two_sided"])


def test_draws_depend_on_the_seed_and_on_no_other_generator():
    rng = np.random.default_rng(0)
    real, a, b = rng.normal(size=500), rng.normal(size=300) - 1, rng.normal(size=40)
    alone = evaluate_scores(real, {"a": a}, threshold=0.0, limit=50)["generators"]["a"]
    both = evaluate_scores(real, {"b": b, "a": a}, threshold=0.0, limit=50)["generators"]["a"]
    other = evaluate_scores(real, {"a": a}, threshold=0.0, limit=50, seed=1)["generators"]["a"]
    np.testing.assert_equal(alone, both)
    assert alone["n"] == alone["n_photographs"] == 50 and alone["auc"] != other["auc"]


def test_a_generator_whose_faces_score_too_high_shows_on_two_sides():
    rng = np.random.default_rng(0)
    calibration = Calibration.of(rng.normal(size=999), [])
    real, perfect = rng.normal(size=500), 4 + 0.1 * rng.normal(size=500)
    found = evaluate_scores(
        real, {"smooth": perfect}, threshold=calibration.threshold(0.05), calibration=calibration, rate=0.05
    )
    smooth = found["generators"]["smooth"]
    assert smooth["auc"] < 0.01 and smooth["tpr"] == 0
    assert smooth["auc_two_sided"] > 0.95 and smooth["tpr_two_sided"] == smooth["too_high"] == 1
    assert abs(found["photographs"]["fpr_two_sided"] - 0.05) < 0.04


def test_tables_under_both_rules(one_class, tables):
    calibrated = evaluate_tables(one_class, tables["test"], {"grid": tables["fake"]})
    official = evaluate_tables(one_class, tables["test"], {"grid": tables["fake"]}, Rule(official=True))
    assert calibrated["threshold"] == one_class.calibration().threshold(0.05) and calibrated["fpr_target"] == 0.05
    assert official["threshold"] == one_class.in_sample[0.05] and official["rule"] == "official"
    assert calibrated["generators"]["grid"]["auc"] == official["generators"]["grid"]["auc"]
    other = dataclasses.replace(tables["fake"], encoder="0" * 64)
    with pytest.raises(DataError, match="grid: features of another encoder"):
        evaluate_tables(one_class, tables["test"], {"grid": other})


def test_nothing_to_evaluate():
    with pytest.raises(DataError, match="photographs: none of 2"):
        evaluate_scores([math.nan] * 2, {"a": [1.0]}, threshold=0.0)
    with pytest.raises(DataError, match="a: none of 0"):
        evaluate_scores([1.0], {"a": []}, threshold=0.0)


# --- robustness ------------------------------------------------------------------------------------------------------


def test_perturbations_do_what_they_say():
    image = Image.fromarray(photographs(1, seed=4)[0][0])
    pixels = np.asarray(image, dtype=float)
    assert PERTURBATIONS["none"](image) is image
    assert PERTURBATIONS["resize_0.5"](image).size == (20, 20)
    errors = [np.abs(np.asarray(PERTURBATIONS[f"jpeg_{q}"](image), float) - pixels).mean() for q in (95, 75, 50)]
    assert 0 < errors[0] < errors[1] < errors[2]
    blurred = np.asarray(PERTURBATIONS["blur_1"](image), dtype=float)
    assert np.abs(np.diff(blurred, axis=0)).mean() < 0.8 * np.abs(np.diff(pixels, axis=0)).mean()


def test_boxes_follow_a_change_of_size(tower, one_class):
    from thurl.forensics.exif.features import extract_features

    face = photographs(8, seed=5)[0]
    large = np.zeros((8, 100, 120, 3), np.uint8)
    large[:, 20:60, 30:70] = face
    box = (35.0, 25.0, 65.0, 55.0)
    seen = []
    report = robustness_report(
        tower,
        one_class,
        list(large),
        {"same": list(large)},
        perturbations=("none", "resize_0.5"),
        boxes={"": [box] * 8, "same": [box] * 8},
        progress=seen.append,
        limit=8,
    )
    assert seen == [8, 16, 24, 32]
    for name, factor in (("none", 1), ("resize_0.5", 2)):
        pictures = [PERTURBATIONS[name](Image.fromarray(picture)) for picture in large]
        table = extract_features(tower, pictures, [tuple(side / factor for side in box)] * 8)
        expected = evaluate_tables(one_class, table, {"same": table})
        for key, value in expected["photographs"].items():
            assert report[name]["photographs"][key] == pytest.approx(value, nan_ok=True)


def test_a_small_calibration_leaves_the_two_sided_numbers_undefined():
    from thurl.forensics.exif.calibration import Calibration

    scores = np.arange(30.0)
    calibration = Calibration.of(scores, [0.05])  # 19 are enough for one side, 39 are needed for two
    found = evaluate_scores(scores, {"a": scores - 40}, threshold=0.0, calibration=calibration, rate=0.05)
    entry = found["generators"]["a"]
    assert entry["tpr"] == 1 and entry["auc_two_sided"] > 0.9
    assert math.isnan(entry["tpr_two_sided"]) and math.isnan(entry["too_high"])
    assert math.isnan(found["photographs"]["fpr_two_sided"])


def test_the_report_without_perturbation_is_the_plain_evaluation(tower, one_class, tmp_path):
    real = list(photographs(30, seed=5)[0])
    path = tmp_path / "broken.png"
    path.write_text("no picture")
    fake = [*fakes("grid", 30, seed=6), path]
    report = robustness_report(
        tower, one_class, real, {"grid": fake}, perturbations=("none", "jpeg_50", "blur_1"), chunk=7
    )
    from thurl.forensics.exif.features import extract_features

    plain = evaluate_tables(one_class, extract_features(tower, real), {"grid": extract_features(tower, fake)})
    assert report["none"]["generators"]["grid"]["unusable"] == 1
    for group in ("photographs", "mean"):
        for name, value in plain[group].items():
            assert report["none"][group][name] == pytest.approx(value, nan_ok=True)
    assert report["jpeg_50"]["threshold"] == report["none"]["threshold"]
    assert report["jpeg_50"]["mean"] != report["none"]["mean"] != report["blur_1"]["mean"]
    with pytest.raises(UsageError, match="perturbations warp"):
        robustness_report(tower, one_class, real, {"grid": fake}, perturbations=("warp",))
