"""Metrics of edits: golden numbers of the released formulas, and what each means at its edges."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from thurl.editing.metrics import (
    accuracy_drop,
    expected_calibration_error,
    front_area,
    generalisation_rate,
    locality_rate,
    macro_average,
    official_generalisation_rate,
    pareto_front,
    success_rate,
)
from thurl.errors import DataError, UsageError


GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "vitedit_metrics.json").read_text())


def test_golden_edits():
    found = []
    for one in GOLDEN["edits"]:
        right = np.array(one["group_preds_after"]) == one["label"]
        values = {
            "SR": success_rate(right, one["edit_index"]),
            "GR_official": official_generalisation_rate(right),
            "GR_fixed": generalisation_rate(right, one["edit_index"]),
            "LR": locality_rate(one["loc_preds_before"], one["loc_preds_after"]),
        }
        assert values == pytest.approx({name: one[name] for name in values}, abs=1e-9)
        found.append(values)
    for name, mean in GOLDEN["average"].items():
        assert macro_average({"all": [one[name] for one in found]}).mean == pytest.approx(mean, abs=1e-9)


def test_generalisation_is_about_the_others():
    assert generalisation_rate([True, True, True], 1) == 100.0
    assert official_generalisation_rate([True, True, True]) == pytest.approx(200 / 3)
    assert generalisation_rate([False, False], 0) == 0.0
    assert official_generalisation_rate([False, False]) == -50.0
    assert generalisation_rate([True, False], 0) == 0.0 and generalisation_rate([True, False], 1) == 100.0
    assert math.isnan(generalisation_rate([True], 0))
    with pytest.raises(UsageError, match="picture 2"):
        success_rate([True, False], 2)


def test_locality_and_accuracy():
    assert locality_rate([1, 2, 3, 4], [1, 2, 0, 4]) == 75.0
    assert accuracy_drop([1, 2, 3], [1, 0, 0], [1, 2, 0]) == pytest.approx(0.0)
    assert accuracy_drop([1, 2], [0, 0], [1, 2]) == 100.0
    assert math.isnan(locality_rate([], []))
    with pytest.raises(UsageError, match="as long"):
        locality_rate([1, 2], [1])


def test_calibration():
    sure = np.eye(2)[[0, 0, 1, 1]]
    assert expected_calibration_error(sure, [0, 0, 1, 1]) == 0.0
    assert expected_calibration_error(sure, [1, 0, 1, 1]) == pytest.approx(25.0)
    # 0.8 sure and right in three of four: one bin, 0.05 apart.
    probabilities = np.tile([0.8, 0.2], (4, 1))
    assert expected_calibration_error(probabilities, [0, 0, 0, 1], bins=5) == pytest.approx(5.0)
    # Gaps of one bin cancel, those of two do not.
    two = np.array([[0.6, 0.4], [0.9, 0.1]])
    assert expected_calibration_error(two, [0, 1], bins=1) == pytest.approx(25.0)
    assert expected_calibration_error(two, [0, 1], bins=10) == pytest.approx(65.0)
    with pytest.raises(DataError, match="softmax"):
        expected_calibration_error([[3.0, -1.0]], [0])
    with pytest.raises(UsageError, match="bins"):
        expected_calibration_error(sure, [0])


def test_macro_average_counts_groups_not_edits():
    found = macro_average({"large": [100.0] * 9, "small": [0.0], "single": [math.nan]})
    assert (found.mean, found.groups, found.skipped) == (50.0, 2, 1)
    assert found.low == 0.0 and found.high == 100.0
    assert macro_average({"a": [1.0, 3.0]}).mean == 2.0 and math.isnan(macro_average({"a": [1.0]}).low)
    assert math.isnan(macro_average({}).mean)


def test_front():
    points = [(90.0, 50.0), (80.0, 80.0), (80.0, 70.0), (70.0, 75.0), (math.nan, 99.0), (90.0, 50.0)]
    assert pareto_front(points) == [1, 0]
    assert front_area(points) == pytest.approx((80 * 80 + 10 * 50) / 1e4)
    assert front_area(points, (75.0, 0.0)) == pytest.approx((5 * 80 + 10 * 50) / 2500)
    assert front_area([(50.0, 100.0)], (60.0, 0.0)) == 0.0
    # A dominated point changes nothing, a better one only adds.
    assert front_area([*points, (60.0, 60.0)]) == front_area(points) < front_area([*points, (95.0, 40.0)])
    with pytest.raises(UsageError, match="below 100"):
        front_area(points, (100.0, 0.0))
