"""Metrics of continual learning against golden numbers (1e-12), the identity of AA, ALA and AFM, and bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from thurl.continual import metrics
from thurl.errors import DataError, UsageError


GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "cldyb_metrics.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=[case["name"] for case in GOLDEN])
def test_golden(case):
    rows, expected = case["acc"], case["expected"]
    for name, function in {
        "aa": metrics.average_accuracy,
        "ala": metrics.average_learning_accuracy,
        "afm": metrics.average_forgetting,
        "afm_max": metrics.max_forgetting,
        "ar": metrics.average_retention,
        "ar_ratio": metrics.retention_ratio,
        "reward": metrics.difficulty,
    }.items():
        np.testing.assert_allclose(function(rows), expected[name], rtol=0, atol=1e-12, err_msg=name)
    whole = metrics.continual_metrics(rows)
    assert whole["aaa"] == pytest.approx(expected["aaa_final"], abs=1e-12)
    assert whole["bwt"] == pytest.approx(expected["bwt_final"], abs=1e-12)
    assert set(whole) == set(metrics.DEFINITIONS)


def random_rows(rng, tasks):
    return [list(rng.uniform(size=t + 1)) for t in range(tasks)]


@pytest.mark.parametrize("tasks", [1, 2, 5, 12])
def test_accuracy_is_learning_less_forgetting(tasks):
    rng = np.random.default_rng(tasks)
    for _ in range(50):
        rows = random_rows(rng, tasks)
        t = np.arange(1, tasks + 1)
        right = metrics.average_learning_accuracy(rows) - (t - 1) / t * metrics.average_forgetting(rows)
        np.testing.assert_allclose(metrics.average_accuracy(rows), right, rtol=0, atol=1e-12)


def test_the_reward_lies_in_the_unit_interval_and_reaches_both_ends():
    worst = [[0.0], [0.0, 0.0]]
    forgotten = [[1.0], [0.0, 0.0]]
    assert metrics.difficulty([[1.0]])[-1] == pytest.approx(1 / 3)
    assert metrics.difficulty(worst, learning_weight=1, forgetting_weight=0)[-1] == 1
    assert metrics.difficulty(forgotten, learning_weight=0, forgetting_weight=1)[-1] == 1
    rng = np.random.default_rng(0)
    for _ in range(50):
        weights = rng.uniform(size=2)
        values = metrics.difficulty(random_rows(rng, 4), learning_weight=weights[0], forgetting_weight=weights[1])
        assert ((values >= 0) & (values <= 1)).all()


def test_tasks_of_unequal_size():
    rows = [[0.5], [0.25, 1.0]]
    np.testing.assert_allclose(metrics.sample_weighted_accuracy(rows, [30, 10]), [0.5, 0.4375])
    np.testing.assert_allclose(metrics.average_accuracy(rows), [0.5, 0.625])
    with pytest.raises(UsageError, match="sizes"):
        metrics.sample_weighted_accuracy(rows, [3])


def test_an_undefined_accuracy_is_never_a_number():
    rows = [[0.5], [math.nan, 0.5], [0.5, 0.5, 0.5]]
    assert np.isnan(metrics.average_accuracy(rows)).tolist() == [False, True, False]
    assert np.isnan(metrics.average_forgetting(rows)).tolist() == [False, True, False]
    assert np.isnan(metrics.max_forgetting(rows)).tolist() == [False, True, True]
    zero = [[0.0], [math.nan, 0.5]]
    assert np.isnan(metrics.retention_ratio(zero)).tolist() == [False, True]
    assert np.isnan(metrics.difficulty([[math.nan]])).all()


def test_a_square_array_is_read_below_its_diagonal():
    square = np.array([[0.9, 7.0], [0.5, 0.8]])
    np.testing.assert_allclose(metrics.average_accuracy(square), [0.9, 0.65])


def test_bad_matrices_are_named_with_all_their_problems():
    with pytest.raises(DataError) as caught:
        metrics.accuracy_matrix([[1.5], [0.1], [0.1, 0.2, -0.3]])
    text = str(caught.value)
    assert "1.5" in text and "after task 2: 1 numbers" in text and "-0.3" in text
    with pytest.raises(DataError, match="at least one row"):
        metrics.accuracy_matrix([])
    with pytest.raises(UsageError, match="weights"):
        metrics.difficulty([[1.0]], learning_weight=0, forgetting_weight=0)
