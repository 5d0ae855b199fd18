"""The controller of lambda on synthetic plants: it lands below the target, stays within bounds, ignores nonsense."""

from __future__ import annotations

import math

import numpy as np
import pytest

from thurl.distillation.controller import ControlState, RateControl, controlled, first_state, reference_bits
from thurl.errors import UsageError


def run(control, *, slope, lag, offset=9.0, start=1.0, first=None, updates=120, noise=0.0, seed=0, dead=0):
    """Bits after each update of a plant `log bits -> offset + slope * log lambda` with a first-order lag."""
    rng = np.random.default_rng(seed)
    state, seen, delayed = first_state(control, start), [], []
    level = math.log(first) if first else offset + slope * state.log_lambda
    for step in range(updates):
        bits = math.exp(level + noise * rng.standard_normal())
        seen.append(math.exp(level))
        state = controlled(control, state, bits, step / updates)
        delayed.append(state.log_lambda)
        level += (offset + slope * delayed[max(0, len(delayed) - 1 - dead)] - level) / lag
    return np.array(seen), state


@pytest.mark.parametrize("slope", [0.08, 0.2, 0.5])
@pytest.mark.parametrize("lag", [3, 10, 25])
@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.5])
def test_lands_between_nine_tenths_of_the_target_and_the_target(slope, lag, ratio):
    target = ratio * math.exp(9.0)
    seen, _ = run(RateControl(target), slope=slope, lag=lag)
    assert 0.9 * target <= seen[-1] <= target
    assert seen.max() <= max(seen[0], 1.1 * target)  # no overshoot worth the name on the way


def test_noise_and_dead_time_do_not_throw_it_off():
    target = 0.7 * math.exp(9.0)
    ends = [run(RateControl(target), slope=0.2, lag=10, noise=0.01, dead=1, seed=seed)[0][-10:] for seed in range(5)]
    assert np.mean(ends) <= target and np.max(ends) <= 1.03 * target and np.min(ends) >= 0.85 * target


def test_the_control_without_feedback_misses():
    """The same plant with a constant lambda stays where it was: the test above can fail."""
    target = 0.7 * math.exp(9.0)
    seen, _ = run(RateControl(target, proportional=0.0, integral=1e-9), slope=0.2, lag=10)
    assert seen[-1] > 1.3 * target


def test_a_target_out_of_reach_ends_at_a_bound_and_recovers_at_once():
    control = RateControl(target=1.0, smallest=0.1, largest=10.0)
    _, state = run(control, slope=0.2, lag=5)
    assert state.value == pytest.approx(0.1)
    up = controlled(control, ControlState(state.log_lambda, state.error, 1.0), 0.5, 1.0)
    assert up.value > 0.1  # no wound-up integral to work off first


@pytest.mark.parametrize("bits", [math.nan, math.inf, 0.0, -3.0])
def test_a_broken_measurement_changes_nothing(bits):
    state = ControlState(0.3, 0.1, 500.0)
    assert controlled(RateControl(400.0), state, bits, 0.5) == state


def test_reference_goes_from_the_first_bits_to_the_aim():
    control = RateControl(100.0, margin=0.1, ramp=0.5)
    assert reference_bits(control, 400.0, 0.0) == pytest.approx(400.0)
    assert reference_bits(control, 400.0, 0.25) == pytest.approx(math.sqrt(400.0 * 90.0))
    assert reference_bits(control, 400.0, 0.5) == reference_bits(control, 400.0, 1.0) == pytest.approx(90.0)
    assert reference_bits(RateControl(100.0, ramp=0.0), 400.0, 0.0) == pytest.approx(98.0)


def test_one_update_changes_log_lambda_by_a_bounded_amount():
    control = RateControl(100.0, largest_change=0.5)
    state = controlled(control, ControlState(0.0, 0.0, 100.0), 1e9, 1.0)
    assert state.log_lambda == pytest.approx(-0.5)


def test_settings_are_checked_together():
    with pytest.raises(UsageError) as caught:
        RateControl(-1.0, margin=0.9, integral=0.0, smallest=2.0, largest=1.0, ramp=2.0)
    assert len(caught.value.problems) == 5
    with pytest.raises(UsageError, match="start nan"):
        first_state(RateControl(1.0), math.nan)
