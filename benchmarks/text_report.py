"""The records of the text experiment's results file: accuracies per task, all measures, what CoTo changes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from text_model import CONFIGS
from text_tasks import TASKS


def methods(kind: str) -> tuple[str, str]:
    """Without and with CoTo."""
    return kind, f"{kind}_coto"


def records(found: dict[str, Any], seeds: Sequence[int], frozen: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """One record per seed. A mean that lacks a task is left out.

    Returns:
        `accuracy`: task -> method, with `frozen` for the head alone; `metric`: measure -> method, means over tasks;
        `gain`: measure -> kind, with CoTo minus without.
    """
    runs = []
    for seed in seeds:
        accuracy: dict[str, dict[str, float]] = {}
        metric: dict[str, dict[str, float]] = {}
        for method in found["sweep"]:
            units = {u["task"]: u for u in found["units"] if u["seed"] == seed and u["method"] == method}
            if set(units) != set(TASKS):
                continue
            for task in TASKS:
                accuracy.setdefault(task, {"frozen": frozen[task]["accuracy"]})[method] = units[task]["test"][
                    "accuracy"
                ]
            base = statistics.mean(frozen[task]["accuracy"] for task in TASKS)
            mean = statistics.mean(unit["test"]["accuracy"] for unit in units.values())
            metric.setdefault("accuracy", {"frozen": base})[method] = mean
            for name in ("train_loss", "cpu_seconds"):
                metric.setdefault(name, {})[method] = statistics.mean(unit[name] for unit in units.values())
        for group in ("lines", "prunes", "merges", "pairs"):
            for (method, at), values in found[group].items():
                for name, value in (_means(group, values) if at == seed else {}).items():
                    metric.setdefault(name, {})[method] = value
        runs.append({"seed": seed, "accuracy": accuracy, "metric": metric, "gain": gains(metric)})
    return runs


def _means(group: str, values: Any) -> dict[str, float]:
    """Means over the tasks of what was measured in one seed, by the names of the table."""
    mean = statistics.mean
    if group == "lines":
        return {
            f"line_{space}_{name}": mean(line[space][name] for line in values)
            for space in values[0]
            for name in ("middle", "barrier")
        }
    if group == "prunes":
        return {f"prune_{name}": mean(prune[name] for prune in values) for name in values[0]}
    if group == "merges":
        return {f"merge_{way}": mean(values[way].values()) for way in values}
    return {f"pairs_{way}": mean(one for pair in values for one in pair[way].values()) for way in values[0]}


def gains(metric: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """With CoTo minus without, per measure and kind of adapter, in one seed."""
    found: dict[str, dict[str, float]] = {}
    for name, values in metric.items():
        for kind in CONFIGS:
            plain, coto = methods(kind)
            if plain in values and coto in values:
                found.setdefault(name, {})[kind] = values[coto] - values[plain]
    return found


def missing(found: dict[str, Any], kinds: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """What a complete file would hold and this one does not."""
    lacks, absent = [], []
    for method in [method for kind in kinds for method in methods(kind)]:
        trained = sum(unit["method"] == method for unit in found["units"])
        if not trained:
            absent.append(method)
            continue
        if trained < len(seeds) * len(TASKS):
            lacks.append(f"{method}, {trained} of {len(seeds) * len(TASKS)} adapters")
        for name in ("merges", "prunes", "lines", "pairs"):
            count = sum(made == method for made, _ in found[name])
            if count < len(seeds) and not (name == "lines" and len(seeds) == 1):
                lacks.append(f"{method}, {name} of {count} of {len(seeds)} seeds")
        slow = sum(made == method and "ensemble" in merged for (made, _), merged in found["merges"].items())
        if slow < len(seeds):
            lacks.append(f"{method}, ensemble and alignment of all tasks for {slow} of {len(seeds)} seeds")
    return [*lacks, *([f"nothing of {', '.join(absent)}"] if absent else [])]
