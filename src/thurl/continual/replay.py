"""A sequence trained again from the beginning, with fresh seeds, on pictures no search has seen.

What a search saw is too good to be true: of many sequences it kept the one whose numbers were the most extreme. Only a
replay says how hard the sequence is.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from thurl.continual.class_data import ClassData
from thurl.continual.evaluator import Evaluator, Tasks
from thurl.continual.learner import Learner
from thurl.continual.metrics import continual_metrics, sample_weighted_accuracy
from thurl.continual.prefix_store import PrefixStore
from thurl.errors import UsageError


__all__ = ["agreements", "ranking_agreement", "replay", "replay_all", "transfer_matrix"]


def replay(
    data: ClassData,
    learners: Sequence[Learner],
    tasks: Tasks,
    *,
    seeds: Sequence[int],
    search_seed: int | None = None,
    store: PrefixStore | None = None,
    workers: int = 1,
) -> dict[str, Any]:
    """Accuracies and metrics on the test split.

    Args:
        data: of the pool the sequence comes from.
        learners: those of the search, others, or both.
        tasks: see `thurl.continual.sequence_file.benchmark_tasks`.
        seeds: of the learners, all different, none the seed of the search.
        search_seed: of the learners in the search; None where there was none.
        store, workers: see `Evaluator`.

    Returns:
        `seeds` and, per learner, `runs` (accuracy matrix and metrics by seed), `mean` and `std` of every metric; `std`
        is None for one seed.

    Raises:
        UsageError: seeds that are not fresh.
        LearnerError: a learner failed.
    """
    options: dict[str, Any] = {"seeds": seeds, "search_seed": search_seed, "store": store, "workers": workers}
    return replay_all(data, learners, {"": tasks}, **options)[""]


def replay_all(
    data: ClassData,
    learners: Sequence[Learner],
    sequences: Mapping[str, Tasks],
    *,
    seeds: Sequence[int],
    search_seed: int | None = None,
    store: PrefixStore | None = None,
    workers: int = 1,
) -> dict[str, dict[str, Any]]:
    """`replay` of several sequences by name, which train side by side where there are several processes."""
    problems = []
    if not seeds or len(set(seeds)) != len(seeds):
        problems.append(f"seeds are {list(seeds)}; give different ones, three or more for a spread")
    if search_seed is not None and search_seed in seeds:
        problems.append(f"seed {search_seed} is that of the search, whose results were selected; take fresh ones")
    if problems:
        raise UsageError(problems)
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {
        name: {learner.name: [] for learner in learners} for name in sequences
    }
    for seed in seeds:
        with Evaluator(data, learners, seed=seed, split="test", store=store, workers=workers) as evaluator:
            evaluator.evaluate(sequences.values())
            for name, tasks in sequences.items():
                sizes = [len(data.rows(task, "test")) for task in tasks]
                for index, learner in enumerate(learners):
                    rows = evaluator.accuracies(tasks, index)
                    metrics = continual_metrics(rows)
                    metrics["sample_weighted"] = float(sample_weighted_accuracy(rows, sizes)[-1])
                    record = {"seed": seed, "accuracies": [list(row) for row in rows], "metrics": metrics}
                    runs[name][learner.name].append(record)
    return {
        name: {"seeds": list(seeds), "learners": {learner: _summary(found) for learner, found in of.items()}}
        for name, of in runs.items()
    }


def transfer_matrix(replays: Mapping[str, Mapping[str, Any]], metric: str = "aa") -> dict[str, dict[str, float]]:
    """How hard the sequence found for one learner is for another.

    Args:
        replays: result of `replay` by the name of the learner whose sequence it is.
        metric: name in `continual_metrics`.

    Returns:
        sequence of a learner -> learner -> mean over the seeds. In the column of a learner its own sequence should be
        lowest, up to noise.
    """
    return {
        owner: {name: entry["mean"][metric] for name, entry in found["learners"].items()}
        for owner, found in replays.items()
    }


def ranking_agreement(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Kendall's tau-b of the order of the learners in two benchmarks, in [-1, 1].

    NaN with fewer than two learners in both, or where all are equal in one.
    """
    names = sorted(set(first) & set(second))
    if len(names) < 2:
        return float("nan")
    return float(kendalltau([first[name] for name in names], [second[name] for name in names]).statistic)


def agreements(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """`ranking_agreement` of every two benchmarks, by `first / second`.

    Args:
        scores: benchmark -> learner -> score.
    """
    names = list(scores)
    return {
        f"{first} / {second}": ranking_agreement(scores[first], scores[second])
        for place, first in enumerate(names)
        for second in names[place + 1 :]
    }


def _summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = runs[0]["metrics"]
    values = {name: [run["metrics"][name] for run in runs] for name in names}
    return {
        "runs": list(runs),
        "mean": {name: float(np.mean(found)) for name, found in values.items()},
        "std": {name: statistics.stdev(found) if len(found) > 1 else None for name, found in values.items()},
    }
