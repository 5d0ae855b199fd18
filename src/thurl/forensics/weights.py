"""Names drawn with chances that are given as weights."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from thurl.messages import nearest


__all__ = ["draw_name", "weight_problems"]


def draw_name(rng: np.random.Generator, weights: Mapping[str, float]) -> str:
    """One name, with chances proportional to `weights` (numbers of 0 or more, not all 0)."""
    names = list(weights)
    chances = np.array([weights[name] for name in names], dtype=np.float64)
    return names[int(rng.choice(len(names), p=chances / chances.sum()))]


def weight_problems(name: str, weights: Mapping[str, float], known: Collection[str]) -> list[str]:
    """What is wrong with weights of some of the names `known`; `name` is what messages call them."""
    problems = [
        f"{name}: {key!r} is unknown{nearest(key, known)}; names: {', '.join(known)}"
        for key in weights
        if key not in known
    ]
    if any(not (math.isfinite(w) and w >= 0) for w in weights.values()) or not sum(weights.values()) > 0:
        problems.append(f"{name} is {dict(weights)}; it must be weights of 0 or more, at least one above 0")
    return problems
