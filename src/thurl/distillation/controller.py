"""Target size: bits in, lambda out. A PI controller on logarithms, and the reference it follows. Not in the paper.

The objective is `bits per pixel + lambda * utility`: a larger lambda buys bits. How many is not known beforehand, and
differs from data set to data set by orders of magnitude, so lambda is found while training. Bits follow lambda with a
lag of some tens of steps (Adam moves a latent by little per step); hence small gains and a reference that starts where
the bits are. Everything here is a pure function of numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from thurl.errors import UsageError


__all__ = ["ControlState", "RateControl", "controlled", "first_state", "reference_bits"]


@dataclass(frozen=True)
class RateControl:
    """Settings of the controller.

    Args:
        target: bits that must not be exceeded at the end, above 0; of what is for the caller to say, here of all
            latents together.
        margin: the controller aims this share below the target, 0 to 0.5.
        proportional: gain on the change of the error `log(reference / bits)`.
        integral: gain on the error, per update.
        largest_change: most that log lambda changes in one update.
        smallest, largest: bounds of lambda.
        ramp: share of the run in which the reference goes from the first bits to the aim, 0 to 1.

    Raises:
        UsageError: values outside their ranges, all at once.
    """

    target: float
    margin: float = 0.02
    proportional: float = 8.0
    integral: float = 2.0
    largest_change: float = 0.7
    smallest: float = 1e-6
    largest: float = 1e6
    ramp: float = 0.5

    def __post_init__(self) -> None:
        problems = []
        if not (math.isfinite(self.target) and self.target > 0):
            problems.append(f"target: {self.target} bits must be a finite number above 0")
        if not 0 <= self.margin <= 0.5:
            problems.append(f"margin: {self.margin} must be 0 to 0.5")
        if not (self.proportional >= 0 and self.integral > 0 and self.largest_change > 0):
            problems.append("gains: proportional must be 0 or more, integral and largest_change above 0")
        if not 0 < self.smallest < self.largest:
            problems.append(
                f"lambda: bounds {self.smallest:g} and {self.largest:g} must be above 0, the smaller first"
            )
        if not 0 <= self.ramp <= 1:
            problems.append(f"ramp: {self.ramp} must be 0 to 1")
        if problems:
            raise UsageError(problems)

    @property
    def aim(self) -> float:
        """Bits the controller steers to."""
        return self.target * (1 - self.margin)


@dataclass(frozen=True)
class ControlState:
    """What the controller remembers.

    Args:
        log_lambda: natural logarithm of lambda.
        error: `log(reference / bits)` of the last update, None before the first.
        first_bits: bits of the first update, where the reference starts; None before it.
    """

    log_lambda: float
    error: float | None = None
    first_bits: float | None = None

    @property
    def value(self) -> float:
        """Lambda."""
        return math.exp(self.log_lambda)


def first_state(control: RateControl, start: float) -> ControlState:
    """The controller before its first update, at lambda `start` or the nearest bound.

    Raises:
        UsageError: `start` is no finite number above 0.
    """
    if not (math.isfinite(start) and start > 0):
        raise UsageError(f"lambda: start {start} must be a finite number above 0")
    return ControlState(math.log(min(max(start, control.smallest), control.largest)))


def reference_bits(control: RateControl, first: float, progress: float) -> float:
    """Bits wanted at a point of the run: from `first` to the aim in even steps of the logarithm, then the aim.

    Args:
        first: bits at the start, above 0.
        progress: share of the run that is done, 0 to 1.
    """
    done = 1.0 if control.ramp == 0 else min(1.0, max(0.0, progress / control.ramp))
    return math.exp((1 - done) * math.log(first) + done * math.log(control.aim))


def controlled(control: RateControl, state: ControlState, bits: float, progress: float) -> ControlState:
    """One update, in velocity form, so that a bound stops the integral as well.

    Args:
        bits: measured now. A value that is not finite or not above 0 leaves the state as it is: lambda must not follow
            a broken measurement.
        progress: share of the run that is done, 0 to 1.
    """
    if not (math.isfinite(bits) and bits > 0):
        return state
    first = bits if state.first_bits is None else state.first_bits
    error = math.log(reference_bits(control, first, progress) / bits)
    before = error if state.error is None else state.error
    change = control.proportional * (error - before) + control.integral * error
    change = min(max(change, -control.largest_change), control.largest_change)
    low, high = math.log(control.smallest), math.log(control.largest)
    return ControlState(min(max(state.log_lambda + change, low), high), error, first)
