"""Thresholds with a known false-alarm rate: exact ranks, realised rates, both tails, drift."""

from __future__ import annotations

import logging
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from thurl.errors import DataError, UsageError
from thurl.forensics.exif.calibration import Calibration, in_sample_threshold, smallest_sample


GOLDEN = load_file(Path(__file__).resolve().parents[3] / "golden" / "exif_gmm.safetensors")


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("rate", [0.05, 0.01])
@pytest.mark.parametrize("n", [200, 1000])
def test_the_mean_realised_rate_is_the_nominal_one(n, rate, two_sided):
    rng = np.random.default_rng([n, int(rate * 100), two_sided])
    realised = []
    for _ in range(200):
        calibration = Calibration.of(rng.normal(size=n), [])
        realised.append(calibration.generated(rng.normal(size=2000), rate, two_sided=two_sided).mean())
    error = 3 * np.std(realised, ddof=1) / math.sqrt(200)
    tails = 2 if two_sided else 1
    assert rate - tails / (n + 1) - error <= np.mean(realised) <= rate + error


def test_the_official_rule_misses_it():
    """Control: the same measurement of the threshold from the scores a density was fitted to."""
    rng = np.random.default_rng(0)
    realised = []
    for _ in range(100):
        train, other = rng.normal(size=(40, 12)), rng.normal(size=(1000, 12))
        mean, precision = train.mean(0), np.linalg.inv(np.cov(train.T))

        def score(rows, mean=mean, precision=precision):
            return -np.einsum("ij,jk,ik->i", rows - mean, precision, rows - mean)

        realised.append((score(other) < in_sample_threshold(score(train), 0.05)).mean())
    assert np.mean(realised) > 0.2


def test_thresholds_are_ranks():
    calibration = Calibration.of(np.arange(99, 0, -1), [0.01, 0.05, 0.29])
    assert calibration.rates == (0.01, 0.05, 0.29)
    # floor(a * 100)-th smallest of 1..99; 0.29 * 100 is 28.999... in floating point.
    assert [calibration.threshold(rate) for rate in calibration.rates] == [1, 5, 29]
    assert calibration.threshold(0.05, two_sided=True) == 2 and calibration.upper_threshold(0.05) == 98


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.29, 0.5])
def test_p_value_and_decision_agree_for_every_score(rate, two_sided):
    rng = np.random.default_rng(0)
    calibration = Calibration.of(rng.integers(0, 60, 299), [])  # with ties
    scores = np.arange(-2, 62, 0.5)
    decided = calibration.generated(scores, rate, two_sided=two_sided)
    small = [
        Fraction(round(p * 300), 300) <= Fraction(str(rate)) for p in calibration.p_values(scores, two_sided=two_sided)
    ]
    assert decided.tolist() == small


def test_p_values():
    calibration = Calibration.of([3.0, 1.0, 2.0, 2.0], [])
    np.testing.assert_allclose(
        calibration.p_values([0.0, 1.0, 2.0, 2.5, 9.0, np.nan]), [0.2, 0.4, 0.8, 0.8, 1.0, np.nan]
    )
    np.testing.assert_allclose(calibration.p_values([0.0, 2.0, 9.0], two_sided=True), [0.4, 1.0, 0.4])
    assert Calibration.of(np.arange(30.0), []).generated([np.nan, 15.0], 0.1).tolist() == [True, False]


def test_p_values_of_photographs_are_uniform():
    rng = np.random.default_rng(1)
    for two_sided in (False, True):
        p = np.concatenate(
            [
                Calibration.of(rng.normal(size=99), []).p_values(rng.normal(size=20), two_sided=two_sided)
                for _ in range(300)
            ]
        )
        shares = np.histogram(p, bins=10, range=(0, 1.0001))[0] / p.size
        assert np.abs(shares - 0.1).max() < 0.02


@pytest.mark.parametrize(("rate", "two_sided", "n"), [(0.05, False, 19), (0.01, False, 99), (0.05, True, 39)])
def test_the_smallest_sample(rate, two_sided, n):
    assert smallest_sample(rate, two_sided=two_sided) == n
    assert Calibration.of(np.arange(n), []).threshold(rate, two_sided=two_sided) == 0
    with pytest.raises(DataError, match=f"at least {n} are needed"):
        Calibration.of(np.arange(n - 1), []).threshold(rate, two_sided=two_sided)


def test_what_cannot_be_calibrated():
    with pytest.raises(DataError, match="too few for a false-alarm rate of 0.01"):
        Calibration.of(np.arange(50), [0.05, 0.01])
    with pytest.raises(DataError, match="1 of 30 calibration scores"):
        Calibration.of([*range(29), np.nan])
    for rate in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(UsageError, match="false-alarm rate"):
            Calibration.of(np.arange(50), [rate])


def test_official_thresholds():
    for rate, key in ((0.05, "threshold_fa0.05"), (0.01, "threshold_fa0.01")):
        found = in_sample_threshold(GOLDEN["train_loglik_sorted"][::-1], rate)
        np.testing.assert_allclose(found, GOLDEN[key][0], rtol=1e-12)
        flagged = np.mean(GOLDEN["loglik_real"] < found)
        np.testing.assert_allclose(flagged, GOLDEN[f"fpr_heldout_fa{rate:g}"][0], rtol=1e-12)


def test_drift_is_seen_and_not_imagined(caplog):
    rng = np.random.default_rng(0)
    calibration = Calibration.of(rng.normal(size=500), [])
    with caplog.at_level(logging.WARNING):
        alarms = sum(calibration.drift(rng.normal(size=100), level=0.01).drifted for _ in range(300))
        quiet = len(caplog.records)
        assert alarms <= 12 and quiet == alarms  # 3 expected
        found = calibration.drift(rng.normal(size=100) - 0.6)
    assert found.drifted and found.n == 100 and "calibrate again" in caplog.text
    assert not calibration.drift(np.full(5, -9.0)).drifted  # too few to say
    assert calibration.drift([np.nan]).n == 0


def test_drift_takes_a_small_calibration_set_into_account():
    rng = np.random.default_rng(0)
    alarms = sum(
        Calibration.of(rng.normal(size=50), []).drift(rng.normal(size=2000), level=0.01).drifted for _ in range(200)
    )
    assert alarms <= 9  # 2 expected
