"""Score, means and identity rule: golden values of the official script, the edges of the rules, undefined values."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from thurl.iqa.face_restoration.protocol import (
    NTIRE2025,
    TERMS,
    identity_passes,
    mean_by_dataset,
    overall_means,
    score_terms,
    validity,
    weighted_score,
)


GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "ntire_score_tiny.json").read_text())
NAMES = {
    "NIQE": "niqe",
    "CLIP_IQA": "clipiqa",
    "MANIQA": "maniqa",
    "MUSIQ": "musiq",
    "QALIGN": "qalign",
    "FID": "fid",
    "ID_Sim": "id_sim",
}


@pytest.mark.parametrize("case", GOLDEN["score_formula"], ids=lambda case: str(case["score"]))
def test_score_is_the_official_one(case):
    score = weighted_score({NAMES[name]: value for name, value in case["metrics"].items()})
    assert score.total == pytest.approx(case["score"], rel=1e-9)
    assert score.terms == pytest.approx({NAMES[n]: v for n, v in case["components"].items()}, rel=1e-9)
    assert score.missing == tuple(name for name in TERMS if name not in score.terms)
    assert score.label == ("6 of 6" if "QALIGN" in case["metrics"] else "partial (5 of 6)")


def test_means_are_the_official_ones():
    golden = GOLDEN["aggregation"]
    rows = list(golden["per_image"].values())
    weights = {name: face.images for name, face in NTIRE2025.items()}
    assert weights == golden["dataset_weights"]
    overall = {"fid": golden["fid"]}
    for official, ours in NAMES.items():
        if official == "FID":
            continue
        means = mean_by_dataset([row["Dataset"] for row in rows], [row[official] for row in rows])
        for dataset, (mean, count) in means.items():
            assert mean == pytest.approx(golden["expected"][dataset][official], rel=1e-9)
            assert count == sum(row["Dataset"] == dataset for row in rows)
        overall[ours] = overall_means(means, weights)
        assert overall[ours] == pytest.approx(golden["expected"]["All"][official], rel=1e-9)
    score = weighted_score(overall)
    assert score.total == pytest.approx(golden["expected"]["Weighted Score"]["Total"], rel=1e-9)
    for official, ours in NAMES.items():
        if ours in score.terms:
            assert score.terms[ours] == pytest.approx(golden["expected"]["Weighted Score"][official], rel=1e-9)


def test_identity_failures_are_the_official_ones_with_equality_passing():
    golden = GOLDEN["aggregation"]
    assert {name: face.threshold for name, face in NTIRE2025.items()} == golden["thresholds"]
    rows = golden["per_image"].values()
    passes = [identity_passes(row["ID_Sim"], NTIRE2025[row["Dataset"]].threshold) for row in rows]
    assert any(row["ID_Sim"] == NTIRE2025[row["Dataset"]].threshold for row in rows)
    for dataset in NTIRE2025:
        failed = sum(p is False for p, row in zip(passes, rows, strict=True) if row["Dataset"] == dataset)
        assert failed == golden["expected"][dataset]["low_ID_Sim"]
    assert validity(passes).failures == golden["expected"]["All"]["low_ID_Sim"]


@pytest.mark.parametrize(("failures", "valid"), [(0, True), (10, True), (11, False)])
def test_ten_failures_are_valid_and_eleven_are_not(failures, valid):
    assert validity([False] * failures + [True] * (450 - failures)).valid is valid


def test_unchecked_faces_leave_the_rule_open_unless_it_is_broken_already():
    assert validity([True] * 449 + [None]).valid is None
    assert validity([True] * 440, missing=10).valid is None
    assert validity([False] * 11 + [None] * 439).valid is False
    counted = validity([True, False, None], missing=2)
    assert (counted.failures, counted.checked, counted.unchecked) == (1, 2, 3)


def test_an_undefined_mean_gives_an_undefined_score_not_a_zero_term():
    terms = score_terms({"niqe": math.nan, "musiq": 50.0})
    assert math.isnan(terms["niqe"]) and terms["musiq"] == 0.5
    assert math.isnan(weighted_score({"niqe": math.nan, "musiq": 50.0}).total)
    assert math.isnan(weighted_score({}).total)


def test_the_formula_of_the_means_is_not_the_mean_of_the_formula():
    single = [weighted_score({"niqe": value}).total for value in (2.0, 20.0)]
    assert weighted_score({"niqe": 11.0}).total == 0.0
    assert sum(single) / 2 == pytest.approx(0.4)


def test_values_beyond_the_nominal_range_are_taken_as_they_are():
    assert weighted_score({"niqe": -1.0}).total == pytest.approx(1.1)
    assert weighted_score({"clipiqa": 1.2}).total == pytest.approx(1.2)


def test_free_weights_are_the_mean_over_all_pictures_and_fixed_ones_need_every_set():
    means = mean_by_dataset(["a", "a", "a", "b"], [1.0, 2.0, math.nan, 9.0])
    assert means == {"a": (1.5, 2), "b": (9.0, 1)}
    assert overall_means(means) == pytest.approx(4.0)
    assert overall_means(means, {"a": 1, "b": 1}) == pytest.approx(5.25)
    assert math.isnan(overall_means(means, {"a": 1, "c": 1}))
    assert mean_by_dataset(["a"], [math.inf]) == {"a": (math.inf, 1)}


def test_undefined_similarities_neither_pass_nor_fail():
    assert identity_passes(math.nan, 0.5) is None
    assert identity_passes(0.5, None) is None
    assert identity_passes(0.5, 0.5) is True
    assert identity_passes(0.4999, 0.5) is False
