"""The records of the text experiment's results file: per seed, measure -> what -> method -> mean over tasks."""

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
    """One record per seed: measure -> what -> method -> mean over tasks. A mean that lacks a task is left out."""
    runs = []
    for seed in seeds:
        run: dict[str, Any] = {"seed": seed, "accuracy": {}, "train_loss": {}, "cpu_seconds": {}}
        for method in found["sweep"]:
            units = {u["task"]: u for u in found["units"] if u["seed"] == seed and u["method"] == method}
            if set(units) != set(TASKS):
                continue
            for task in TASKS:
                run["accuracy"].setdefault(task, {"frozen": frozen[task]["accuracy"]})
                run["accuracy"][task][method] = units[task]["test"]["accuracy"]
            mean = run["accuracy"].setdefault(
                "mean", {"frozen": statistics.mean(frozen[task]["accuracy"] for task in TASKS)}
            )
            mean[method] = statistics.mean(unit["test"]["accuracy"] for unit in units.values())
            for name in ("train_loss", "cpu_seconds"):
                run[name][method] = statistics.mean(unit[name] for unit in units.values())
        for (method, at), lines in found["lines"].items():
            for space in lines[0] if at == seed else ():
                for name in ("middle", "barrier"):
                    value = statistics.mean(line[space][name] for line in lines)
                    run.setdefault("line", {}).setdefault(f"{space}_{name}", {})[method] = value
        for (method, at), prunes in found["prunes"].items():
            for name in prunes[0] if at == seed else ():
                value = statistics.mean(prune[name] for prune in prunes)
                run.setdefault("prune", {}).setdefault(name, {})[method] = value
        for (method, at), merged in found["merges"].items():
            for way in merged if at == seed else ():
                value = statistics.mean(merged[way].values())
                run.setdefault("merge", {}).setdefault(way, {})[method] = value
        for (method, at), pairs in found["pairs"].items():
            for way in pairs[0] if at == seed else ():
                value = statistics.mean(value for pair in pairs for value in pair[way].values())
                run.setdefault("pairs", {}).setdefault(way, {})[method] = value
        run["gain"] = gains(run)
        runs.append(run)
    return runs


def gains(run: dict[str, Any]) -> dict[str, dict[str, float]]:
    """With CoTo minus without, per measure and kind of adapter, in one seed."""
    measures = {"accuracy": run["accuracy"].get("mean", {})}
    for group in ("line", "merge", "pairs", "prune"):
        measures.update({f"{group}_{name}": values for name, values in run.get(group, {}).items()})
    measures["train_loss"] = run["train_loss"]
    found: dict[str, dict[str, float]] = {}
    for name, values in measures.items():
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
            lacks.append(f"{trained} of {len(seeds) * len(TASKS)} adapters of {method}")
        for name in ("merges", "prunes", "lines", "pairs"):
            count = sum(made == method for made, _ in found[name])
            if count < len(seeds) and not (name == "lines" and len(seeds) == 1):
                lacks.append(f"{name} of {method} for {count} of {len(seeds)} seeds")
        slow = sum(made == method and "ensemble" in merged for (made, _), merged in found["merges"].items())
        if slow < len(seeds):
            lacks.append(f"ensemble and alignment of all tasks, {method}, for {slow} of {len(seeds)} seeds")
    return [*lacks, *([f"nothing of {', '.join(absent)}"] if absent else [])]
