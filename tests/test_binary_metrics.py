"""Two-class metrics against scikit-learn, ties and empty sides included."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from thurl.binary_metrics import (
    average_precision,
    best_threshold,
    binary_calibration_error,
    equal_error_rate,
    roc_auc,
    tpr_at_fpr,
)


@pytest.mark.parametrize("levels", [None, 5, 1], ids=["no ties", "many ties", "all equal"])
@pytest.mark.parametrize(("n", "m"), [(40, 60), (1, 30), (30, 1)])
def test_values_are_those_of_scikit_learn(n, m, levels):
    rng = np.random.default_rng([n, m])
    high, low = rng.normal(size=n) + 0.5, rng.normal(size=m)
    if levels:
        high, low = (np.clip(np.rint(side), 0, levels - 1) for side in (high, low))
    labels, scores = np.r_[np.ones(n), np.zeros(m)], np.r_[high, low]
    assert roc_auc(high, low) == pytest.approx(roc_auc_score(labels, scores), rel=1e-12)
    assert average_precision(high, low) == pytest.approx(average_precision_score(labels, scores), rel=1e-12)


def test_extremes_and_undefined_values():
    assert roc_auc([2, 3], [0, 1]) == 1 and roc_auc([0, 1], [2, 3]) == 0 and roc_auc([1], [1]) == 0.5
    assert average_precision([2, 3], [0, 1]) == 1 and average_precision([1], []) == 1
    assert roc_auc([math.inf], [-math.inf, 0]) == 1
    for high, low in (([], [1]), ([1], []), ([math.nan], [1]), ([1], [math.nan])):
        assert math.isnan(roc_auc(high, low))
    assert math.isnan(average_precision([], [1])) and math.isnan(average_precision([1], [math.nan]))


def test_equal_error_rate_lies_on_the_curve():
    rng = np.random.default_rng(3)
    for levels in (None, 4):
        high, low = rng.normal(size=300) + 1, rng.normal(size=200)
        if levels:
            high, low = (np.clip(np.rint(side), 0, levels - 1) for side in (high, low))
        alarms, found, _ = roc_curve(np.r_[np.ones(300), np.zeros(200)], np.r_[high, low], drop_intermediate=False)
        rate = equal_error_rate(high, low)
        assert np.interp(rate, alarms, found) == pytest.approx(1 - rate, abs=1e-9)
        assert equal_error_rate(-low, -high) == pytest.approx(rate, abs=1e-9)
    assert equal_error_rate([2, 3], [0, 1]) == 0 and equal_error_rate([0, 1], [2, 3]) == 1
    assert equal_error_rate([1], [1]) == 0.5 and math.isnan(equal_error_rate([1], []))


def test_detections_at_a_rate_of_false_alarms():
    low = np.arange(100.0)
    assert tpr_at_fpr([98.5, 99.5, 50, 99], low) == 0.75  # one photograph of a hundred may be taken for positive
    assert tpr_at_fpr([98, 97], low) == 0.0 and tpr_at_fpr([98, 97], low, 0.02) == 0.5
    assert math.isnan(tpr_at_fpr([1], low[:99])) and math.isnan(tpr_at_fpr([], low))


def test_best_threshold_has_the_largest_balanced_accuracy():
    rng = np.random.default_rng(5)
    high, low = rng.normal(size=40) + 1, rng.normal(size=90)
    found = best_threshold(high, low)
    right = lambda at: (high >= at).mean() + (low < at).mean()  # noqa: E731
    assert right(found) == max(right(at) for at in np.r_[high, low, 9])
    assert best_threshold(np.full(99, 0.9), [0.8]) == pytest.approx(0.85)
    assert best_threshold([2, 3], [0, 1]) == 1.5 and best_threshold([0], [0]) == 0
    assert math.isnan(best_threshold([], [1]))


def test_calibration_error_of_a_probability():
    assert binary_calibration_error([0.2] * 10, [1, 1] + [0] * 8) == pytest.approx(0)
    assert binary_calibration_error([0.9] * 10, [1] * 5 + [0] * 5) == pytest.approx(0.4)
    # Too high for one class and too low for the other: nothing cancels.
    assert binary_calibration_error([0.9, 0.1], [0, 1]) == pytest.approx(0.9)
    assert binary_calibration_error([1.0, 0.0], [1, 0]) == 0 and math.isnan(binary_calibration_error([], []))
