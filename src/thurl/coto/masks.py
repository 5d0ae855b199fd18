"""Which groups of adapters are on in a step: a pure function of (seed, step), no torch, no global random state.

The same on every process and after every resume, because nothing but the arguments enters. Paper: arXiv 2506.05713;
"at least one active" as in its released callback, which redraws until a group is on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, get_args

from thurl.errors import UsageError


__all__ = ["MAX_ATTEMPTS", "MinActive", "draw_mask", "expected_marginal", "uniform"]

MinActive = Literal["resample", "force", "allow_empty"]

MAX_ATTEMPTS = 64
"""Redraws before a group is forced on; the released callback redraws for ever at p = 0."""


def uniform(seed: int, step: int, attempt: int, group: int) -> float:
    """Number in [0, 1), a multiple of 2^-53: the first 53 bits of SHA-256 of "coto|seed|step|attempt|group"."""
    digest = hashlib.sha256(f"coto|{seed}|{step}|{attempt}|{group}".encode("ascii")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53


def draw_mask(
    p: float | Sequence[float],
    groups: int,
    *,
    seed: int = 0,
    step: int = 0,
    policy: MinActive = "resample",
    towers: Sequence[str | None] | None = None,
) -> tuple[tuple[bool, ...], int]:
    """Each group on with probability p, or with one of its own, and what to do if none is.

    - "resample" (released code): draw again, at most 64 times, then as "force". The marginal is p / (1 - (1-p)^G).
    - "force": keep the draw and switch on the group nearest to being on: the smallest number, or with different
      probabilities the one that lies least above its own.
    - "allow_empty": plain Bernoulli; the caller skips a step in which nothing is on.

    Args:
        p: probability in [0, 1]; or one per group (length G).
        groups: number of groups G, at least 1.
        seed, step: integers that, with the arguments above, determine the mask.
        policy: see above.
        towers: tower of each group (length G), None for a group of no tower. If given, every tower needs an active
            group, not only the whole.

    Returns:
        (mask, attempt): mask of G bools; attempt is the number of redraws, -1 where the redraws ran out and always
        under "force".

    Raises:
        UsageError: no groups, an unknown policy, `p` or `towers` of another length, `towers` with "allow_empty".
    """
    if groups < 1:
        raise UsageError(f"There are {groups} groups; a mask needs at least one.")
    if policy not in get_args(MinActive):
        raise UsageError(f"`min_active` is {policy!r}; it is one of {', '.join(get_args(MinActive))}.")
    if towers is not None and policy == "allow_empty":
        raise UsageError("`min_active_per_tower` forbids what `min_active='allow_empty'` allows; drop one of them.")
    if towers is not None and len(towers) != groups:
        raise UsageError(f"{len(towers)} towers for {groups} groups; each group has one.")
    chances = [float(p)] * groups if isinstance(p, int | float) else list(p)
    if len(chances) != groups:
        raise UsageError(f"{len(chances)} probabilities for {groups} groups; each group has one.")
    needed = [list(range(groups))]
    if towers is not None:
        names = dict.fromkeys(tower for tower in towers if tower is not None)
        needed += [[index for index in range(groups) if towers[index] == name] for name in names]

    first = [uniform(seed, step, 0, group) for group in range(groups)]
    mask = [number < chance for number, chance in zip(first, chances, strict=True)]
    if policy == "allow_empty" or _fulfils(mask, needed):
        return tuple(mask), -1 if policy == "force" else 0
    if policy == "resample":
        for attempt in range(1, MAX_ATTEMPTS):
            drawn = [uniform(seed, step, attempt, group) < chances[group] for group in range(groups)]
            if _fulfils(drawn, needed):
                return tuple(drawn), attempt
    for members in reversed(needed):  # towers first: with one of theirs on, the whole is not empty any more
        if not any(mask[index] for index in members):
            mask[min(members, key=lambda index: (first[index] - chances[index], first[index]))] = True
    return tuple(mask), -1


def expected_marginal(p: float, groups: int) -> float:
    """Probability that a given group is on under "resample": p / (1 - (1 - p)^G), not p; 1/G in the limit p = 0."""
    return p / (1.0 - (1.0 - p) ** groups) if p > 0 else 1.0 / groups


def _fulfils(mask: Sequence[bool], needed: Sequence[Sequence[int]]) -> bool:
    return all(any(mask[index] for index in members) for members in needed)
