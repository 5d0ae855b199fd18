"""Where the time of a training step goes: named phases that share out the wall clock without gap or overlap.

    timer = PhaseTimer(("data", "update"))
    with timer.running():
        with phase("update"):
            with phase("data"):  # stops the clock of "update" meanwhile
                ...
        timer.step()
    timer.window()  # {"data": 0.2, "update": 1.3, "other": 0.0, "step": 1.5}

Each moment belongs to the innermost open phase, or to `other`; so the phases and `other` add up to the time that
passed, by construction. `phase` charges whichever timer is running and does nothing when none is: evaluation and
saving need not know who trains.

On a GPU the host runs ahead of the device. `CudaClock` therefore marks the borders of phases on the device's stream
and reads them once per window, after the synchronisation that logging makes anyway: a phase ends when the host has
left it and the device has done what was queued in it. Work on other streams (communication that overlaps with the
computation) is not seen. It has not run on a GPU yet.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from thurl.errors import UsageError


__all__ = ["Clock", "CudaClock", "HostClock", "PhaseTimer", "phase", "phase_rows", "phase_shares", "timed"]

OTHER, STEP = "other", "step"

MANY = 10_000
"""Marks after which they are read even though the window is still open."""


class Clock(Protocol):
    """Marks moments and tells the seconds between two of them."""

    def mark(self) -> Any: ...

    def read(self, marks: Sequence[Any]) -> list[float]:
        """Seconds from each mark to the next, one fewer than marks; may wait for the last of them."""


class HostClock:
    """Wall clock of this process."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.mark = now

    def read(self, marks: Sequence[float]) -> list[float]:
        return [after - before for before, after in zip(marks[:-1], marks[1:], strict=True)]


class CudaClock:
    """Time line of the current CUDA stream; a mark costs no synchronisation."""

    def mark(self) -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self, marks: Sequence[Any]) -> list[float]:
        marks[-1].synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in zip(marks[:-1], marks[1:], strict=True)]


class PhaseTimer:
    """Shares out the time of a run, in windows of several steps.

    Args:
        names: the phases, all of which every window reports; `other` and `step` are taken.
        clock: where the time comes from.
        whole: phases that keep the time of all phases inside them, such as an evaluation that reads data.

    Raises:
        UsageError: a name that is taken or given twice, or a `whole` that is no phase.
    """

    def __init__(self, names: Sequence[str], clock: Clock | None = None, *, whole: Sequence[str] = ()) -> None:
        if len({*names, OTHER, STEP}) != len(names) + 2 or not set(whole) <= set(names):
            raise UsageError(
                f"phases {', '.join(names)} (whole: {', '.join(whole)}): each name once, neither `{OTHER}` nor "
                f"`{STEP}`, and those of `whole` among them."
            )
        self.names, self.whole = tuple(names), frozenset(whole)
        self.clock: Clock = HostClock() if clock is None else clock
        self._open: list[tuple[str, str]] = []  # name of each open phase, and who its time belongs to
        self._begin_run()

    def _begin_run(self) -> None:
        self.steps = 0
        """Steps since `running()` or `restart()`."""
        self._totals, self._window = self._zeros(), self._zeros()
        self._window_steps = 0
        self._marks: list[Any] = []
        self._owners: list[str] = []  # of the time from a mark to the next one

    def _zeros(self) -> dict[str, float]:
        return dict.fromkeys((*self.names, OTHER), 0.0)

    @contextmanager
    def running(self) -> Iterator[PhaseTimer]:
        """The timer that `phase` charges, until the end of the block; starts anew."""
        global _current
        before = _current
        self._open = []
        self.restart()
        _current = self
        try:
            yield self
            self._mark()
            self._settle()
        finally:
            _current = before
            self._marks, self._owners = [], []  # no event outlives the run

    def restart(self) -> None:
        """Begin now: what was until here is not part of the run."""
        self._begin_run()
        self._mark()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The time inside the block, but for the phases inside it, belongs to `name`."""
        self.begin(name)
        try:
            yield
        finally:
            self.end(name)

    def begin(self, name: str) -> None:
        """As `with phase(name):` where beginning and end are in different functions.

        Raises:
            UsageError: not one of the timer's names.
        """
        if name not in self.names:
            raise UsageError(f"`{name}` is no phase of this timer; it has {', '.join(self.names)}.")
        around = self._open[-1][1] if self._open else OTHER
        self._open.append((name, around if around in self.whole else name))
        self._mark()

    def end(self, name: str) -> None:
        """Close the innermost open phase of this name, and those that an error left open in it; none: nothing."""
        if any(name == opened for opened, _ in self._open):
            while self._open.pop()[0] != name:
                pass
            self._mark()

    def step(self) -> None:
        """A training step is over."""
        self._window_steps += 1
        self.steps += 1

    def window(self) -> dict[str, float]:
        """Close the window and open the next one.

        Returns:
            seconds per step of each phase and of `other`, and their sum as `step`; empty when no step was finished,
            and then the window stays open.
        """
        self._mark()
        self._settle()
        if not self._window_steps:
            return {}
        per_step = {name: seconds / self._window_steps for name, seconds in self._window.items()}
        self._window, self._window_steps = self._zeros(), 0
        return {**per_step, STEP: sum(per_step.values())}

    def totals(self) -> dict[str, float]:
        """Seconds of each phase and of `other` since `running()` or `restart()`."""
        if self._marks:
            self._mark()
            self._settle()
        return dict(self._totals)

    def _mark(self) -> None:
        self._marks.append(self.clock.mark())
        self._owners.append(self._open[-1][1] if self._open else OTHER)
        if len(self._marks) > MANY:
            self._settle()

    def _settle(self) -> None:
        for name, seconds in zip(self._owners, self.clock.read(self._marks), strict=False):
            self._window[name] += seconds
            self._totals[name] += seconds
        self._marks, self._owners = self._marks[-1:], self._owners[-1:]


_current: PhaseTimer | None = None


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Charge the block to phase `name` of the running timer; a timer that has no such phase, or none: do nothing."""
    timer = _current
    if timer is None or name not in timer.names:
        yield
        return
    with timer.phase(name):
        yield


def timed(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: charge every call of the function to phase `name`, as `phase` does."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with phase(name):
                return function(*args, **kwargs)

        return wrapper

    return decorate


def phase_shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Share in [0, 1] of each phase, largest first, `other` last; phases that never ran are left out.

    Args:
        seconds: per phase and `other`, >= 0; an entry `step` is passed over.
    """
    parts = {name: value for name, value in seconds.items() if name != STEP and value > 0}
    total = sum(parts.values())
    order = sorted(parts, key=lambda name: (name == OTHER, -parts[name]))
    return {name: parts[name] / total for name in order}


def phase_rows(seconds: Mapping[str, float], steps: int) -> list[tuple[str, str, str]]:
    """A small table: name, share and seconds per step of each phase as texts, headings first, the whole step last.

    Args:
        seconds: in total, per phase and `other`.
        steps: number of steps they were spent on, at least 1.
    """
    shares = phase_shares(seconds)
    rows = [(name.replace("_", " "), f"{share:.1%}", f"{seconds[name] / steps:.3f}") for name, share in shares.items()]
    whole = ("whole step", "100.0%", f"{sum(seconds[name] for name in shares) / steps:.3f}")
    return [("phase", "share", "seconds per step"), *rows, whole]
