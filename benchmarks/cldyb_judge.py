"""What the CLDyB benchmarks report of a sequence, and the bars they hold it to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thurl.continual.class_data import ClassData
from thurl.continual.evaluator import Evaluator, Tasks
from thurl.continual.metrics import continual_metrics
from thurl.continual.prefix_store import PrefixStore
from thurl.training.results import read_results, write_results


METRICS = ("aa", "aaa", "ala", "afm", "ar")
Metrics = dict[str, dict[str, float]]
"""Learner to metric to value."""


class Judge:
    """Trains sequences again with fresh seeds and reads them on the test split.

    Args:
        learners: those of the search first, then those held out.
        searched: how many of them the search used.
    """

    def __init__(
        self,
        data: ClassData,
        learners: Sequence[Any],
        searched: int,
        seeds: Sequence[int],
        store: PrefixStore,
        workers: int = 1,
    ) -> None:
        self.names = [learner.name for learner in learners]
        self.searched = searched
        self.evaluators = [
            Evaluator(data, learners, seed=seed, split="test", store=store, workers=workers) for seed in seeds
        ]

    def close(self) -> None:
        for evaluator in self.evaluators:
            evaluator.close()

    def metrics(
        self, sequences: Sequence[Tasks], *, seeds: int | None = None, learners: Sequence[int] | None = None
    ) -> Metrics:
        """After the last task, per learner; means over the first `seeds` seeds and the sequences."""
        chosen = range(len(self.names)) if learners is None else learners
        found: dict[str, list[dict[str, float]]] = {self.names[index]: [] for index in chosen}
        for evaluator in self.evaluators[:seeds]:
            evaluator.evaluate(sequences, chosen)
            for tasks in sequences:
                for index in chosen:
                    found[self.names[index]].append(continual_metrics(evaluator.accuracies(tasks, index)))
        return {
            name: {metric: float(np.mean([values[metric] for values in entries])) for metric in METRICS}
            for name, entries in found.items()
        }


def means(metrics: Metrics, searched: int) -> dict[str, float]:
    """Over the first `searched` learners, those of the search, and AA of those held out."""
    entries = list(metrics.values())
    found = {metric: float(np.mean([values[metric] for values in entries[:searched]])) for metric in METRICS}
    return {**found, "held_out_aa": float(np.mean([values["aa"] for values in entries[searched:]]))}


def margins(builders: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """What the bars P1 to P5 are about, of the builders that are there; larger is better."""
    aa = {name: values["aa"] for name, values in builders.items()}
    found = {
        "p1": aa["random"] - aa["search"],
        "p2": aa["best_of_random"] - aa["search"],
        "p3": builders["random"]["held_out_aa"] - builders["search"]["held_out_aa"],
    }
    for name, builder in (("p4_candidates", "best_of_candidates"), ("p4_myopic", "myopic")):
        if builder in aa:
            found[name] = aa[builder] - aa["search"]
    if "easiest" in aa:
        found["p5"] = aa["easiest"] - aa["random"]
    return found


def own_margin(transfer: Mapping[str, Mapping[str, float]]) -> float:
    """P6: how far the worst learner's own sequence is from the lowest AA it has on any, as a negative number."""
    return -max(transfer[name][name] - min(row[name] for row in transfer.values()) for name in transfer)


def mean_transfer(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The mean of the runs' `transfer`."""
    names = list(runs[0]["transfer"])
    return {a: {b: float(np.mean([run["transfer"][a][b] for run in runs])) for b in names} for a in names}


def missed(values: Mapping[str, float], bars: Mapping[str, float]) -> list[str]:
    """A line for each value below its bar; an undefined one is below."""
    return [f"{name}: {values[name]:.3f} is below {bar}" for name, bar in bars.items() if not values[name] >= bar]


def mean_margins(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the runs, and as `p1_each` the lowest P1."""
    found = {name: float(np.mean([run["margins"][name] for run in runs])) for name in runs[0]["margins"]}
    return {**found, "p1_each": min(run["margins"]["p1"] for run in runs)}


def add_run(
    path: Path,
    recipe: str,
    record: Mapping[str, Any],
    bars: Mapping[str, float],
    values: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, float]],
) -> list[str]:
    """Write a record into a results file beside those of other seeds, and say which bars all of them miss.

    The file is read again each time: several commands, one per seed, may run side by side.
    """
    others = read_results(path)["runs"] if path.is_file() else []
    runs = [*(other for other in others if other["seed"] != record["seed"]), record]
    runs.sort(key=lambda run: run["seed"])
    failures = missed(values(runs), bars)
    write_results(path, recipe=recipe, runs=runs, bars=bars, failures=failures)
    return failures


def tell(seed: int, line: str) -> None:
    """Says how far a run is."""
    sys.stdout.write(f"seed {seed}: {line}\n")
    sys.stdout.flush()
