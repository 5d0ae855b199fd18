"""Which set is shipped: the best on held-out training pictures among those within the size."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from thurl.errors import DataError
from thurl.recipe.distill_coding import Coded


__all__ = ["Candidate", "Choice", "choose"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A set that could be shipped.

    Args:
        name: `joint`, `checkpoint-N` or `warm_up`.
        coded: its integers, bits and pictures.
    """

    name: str
    coded: Coded


@dataclass(frozen=True)
class Choice:
    """What is shipped, and why.

    Args:
        chosen: the set.
        held_out: accuracy on the held-out pictures of every candidate that could be chosen, as `judged` gives it.
        within_target: whether `chosen` is within the size; True without one.
    """

    chosen: Candidate
    held_out: dict[str, dict[str, Any]]
    within_target: bool


def choose(candidates: Sequence[Candidate], target: float | None, judge: Callable[[Coded], dict[str, Any]]) -> Choice:
    """The best candidate within the size, the one with fewer bits on a tie; the smallest if none is within it.

    Without a size the limit is that of the candidate `joint`: what it is compared with may have no more bits.

    Args:
        candidates: with names of their own.
        target: bits per class.
        judge: a set to its accuracy on the held-out pictures, with the key `mean`.

    Raises:
        DataError: no candidate has an accuracy, since every network diverged on it.
    """
    bits = {candidate.name: candidate.coded.bits_per_class for candidate in candidates}
    limit = target
    if limit is None:
        limit = bits.get("joint", math.inf)
    fitting = [candidate for candidate in candidates if bits[candidate.name] <= limit]
    if not fitting:
        smallest = min(candidates, key=lambda candidate: bits[candidate.name])
        logger.warning(
            "No set is within %.0f bits per class; the smallest, `%s` with %.0f, is taken",
            *(limit, smallest.name, bits[smallest.name]),
        )
        return Choice(smallest, {smallest.name: judge(smallest.coded)}, within_target=False)
    held_out = {candidate.name: judge(candidate.coded) for candidate in fitting}
    usable = [candidate for candidate in fitting if math.isfinite(held_out[candidate.name]["mean"])]
    if not usable:
        raise DataError("every network that was trained on a candidate diverged; lower `evaluation.learning_rate`")
    chosen = max(usable, key=lambda candidate: (held_out[candidate.name]["mean"], -bits[candidate.name]))
    shown = ", ".join(
        f"{name} {100 * entry['mean']:.1f} % at {bits[name]:.0f} bits per class" for name, entry in held_out.items()
    )
    logger.info("On held-out pictures: %s. Taken: %s", shown, chosen.name)
    return Choice(chosen, held_out, within_target=True)
