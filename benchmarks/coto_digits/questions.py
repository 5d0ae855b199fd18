"""The three questions: the pass bar, the swept comparison, and what else was tried."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from coto_digits.measures import Bench, merge_measures, pair_measures, single_measures
from coto_digits.network import digits, of_task
from coto_digits.training import Setting, Store, Unfinished, tuned


METHODS = ("lora", "coto")
TASKS = ("rotated", "inverted")
FACTORS = (1.0, 0.5, 2.0)
REPEATS = 3
RATES = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2)
BAR = {
    "every other": {"add": 0.10},
    "drop low": {"add": 0.10},
    "accuracy": {"add": -0.06},
    "factor barrier": {"times": 0.85},
    "shapley cv": {"times": 0.75},
}
"""CoTo must reach LoRA's value plus `add` (more is better) or stay at or below it times `times` (less is better)."""


def failures(lora: dict[str, float], coto: dict[str, float]) -> list[str]:
    """What misses the bar."""
    missed = []
    for name, rule in BAR.items():
        if "add" in rule:
            reached = coto[name] >= lora[name] + rule["add"]
        else:
            reached = coto[name] <= rule["times"] * lora[name]
        if not reached:
            missed.append(name)
    return missed


def measured(store: Store, setting: Setting, seed: int) -> dict[str, float]:
    """`pair_measures` of a setting: two adapters of the rotated task, on the test digits."""

    def make() -> dict[str, Any]:
        pair = [store.adapter(setting, seed, copy)[0] for copy in (0, 1)]
        held_out = of_task(digits(seed)["test"], "rotated")
        found = pair_measures(Bench(store.base(seed)), pair, held_out)
        return {"setting": asdict(setting), "measures": found}

    return store.record(f"measured/{setting.name}/{seed}", make)["measures"]


def alone(store: Store, setting: Setting, seed: int) -> dict[str, float]:
    """`single_measures` of one adapter of the rotated task on the test digits."""

    def make() -> dict[str, Any]:
        adapter, _ = store.adapter(setting, seed)
        found = single_measures(Bench(store.base(seed)), [adapter], of_task(digits(seed)["test"], "rotated"))
        return {"setting": asdict(setting), "measures": found}

    return store.record(f"alone/{setting.name}/{seed}", make)["measures"]


def two_tasks(store: Store, setting: Setting, inverted_lr: float, seed: int) -> dict[str, float]:
    """`merge_measures` on the test digits: an adapter of the rotated task and one of the inverted, at its own rate."""

    def make() -> dict[str, Any]:
        settings = (setting, replace(setting, lr=inverted_lr))
        adapters = [store.adapter(one, seed, task=task)[0] for one, task in zip(settings, TASKS, strict=True)]
        data = [of_task(digits(seed)["test"], task) for task in TASKS]
        found = merge_measures(Bench(store.base(seed)), adapters, data)
        named = {f"two tasks, {name}": value for name, value in found.items()}
        return {"setting": asdict(setting), "inverted_lr": inverted_lr, "measures": named}

    return store.record(f"two_tasks/{setting.name}/inverted-lr{inverted_lr:g}-{seed}", make)["measures"]


def validated(store: Store, setting: Setting, seed: int, task: str = "rotated") -> dict[str, float]:
    """Loss and accuracy of one adapter on the validation digits, which is all a choice is made on."""

    def make() -> dict[str, Any]:
        adapter, _ = store.adapter(setting, seed, task=task)
        return Bench(store.base(seed))(adapter, of_task(digits(seed)["validation"], task))

    return store.record(f"validated/{setting.name}/{task}-{seed}", make)


def bar_record(store: Store, seed: int, steps: int = 800) -> dict[str, Any]:
    """LoRA and CoTo with the settings of the bar, and what misses it."""
    found = {method: measured(store, Setting(method=method, steps=steps), seed) for method in METHODS}
    missed = failures(found["lora"], found["coto"])
    return {"bar": by_metric(found), "failures": missed, "misses": ", ".join(missed) or "nothing"}


def by_metric(found: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """{method: {metric: value}} to {metric: {method: value}}."""
    return {name: {method: found[method][name] for method in found} for name in next(iter(found.values()))}


def swept(store: Store, setting: Setting, seeds: Sequence[int], task: str = "rotated") -> dict[float, float]:
    """Mean validation accuracy over the seeds by learning rate.

    From 2e-3, 5e-3 and 1e-2 on; as long as the best is the lowest or the highest tried, the next of `RATES` is tried.
    """
    found: dict[float, float] = {}

    def at(index: int) -> float:
        rate = RATES[index]
        if rate not in found:
            runs = [validated(store, replace(setting, lr=rate), seed, task) for seed in seeds]
            found[rate] = statistics.fmean(run["accuracy"] for run in runs)
        return found[rate]

    low, high = 1, 3
    while True:
        best = max(range(low, high + 1), key=at)
        if best == low and low > 0:
            low -= 1
        elif best == high and high < len(RATES) - 1:
            high += 1
        else:
            return dict(sorted(found.items()))


def best_rate(found: dict[float, float]) -> float:
    """The rate of the highest accuracy; of equals the lower rate."""
    return max(sorted(found), key=found.__getitem__)


def tried(store: Store, setting: Setting, seed: int) -> dict[str, float]:
    """`single_measures` of one adapter on the validation digits: what is looked at while settings are explored."""

    def make() -> dict[str, Any]:
        adapter, record = store.adapter(setting, seed)
        bench, held_out = Bench(store.base(seed)), digits(seed)["validation"]
        found = single_measures(bench, [adapter], of_task(held_out, "rotated"))
        return {"setting": asdict(setting), "measures": found, "training_loss": record["training_loss"]}

    return store.record(f"tried/{setting.name}/{seed}", make)["measures"]


# What is changed, one thing at a time; each is trained at the swept learning rate of its method, halved and doubled.
# Written before any of it was run. Settings in which only CoTo takes part are compared with the plain row of LoRA.
LONGER = "coto, 151 % of the steps"
VARIANTS: dict[str, dict[str, Any]] = {
    "coto": {"method": "coto"},
    "lora": {"method": "lora"},
    LONGER: {"method": "coto", "stretch": 1.51},
    "coto, p0 0": {"method": "coto", "p0": 0.0},
    "coto, p0 30 %": {"method": "coto", "p0": 0.3},
    "coto, p0 50 %": {"method": "coto", "p0": 0.5},
    "coto, ratio 25 %": {"method": "coto", "ratio": 0.25},
    "coto, ratio 50 %": {"method": "coto", "ratio": 0.5},
    "coto, sine": {"method": "coto", "schedule": "sine"},
    "coto, exponential": {"method": "coto", "schedule": "exponential"},
    "coto, high layers late": {"method": "coto", "layers": "high late"},
    "coto, low layers late": {"method": "coto", "layers": "low late"},
    "constant layer drop, p 50 %": {"method": "coto", "schedule": "constant", "p0": 0.5, "ratio": 1.0},
    "lora, dropout 25 %": {"method": "lora", "dropout": 0.25},
    "coto, rank 2": {"method": "coto", "rank": 2},
    "lora, rank 2": {"method": "lora", "rank": 2},
    "coto, rank 8": {"method": "coto", "rank": 8},
    "lora, rank 8": {"method": "lora", "rank": 8},
    "coto, rank 16": {"method": "coto", "rank": 16},
    "lora, rank 16": {"method": "lora", "rank": 16},
    "coto, 100 digits": {"method": "coto", "shots": 100},
    "lora, 100 digits": {"method": "lora", "shots": 100},
    "coto, 50 digits": {"method": "coto", "shots": 50},
    "lora, 50 digits": {"method": "lora", "shots": 50},
    "coto, A x 3": {"method": "coto", "spread": 3.0},
    "lora, A x 3": {"method": "lora", "spread": 3.0},
}


@dataclass(frozen=True)
class Plan:
    """Seeds that are reported, seeds on which choices are made, and optimizer steps."""

    seeds: tuple[int, ...]
    explore_seeds: tuple[int, ...]
    steps: int

    @property
    def lengths(self) -> tuple[int, int]:
        """Numbers of steps with a sweep of their own (250 and 800)."""
        return self.steps * 5 // 16, self.steps


def rate_of(store: Store, plan: Plan, method: str, steps: int, task: str = "rotated") -> float:
    """The swept learning rate of a method, a number of steps and a task."""
    return best_rate(swept(store, Setting(method=method, steps=steps), plan.explore_seeds, task))


def variant(store: Store, plan: Plan, name: str, steps: int, factor: float = 1.0) -> Setting:
    """A row of `VARIANTS` at its method's learning rate for so many steps, times a factor."""
    options = dict(VARIANTS[name])
    stretched = round(options.pop("stretch", 1.0) * steps)
    rate = rate_of(store, plan, options["method"], steps)
    return Setting(**options, steps=stretched, lr=round(rate * factor, 6))


def ask_bar(store: Store, plan: Plan) -> None:
    for seed in plan.seeds:
        bar_record(store, seed, plan.steps)


def ask_sweep(store: Store, plan: Plan) -> None:
    for task, steps, method in product(TASKS, plan.lengths, METHODS):
        rate_of(store, plan, method, steps, task)


def swept_setting(store: Store, plan: Plan, method: str, steps: int) -> Setting:
    """A method at its learning rate for so many steps."""
    return Setting(method=method, steps=steps, lr=rate_of(store, plan, method, steps))


def ask_swept(store: Store, plan: Plan) -> None:
    _all_of(store, plan, [swept_setting(store, plan, method, plan.steps) for method in METHODS])


def matched_setting(store: Store, plan: Plan) -> Setting:
    """CoTo with so many steps that an adapter gets as many updates as with LoRA: 1 / 0.6625 of them."""
    return variant(store, plan, LONGER, plan.steps)


def ask_matched(store: Store, plan: Plan) -> None:
    _all_of(store, plan, [matched_setting(store, plan)])


def ask_pairs(store: Store, plan: Plan) -> None:
    for seed in plan.seeds:
        for method in METHODS:
            measured(store, swept_setting(store, plan, method, plan.steps), seed)


def ask_short(store: Store, plan: Plan) -> None:
    _all_of(store, plan, [swept_setting(store, plan, method, plan.lengths[0]) for method in METHODS])


def _all_of(store: Store, plan: Plan, settings: Sequence[Setting]) -> None:
    for seed, setting in product(plan.seeds, settings):
        alone(store, setting, seed)
    for seed, setting in product(plan.seeds, settings):
        merged(store, plan, setting, seed)


def merged(store: Store, plan: Plan, setting: Setting, seed: int) -> dict[str, float]:
    """`two_tasks`; the inverted task is as far from its swept rate as the rotated one, for 250 or for 800 steps."""
    steps = plan.lengths[0] if setting.steps == plan.lengths[0] else plan.steps
    factor = setting.lr / rate_of(store, plan, setting.method, steps)
    return two_tasks(store, setting, round(factor * rate_of(store, plan, setting.method, steps, "inverted"), 6), seed)


def ask_explore(store: Store, plan: Plan) -> None:
    _explore(store, plan, FACTORS[:1])


def ask_rates(store: Store, plan: Plan) -> None:
    _explore(store, plan, FACTORS[1:])


def _explore(store: Store, plan: Plan, factors: Sequence[float]) -> None:
    for factor, steps, seed in product(factors, plan.lengths, plan.explore_seeds):
        for name in VARIANTS:
            tried(store, variant(store, plan, name, steps, factor), seed)


def comparable(name: str) -> bool:
    """Whether a row is CoTo with LoRA's steps, digits, rank and start: what `again` may choose."""
    options = VARIANTS[name]
    return options["method"] == "coto" and set(options) <= {"method", "p0", "ratio", "schedule", "layers"}


def tried_values(store: Store, plan: Plan, name: str, factor: float, metric: str = "accuracy") -> list[float]:
    """Of the exploration seeds that are finished."""
    found = []
    for seed in plan.explore_seeds:
        try:
            found.append(tried(store, variant(store, plan, name, plan.steps, factor), seed)[metric])
        except Unfinished:
            continue
    return found


def chosen(store: Store, plan: Plan) -> Setting:
    """The row and rate of the highest validation accuracy among what was finished when this was first asked."""
    finished = Store(store.folder, read_only=True)

    def make() -> dict[str, Any]:
        means = {
            (name, factor): statistics.fmean(values)
            for name in VARIANTS
            for factor in FACTORS
            if comparable(name)
            and len(values := tried_values(finished, plan, name, factor)) == len(plan.explore_seeds)
        }
        name, factor = max(means, key=means.__getitem__)
        return {"name": name, "factor": factor, "accuracy": means[name, factor], "of": len(means)}

    record = store.record("chosen", make)
    return variant(store, plan, record["name"], plan.steps, record["factor"])


def ask_again(store: Store, plan: Plan) -> None:
    _all_of(store, plan, [chosen(store, plan)])


def long_setting(store: Store, plan: Plan, method: str) -> Setting:
    """2.5 times the steps, at the learning rate for the plain number of steps."""
    return Setting(method=method, steps=plan.steps * 5 // 2, lr=rate_of(store, plan, method, plan.steps))


def ask_long(store: Store, plan: Plan) -> None:
    _all_of(store, plan, [long_setting(store, plan, method) for method in METHODS])


def seconds(store: Store, plan: Plan, repeat: int) -> dict[str, float]:
    """CPU seconds of training with PEFT's own forward pass, LoRA and CoTo one after the other."""

    def make() -> dict[str, Any]:
        seed, steps = plan.explore_seeds[0], plan.steps * 3 // 8
        data = of_task(digits(seed)["tuning"], "rotated")
        return {
            method: tuned(store.base(seed), data, Setting(method=method, steps=steps), repeat, "peft")[1][
                "cpu_seconds"
            ]
            for method in METHODS
        }

    return store.record(f"time/{repeat}", make)


def ask_time(store: Store, plan: Plan) -> None:
    for repeat in range(REPEATS):
        seconds(store, plan, repeat)


QUESTIONS: dict[str, Callable[[Store, Plan], None]] = {
    "bar": ask_bar,
    "sweep": ask_sweep,
    "swept": ask_swept,
    "matched": ask_matched,
    "explore": ask_explore,
    "rates": ask_rates,
    "again": ask_again,
    "pairs": ask_pairs,
    "short": ask_short,
    "long": ask_long,
    "time": ask_time,
}
