"""What learning the task weights costs: CPU time of one training step, as a ratio to a plain step.

    taskset -c 1 python benchmarks/bilevel.py --seeds 0 1 2

ResNet-50 (torchvision, random weights) with the eleven tasks of BLADES on its output, random pictures, float32, AdamW,
one thread. In each round every kind of step is done once, in an order that changes from round to round. `ratio`
compares the smallest CPU times over the rounds, because other programs on the machine (shared caches and memory) can
only add to it; `median_ratio` is the median over the rounds of the ratio to the plain step of the same round.

- `plain`: forward, backward, AdamW with constant weights.
- `official_order`: `thurl.training.bilevel.BilevelStep`, new weights act in the same step; one training forward with
  two backwards, one outer forward and backward, two forwards without a graph.
- `delayed`: new weights act from the next step on; one backward less.
- `reference`: the official procedure, written from its description: deep copy of the model for the virtual
  parameters, its own forward and backward for the virtual step, two forward passes with a graph whose gradient is
  taken with respect to the task weights, parameters shifted in place.
- `reference_full`: the same, but the two graphs are differentiated down to the parameters.

`ratio_of_passes` says what the first two would cost were they nothing but their passes, from the CPU times of single
ones in the same run: forward with and without a graph, backward, AdamW. What is above it is exchanged parameters,
bookkeeping and memory: a step that holds two graphs at once frees more than the C library keeps, which gives it back
to the system and gets it again page by page (`page_faults`, `system_seconds`). With glibc
`MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_MMAP_THRESHOLD_=1000000000` keeps it; the variables are written down.
"""

from __future__ import annotations

import argparse
import copy
import os
import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision

from thurl.ranking import class_fidelity_loss, expected_level, multilabel_fidelity_loss, pairwise_fidelity_loss
from thurl.training.bilevel import BilevelConfig, BilevelStep
from thurl.training.bilevel.step import random_state
from thurl.training.results import write_results


ORDINAL = {"iso": 0, "aperture": 3, "exposure_time": 6, "focal_length": 9}
CLASSES = {"make": (12, 22), "metering": (22, 30), "exposure_mode": (30, 37), "white_balance": (37, 39),
           "program": (39, 45)}  # fmt: skip
TASKS = (*ORDINAL, *CLASSES, "coarse", "fine")
BOUNDS = {"official_order": 3.4, "delayed": 2.7}
"""Most that these may cost."""


class Workload:
    """A network, its optimizer, and random batches."""

    def __init__(self, network: str, side: int, batch: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.net = getattr(torchvision.models, network)(num_classes=50)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-5, weight_decay=1e-3)
        self.train, self.outer = (self.random_batch(side, batch) for _ in range(2))
        self.parameters = list(self.net.parameters())
        self.learned: dict[str, Any] = {}

    @staticmethod
    def random_batch(side: int, batch: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        labels = {name: torch.rand(batch) for name in ORDINAL}
        labels |= {name: torch.randint(0, end - begin, (batch,)) for name, (begin, end) in CLASSES.items()}
        labels |= {"coarse": torch.randint(0, 2, (batch,)), "fine": torch.randint(0, 2, (batch, 3))}
        return torch.randn(batch, 3, side, side), labels

    def losses(self, batch: Any, net: torch.nn.Module | None = None) -> torch.Tensor:
        x, label = (net or self.net)(batch[0]), batch[1]
        values = [pairwise_fidelity_loss(expected_level(x[:, i : i + 3]), label[name]) for name, i in ORDINAL.items()]
        values += [class_fidelity_loss(x[:, i:j], label[name], gamma=2) for name, (i, j) in CLASSES.items()]
        values += [
            class_fidelity_loss(x[:, 45:47], label["coarse"]),
            multilabel_fidelity_loss(x[:, 47:], label["fine"]),
        ]
        return torch.stack(values)

    def finish(self, loss: torch.Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()  # here as in transformers' trainer: no gradients lie around in the next step


def kinds_of_steps(work: Workload) -> dict[str, Callable[[], None]]:
    """One optimizer step each."""
    steps = {delayed: BilevelStep(BilevelConfig(TASKS, ("coarse",), delayed=delayed)) for delayed in (False, True)}
    weights = torch.ones(len(TASKS), requires_grad=True)
    outer_adam = torch.optim.Adam([weights], lr=3e-4)
    lookahead = copy.deepcopy(work.net)
    work.learned = {"ours": steps, "reference": weights}

    def plain() -> None:
        work.finish(work.losses(work.train).sum())

    def ours(outer: BilevelStep, gradients: Sequence[torch.Tensor | None], state: Any) -> None:
        outer.step(
            work.net, work.optimizer, lambda batch: (work.losses(batch), None), [work.train], [work.outer],
            gradients=gradients, random_states=[state],
        )  # fmt: skip

    def official_order() -> None:
        state, values = random_state(), work.losses(work.train)
        gradients = torch.autograd.grad(steps[False].weighted(values), work.parameters, retain_graph=True)
        ours(steps[False], gradients, state)
        work.finish(steps[False].weighted(values))

    def delayed() -> None:
        state = random_state()
        steps[True].weighted(work.losses(work.train)).backward()
        ours(steps[True], [parameter.grad for parameter in work.parameters], state)
        work.optimizer.step()
        work.optimizer.zero_grad()

    def reference(full: bool = False) -> None:
        group = work.optimizer.param_groups[0]
        total = (weights * work.losses(work.train)).sum()
        gradients = torch.autograd.grad(total, work.parameters)
        with torch.no_grad():
            for parameter, copied, gradient in zip(work.parameters, lookahead.parameters(), gradients, strict=True):
                copied.copy_(parameter - group["lr"] * (gradient + group["weight_decay"] * parameter))
        outer = work.losses(work.outer, lookahead)[TASKS.index("coarse")]
        v = torch.autograd.grad(outer, list(lookahead.parameters()))
        eps = 0.01 / torch.cat([gradient.flatten() for gradient in v]).norm()
        sides = []
        for shift in (eps, -2 * eps):
            with torch.no_grad():
                for parameter, gradient in zip(work.parameters, v, strict=True):
                    parameter += shift * gradient
            total = (weights * work.losses(work.train)).sum()
            sides.append(torch.autograd.grad(total, [weights, *work.parameters] if full else [weights])[0])
        with torch.no_grad():
            for parameter, gradient in zip(work.parameters, v, strict=True):
                parameter += eps * gradient
        weights.grad = -group["lr"] * (sides[0] - sides[1]) / (2 * eps)
        outer_adam.step()
        work.finish((weights.detach() * work.losses(work.train)).sum())

    return {
        "plain": plain,
        "official_order": official_order,
        "delayed": delayed,
        "reference": reference,
        "reference_full": lambda: reference(full=True),
    }


def used() -> tuple[float, float, int]:
    """CPU seconds, those of them in the system, and pages that the system had to supply, of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_stime, usage.ru_minflt


def timed(work: Callable[[], Any]) -> tuple[tuple[float, float, int], Any]:
    """What `work` used, and its result."""
    begin = used()
    result = work()
    return tuple(after - before for after, before in zip(used(), begin, strict=True)), result


def single_passes(work: Workload) -> dict[str, float]:
    """CPU seconds of the passes of a plain step, and of a forward pass without a graph."""
    with torch.no_grad():
        (bare, *_), _ = timed(lambda: work.losses(work.train))
    (forward, *_), values = timed(lambda: work.losses(work.train))
    (backward, *_), _ = timed(lambda: values.sum().backward())
    (update, *_), _ = timed(work.optimizer.step)
    work.optimizer.zero_grad()
    return {"forward": forward, "forward_no_graph": bare, "backward": backward, "optimizer": update}


def measure(network: str, side: int, batch: int, rounds: int, seed: int) -> dict[str, Any]:
    """Ratios to the plain step and CPU seconds, see the top."""
    work = Workload(network, side, batch, seed)
    steps = kinds_of_steps(work)
    names = list(steps)
    spent: dict[str, list[tuple[float, float, int]]] = {name: [] for name in names}
    passes: list[dict[str, float]] = []
    for round_ in range(-1, rounds):  # the first one warms up
        order = names[round_ % len(names) :] + names[: round_ % len(names)]
        for name in order[:: 1 if round_ % 2 else -1]:
            cost, _ = timed(steps[name])
            if round_ >= 0:
                spent[name].append(cost)
        single = single_passes(work)
        if round_ >= 0:
            passes.append(single)
    seconds = {name: [cost[0] for cost in costs] for name, costs in spent.items()}
    ratios = {
        name: [a / b for a, b in zip(seconds[name], seconds["plain"], strict=True)]
        for name in names
        if name != "plain"
    }
    best = {name: min(values) for name, values in seconds.items()}
    one = {name: min(single[name] for single in passes) for name in passes[0]}
    plain = one["forward"] + one["backward"] + one["optimizer"]
    delayed = plain + one["forward"] + one["backward"] + 2 * one["forward_no_graph"]
    return {
        "ratio": {name: best[name] / best["plain"] for name in ratios},
        "ratio_of_passes": {"official_order": (delayed + one["backward"]) / plain, "delayed": delayed / plain},
        "median_ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "cpu_seconds_least": best,
        "cpu_seconds_median": {name: statistics.median(values) for name, values in seconds.items()},
        "cpu_seconds_of_passes": one,
        "system_seconds": {name: min(costs)[1] for name, costs in spent.items()},
        "page_faults": {name: min(costs)[2] for name, costs in spent.items()},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50", help="name in torchvision.models")
    parser.add_argument("--side", type=int, default=112, help="pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("results/bilevel.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    runs = []
    for seed in options.seeds:
        runs.append({"seed": seed, **measure(options.network, options.side, options.batch, options.rounds, seed)})
        for name, value in runs[-1]["ratio"].items():
            median = runs[-1]["median_ratio"][name]
            sys.stdout.write(f"seed {seed}: {name:16} {value:5.2f} times a plain step (median {median:.2f})\n")
            sys.stdout.flush()
    shape: dict[str, Any] = {name: getattr(options, name) for name in ("network", "side", "batch", "rounds")}
    shape |= {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
    # The mean over the runs decides, as the table shows it.
    above = [name for name, bound in BOUNDS.items() if statistics.mean(run["ratio"][name] for run in runs) > bound]
    write_results(
        options.out,
        recipe="benchmarks/bilevel.py",
        overrides={**shape, "threads": 1},
        runs=runs,
        bounds=BOUNDS,
        above_bound=above,
    )
    return int(bool(above))


if __name__ == "__main__":
    sys.exit(main())
