"""The two result files, from what is finished."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from coto_digits.questions import (
    BAR,
    FACTORS,
    METHODS,
    REPEATS,
    TASKS,
    VARIANTS,
    Plan,
    alone,
    bar_record,
    chosen,
    long_setting,
    matched_setting,
    measured,
    merged,
    rate_of,
    seconds,
    swept_setting,
    tried,
    validated,
    variant,
)
from coto_digits.training import Setting, Store, Unfinished
from thurl.training.results import write_results


RECIPE = "benchmarks/coto.py"


def write_fresh(store: Store, plan: Plan, path: Path) -> list[dict[str, Any]]:
    """`coto.json`: one record per fresh seed with all that is finished of it."""
    runs = [record for record in (fresh_record(store, plan, seed) for seed in plan.seeds) if len(record) > 1]
    if runs:
        write_results(
            path,
            recipe=RECIPE,
            overrides={"steps": plan.steps},
            runs=runs,
            bar=BAR,
            passed=sum(not run["failures"] for run in runs if "failures" in run),
            learning_rates=rates(store, plan),
            again=_finished(lambda: vars(chosen(store, plan))),
            forward=Counter(_forward(path) for path in store.folder.glob("adapters/*/*.json")),
        )
    return runs


def fresh_record(store: Store, plan: Plan, seed: int) -> dict[str, Any]:
    """Everything of one fresh seed, by question and metric."""
    record: dict[str, Any] = {"seed": seed}
    record |= _finished(lambda: bar_record(store, seed, plan.steps)) or {}
    swept: dict[str, Callable[[str], Setting]] = {
        f"swept {steps}": lambda method, steps=steps: swept_setting(store, plan, method, steps)
        for steps in plan.lengths
    }
    swept["long"] = lambda method: long_setting(store, plan, method)
    for name, setting in swept.items():
        for method in METHODS:
            _add_column(record, name, method, lambda: alone(store, setting(method), seed))  # noqa: B023
            _add_column(record, name, method, lambda: merged(store, plan, setting(method), seed))  # noqa: B023
            _add_column(record, f"pairs {name}", method, lambda: measured(store, setting(method), seed))  # noqa: B023
    # One more column each beside LoRA and CoTo.
    more = {"coto longer": matched_setting, "coto chosen": chosen}
    for column, setting_of in more.items():
        name = f"swept {plan.steps}"
        _add_column(record, name, column, lambda: alone(store, setting_of(store, plan), seed))  # noqa: B023
        _add_column(record, name, column, lambda: merged(store, plan, setting_of(store, plan), seed))  # noqa: B023
    return record


def _add_column(record: dict[str, Any], name: str, column: str, ask: Callable[[], dict[str, float]]) -> None:
    for metric, value in (_finished(ask) or {}).items():
        record.setdefault(name, {}).setdefault(metric, {})[column] = value


def _forward(path: Path) -> str:
    return json.loads(path.read_text(encoding="utf-8"))["forward"]


def rates(store: Store, plan: Plan) -> dict[str, float]:
    """Swept learning rates."""
    found = {}
    for steps in plan.lengths:
        for method, task in product(METHODS, TASKS):
            rate = _finished(lambda: rate_of(store, plan, method, steps, task))  # noqa: B023
            if rate:
                found[f"{task} {method} {steps}"] = rate
    return found


def write_explored(store: Store, plan: Plan, path: Path) -> None:
    """`coto_explored.json`: one record per exploration seed, and how many adapters were trained for it."""
    runs = []
    for seed in plan.explore_seeds:
        sweep = {
            f"{task}, {method}, {steps} steps": _sweep(store, seed, method, steps, task)
            for task, steps, method in product(TASKS, plan.lengths, METHODS)
        }
        record = {"sweep": _filled(sweep)}
        for steps in plan.lengths:
            rows = {name: _tried(store, plan, seed, name, steps) for name in VARIANTS}
            record[f"tried {steps}"] = _filled(rows)
        if any(record.values()):
            runs.append({"seed": seed, **record})
    times = [found for i in range(REPEATS) if (found := _finished(lambda: seconds(store, plan, i)))]  # noqa: B023
    if runs:
        trained = len(list(store.folder.glob("adapters/*/*.json")))
        write_results(
            path,
            recipe=RECIPE,
            overrides={"steps": plan.steps},
            runs=runs,
            adapters_trained=trained,
            cpu_seconds=times,
        )


def _sweep(store: Store, seed: int, method: str, steps: int, task: str) -> dict[str, float]:
    found = {}
    for folder in sorted(store.folder.glob(f"validated/{method}_{steps}_lr*")):
        rate = float(folder.name.rpartition("lr")[2])
        setting = Setting(method=method, steps=steps, lr=rate)
        value = _finished(lambda: validated(store, setting, seed, task)["accuracy"])  # noqa: B023
        if value is not None:
            found[rate] = value
    return {f"{rate:.0e}".replace("e-0", "e-"): found[rate] for rate in sorted(found)}


def _tried(store: Store, plan: Plan, seed: int, name: str, steps: int) -> dict[str, float]:
    columns = {}
    for factor, column in zip(FACTORS, ("accuracy", "at half the rate", "at twice the rate"), strict=True):
        found = _finished(lambda: tried(store, variant(store, plan, name, steps, factor), seed))  # noqa: B023
        if found:
            columns[column] = found["accuracy"]
            if factor == 1:
                columns |= {key: found[key] for key in ("every other", "drop low", "70% of entries 0")}
    return columns


def _filled(rows: dict[str, Any]) -> dict[str, Any]:
    return {name: row for name, row in rows.items() if row}


def _finished(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Unfinished:
        return None
