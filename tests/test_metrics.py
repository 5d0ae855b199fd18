from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.stats import pearsonr, spearmanr

from thurl.metrics import (
    accuracy_2afc,
    bootstrap_interval,
    fit_logistic,
    per_group,
    plcc,
    plcc_logistic,
    srcc,
)


GOLDEN = Path(__file__).parent / "golden" / "vqr1_scope_metrics.json"
CASES = json.loads(GOLDEN.read_text())["metric_cases"]


def same(value: float, expected: float | None) -> bool:
    return math.isnan(value) if expected is None else abs(value - expected) < 1e-9


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_golden(case):
    assert same(srcc(case["pred"], case["mos"]), case["srcc"])
    assert same(plcc(case["pred"], case["mos"]), case["plcc"])
    if "ref" in case:
        mean, used = per_group(srcc, case["pred"], case["mos"], case["ref"])
        assert same(mean, case["srcc_per_reference_mean"]) and used == case["references_used"]
        mean, used = per_group(plcc, case["pred"], case["mos"], case["ref"])
        assert same(mean, case["plcc_per_reference_mean"]) and used == case["references_used"]


def test_golden_has_every_kind_of_case():
    assert any("ref" in case for case in CASES) and any(case["srcc"] is None for case in CASES)


def test_against_scipy_with_ties():
    rng = np.random.default_rng(0)
    pred, mos = rng.integers(0, 5, 50).astype(float), rng.normal(size=50).round(1)
    assert srcc(pred, mos) == pytest.approx(spearmanr(pred, mos).statistic, abs=1e-12)
    assert plcc(pred, mos) == pytest.approx(pearsonr(pred, mos).statistic, abs=1e-12)


@pytest.mark.parametrize("metric", [srcc, plcc, plcc_logistic])
@pytest.mark.parametrize(
    ("pred", "mos"),
    [
        ([], []),
        ([1.0], [2.0]),
        ([3.0] * 8, list(range(8))),
        (list(range(8)), [3.0] * 8),
        ([0.1 + 0.2] * 4 + [0.3] * 4, list(range(8))),  # equal up to rounding
        ([1.0, 2.0, math.nan, 4.0, 5.0, 6.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        ([1.0, 2.0, math.inf, 4.0, 5.0, 6.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    ],
)
def test_undefined_is_nan(metric, pred, mos):
    assert math.isnan(metric(pred, mos))


@pytest.mark.parametrize("metric", [srcc, plcc, plcc_logistic])
def test_length_mismatch(metric):
    with pytest.raises(ValueError, match="equal length"):
        metric([1.0, 2.0], [1.0])


def test_huge_and_tiny_values_do_not_overflow():
    mos = np.arange(6.0)
    assert plcc(mos * 1e200, mos) == pytest.approx(1.0)
    assert plcc(mos * 1e-200, mos) == pytest.approx(1.0)


def test_logistic_recovers_its_own_curve_on_any_scale():
    rng = np.random.default_rng(1)
    pred = rng.uniform(0, 1000, 300)
    mos = 40 / (1 + np.exp(-0.02 * (pred - 400))) + 0.01 * pred - 7
    fit = fit_logistic(pred, mos)
    assert fit.ok and fit.plcc > 0.999999 > plcc(pred, mos) + 0.01
    np.testing.assert_allclose(fit(pred), mos, atol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_logistic_is_at_least_as_good_as_scipy_and_as_raw(seed):
    rng = np.random.default_rng(seed)
    pred = rng.uniform(1, 5, 120)
    mos = 100 / (1 + np.exp(-2 * (pred - 3.4))) + rng.normal(0, 8, 120)

    def curve(x, b1, b2, b3, b4, b5):
        return b1 * (0.5 - 1 / (1 + np.exp(b2 * (x - b3)))) + b4 * x + b5

    start = [np.ptp(mos), 1.0, pred.mean(), 0.0, mos.mean()]
    known, _ = curve_fit(curve, pred, mos, p0=start, maxfev=20000)
    expected = pearsonr(curve(pred, *known), mos).statistic
    assert plcc_logistic(pred, mos) >= expected - 1e-6
    assert plcc_logistic(pred, mos) >= plcc(pred, mos) - 1e-12


def test_logistic_loses_the_sign_and_says_when_it_fails():
    pred = np.linspace(1, 5, 40)
    assert plcc_logistic(-pred, pred) == pytest.approx(1.0) and plcc(-pred, pred) == pytest.approx(-1.0)
    fit = fit_logistic([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
    assert not fit.ok and "at least 6" in fit.reason and np.isnan(fit([1.0])).all()


def test_per_group_leaves_out_undefined_groups():
    pred, mos = [1, 2, 3, 9, 5, 5], [1, 2, 3, 9, 1, 2]
    assert per_group(srcc, pred, mos, ["a", "a", "a", "b", "c", "c"]) == (pytest.approx(1.0), 1)
    mean, used = per_group(srcc, pred, mos, list("abcdef"))
    assert math.isnan(mean) and used == 0
    with pytest.raises(ValueError, match="one per item"):
        per_group(srcc, pred, mos, ["a"])


def test_bootstrap_contains_the_value_and_depends_only_on_the_seed():
    rng = np.random.default_rng(2)
    mos = rng.normal(size=80)
    pred = mos + rng.normal(size=80)
    low, high = bootstrap_interval(srcc, pred, mos, n=300, seed=4)
    assert low < srcc(pred, mos) < high and high - low < 0.5
    assert (low, high) == bootstrap_interval(srcc, pred, mos, n=300, seed=4)
    assert (low, high) != bootstrap_interval(srcc, pred, mos, n=300, seed=5)


def test_bootstrap_by_group_is_wider_when_items_of_a_group_move_together():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(8), 25)
    mos = rng.normal(size=8)[groups] + 0.05 * rng.normal(size=200)
    pred = mos + rng.normal(size=8)[groups]
    by_item = bootstrap_interval(srcc, pred, mos, n=300)
    by_group = bootstrap_interval(srcc, pred, mos, groups=list(groups), n=300)
    assert np.ptp(by_group) > 1.5 * np.ptp(by_item)


def test_bootstrap_of_the_mean_inside_groups():
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(12), 8)
    mos = rng.normal(size=96)
    pred = mos + 30 * groups  # perfect inside every group, useless over all
    low, high = bootstrap_interval(srcc, pred, mos, groups=list(groups), within_groups=True, n=100)
    assert (low, high) == (pytest.approx(1.0), pytest.approx(1.0))
    assert abs(srcc(pred, mos)) < 0.5


def test_bootstrap_undefined_and_wrong_arguments():
    assert np.isnan(bootstrap_interval(srcc, [1.0], [1.0])).all()
    assert np.isnan(bootstrap_interval(srcc, [2.0] * 5, [1, 2, 3, 4, 5], n=20)).all()
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval(srcc, [1.0, 2.0], [1.0, 2.0], level=95)
    with pytest.raises(ValueError, match="groups"):
        bootstrap_interval(srcc, [1.0, 2.0], [1.0, 2.0], within_groups=True)


def test_2afc():
    assert accuracy_2afc([2, 1, 3], [1, 2, 3], [1.0, 0.25, 0.9]) == pytest.approx((1 + 0.75 + 0.5) / 3)
    assert math.isnan(accuracy_2afc([], [], []))
    with pytest.raises(ValueError, match="shares"):
        accuracy_2afc([1.0], [2.0], [1.5])
