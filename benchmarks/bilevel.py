"""What learning the task weights costs: CPU time of one training step, as a ratio to a plain step.

    taskset -c 1 python benchmarks/bilevel.py

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
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
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
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


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
        work.optimizer.zero_grad()
        steps[True].weighted(work.losses(work.train)).backward()
        ours(steps[True], [parameter.grad for parameter in work.parameters], state)
        work.optimizer.step()

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


def measure(network: str, side: int, batch: int, rounds: int, seed: int) -> dict[str, Any]:
    """Ratios to the plain step and CPU seconds, see the top."""
    steps = kinds_of_steps(Workload(network, side, batch, seed))
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(-1, rounds):  # the first one warms up
        order = names[round_ % len(names) :] + names[: round_ % len(names)]
        for name in order[:: 1 if round_ % 2 else -1]:
            begin = time.process_time()
            steps[name]()
            if round_ >= 0:
                seconds[name].append(time.process_time() - begin)
    ratios = {
        name: [a / b for a, b in zip(seconds[name], seconds["plain"], strict=True)]
        for name in names
        if name != "plain"
    }
    best = {name: min(values) for name, values in seconds.items()}
    return {
        "ratio": {name: best[name] / best["plain"] for name in ratios},
        "median_ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "cpu_seconds_least": best,
        "cpu_seconds_median": {name: statistics.median(values) for name, values in seconds.items()},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50", help="name in torchvision.models")
    parser.add_argument("--side", type=int, default=112, help="pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/bilevel.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record = measure(options.network, options.side, options.batch, options.rounds, options.seed)
    shape = {name: getattr(options, name) for name in ("network", "side", "batch", "rounds")}
    above = [name for name, bound in BOUNDS.items() if record["ratio"][name] > bound]
    write_results(
        options.out,
        recipe="benchmarks/bilevel.py",
        overrides={**shape, "threads": 1},
        runs=[{"seed": options.seed, **record}],
        bounds=BOUNDS,
        above_bound=above,
    )
    for name, value in record["ratio"].items():
        median = record["median_ratio"][name]
        sys.stdout.write(f"{name:16} {value:5.2f} times a plain step (median {median:.2f})\n")
    return int(bool(above))


if __name__ == "__main__":
    sys.exit(main())
