"""LoRA with and without CoTo on rotated digits: accuracy, pruning, linear connectivity, share of each layer, CPU time.

    python benchmarks/coto_digits.py --seeds 3 4 5

A ViT of 6 layers (width 64) learns 900 upright digits of scikit-learn; then LoRA (r = 4 on all six linear maps of each
layer, frozen head) learns 300 digits rotated by 90 degrees; 597 others are held out. Two adapters per seed and method,
with other initial values and another order of the data. Both methods have the same steps and the same learning rate,
which was not swept for either.

Pruning is accuracy with the adapters of these layers left out; `every_other` is the mean of both halves. Shapley
values are exact over the 6 layers, of the mean loss on 200 held-out digits, first adapter; `cv` is their standard
deviation over their mean. The barrier is that of the loss between the two adapters' factors A and B.

`bar` holds differences that an earlier run of this experiment with other seeds had suggested; `failures` of a run
lists what misses it. CPU time is the process's; on a busy machine only large differences mean something.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from thurl.coto import CoToConfig, apply_coto
from thurl.training.results import write_results


LAYERS, WIDTH, HEADS = 6, 64, 4
TARGETS = ["q", "k", "v", "o", "fc1", "fc2"]
PRETRAIN = {"steps": 900, "lr": 1e-3, "batch": 64}
TUNE = {"lr": 5e-3, "batch": 32, "r": 4, "alpha": 8}
GRID = [index / 10 for index in range(11)]
BAR = {"every_other": 0.10, "drop_low": 0.10, "barrier_ratio": 0.85, "shapley_cv_ratio": 0.75, "accuracy": -0.06}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        heads = [part(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.q, self.k, self.v)]
        x = x + self.o(scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return x + self.fc2(gelu(self.fc1(self.norm2(x))))


class TinyViT(nn.Module):
    """(B, 8, 8) pictures in [0, 1] to (B, 10) logits; patches of 2 x 2, mean of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(16, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        patches = pictures.unflatten(1, (4, 2)).unflatten(3, (4, 2)).transpose(2, 3).flatten(1, 2).flatten(2)
        x = self.embed(patches) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", required=True, help="one run each")
    parser.add_argument("--steps", type=int, default=800, help="of fine-tuning")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/coto_digits.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    runs = []
    for seed in options.seeds:
        runs.append(run_seed(seed, options.steps))
        sys.stdout.write(f"seed {seed}: {runs[-1]}\n")
        sys.stdout.flush()
        write_results(
            options.out,
            recipe="benchmarks/coto_digits.py",
            overrides={"steps": options.steps, "threads": options.threads},
            runs=runs,
            bar=BAR,
            passed=sum(not run["failures"] for run in runs),
        )
    return int(any(run["failures"] for run in runs))


def run_seed(seed: int, steps: int) -> dict[str, Any]:
    """Both methods, two adapters each; the record of the results file."""
    started = time.perf_counter()
    data = digits(seed)
    torch.manual_seed(seed)
    base = TinyViT()
    train(base, data["upright"], PRETRAIN["steps"], PRETRAIN["lr"], PRETRAIN["batch"], seed)
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    measured = {}
    for method in ("lora", "coto"):
        pair, seconds = [], []
        for copy in (0, 1):
            model, cpu = tuned(weights, data["rotated"], steps, 1000 * seed + copy, method == "coto")
            pair.append(model)
            seconds.append(cpu)
        measured[method] = {**evaluated(pair, data["held_out"]), "cpu_seconds": statistics.mean(seconds)}
    lora, coto = measured["lora"], measured["coto"]
    failures = [name for name in ("every_other", "drop_low", "accuracy") if coto[name] < lora[name] + BAR[name]]
    failures += [name for name in ("barrier", "shapley_cv") if coto[name] > BAR[f"{name}_ratio"] * lora[name]]
    return {
        "seed": seed,
        "seconds": time.perf_counter() - started,
        "upright_accuracy": accuracy(load(weights), data["upright_held_out"]),
        "before_tuning": accuracy(load(weights), data["held_out"]),
        "metric": {name: {method: measured[method][name] for method in measured} for name in lora},
        "failures": failures,
    }


def digits(seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    found = load_digits()
    order = np.random.default_rng(seed).permutation(len(found.target))
    pictures = torch.tensor(found.images[order] / 16, dtype=torch.float32)
    labels = torch.tensor(found.target[order])
    turned = torch.rot90(pictures, 1, dims=(1, 2))
    return {
        "upright": (pictures[:900], labels[:900]),
        "rotated": (turned[900:1200], labels[900:1200]),
        "held_out": (turned[1200:], labels[1200:]),
        "upright_held_out": (pictures[1200:], labels[1200:]),
    }


def train(model, data, steps, lr, batch, seed, coto=None) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    pictures, labels = data
    generator = torch.Generator().manual_seed(seed)
    rows = torch.cat(
        [torch.randperm(len(labels), generator=generator) for _ in range(1 + steps * batch // len(labels))]
    )
    model.train()
    for step in range(steps):
        chosen = rows[step * batch : (step + 1) * batch]
        if coto is not None:
            coto.begin_step(step)
        cross_entropy(model(pictures[chosen]), labels[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if coto is not None:
            coto.end_step()


def load(weights) -> TinyViT:
    model = TinyViT()
    model.load_state_dict(weights)
    return model


def tuned(weights, data, steps, seed, with_coto):
    """A model with a trained adapter, and the CPU seconds of its training."""
    torch.manual_seed(seed)
    model = get_peft_model(load(weights), LoraConfig(r=TUNE["r"], lora_alpha=TUNE["alpha"], target_modules=TARGETS))
    coto = apply_coto(model, CoToConfig(seed=seed), total_steps=steps) if with_coto else None
    started = time.process_time()
    train(model, data, steps, TUNE["lr"], TUNE["batch"], seed, coto)
    seconds = time.process_time() - started
    if coto is not None:
        coto.detach()
    return model.eval(), seconds


def factors(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if ".lora_" in name}


def put(model, values) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in values:
                parameter.copy_(values[name])


def with_layers(model, kept, function) -> float:
    """`function` of the model with the adapters of these layers only."""
    whole = factors(model)
    off = {n: torch.zeros_like(v) for n, v in whole.items() if not any(f"blocks.{i}." in n for i in kept)}
    put(model, off)
    value = function(model)
    put(model, whole)
    return value


@torch.no_grad()
def accuracy(model, data) -> float:
    return (model(data[0]).argmax(-1) == data[1]).float().mean().item()


@torch.no_grad()
def loss(model, data) -> float:
    return cross_entropy(model(data[0]), data[1]).item()


def evaluated(pair, data) -> dict[str, float]:
    """Means over both adapters, and what lies between them."""
    everything = range(LAYERS)
    third = LAYERS // 3
    kept = {
        "accuracy": [everything],
        "every_other": [everything[::2], everything[1::2]],
        "drop_low": [everything[third:]],
        "drop_middle": [[*everything[:third], *everything[2 * third :]]],
        "drop_high": [everything[: 2 * third]],
    }
    found = {
        name: statistics.mean(with_layers(m, k, lambda m: accuracy(m, data)) for m in pair for k in choices)
        for name, choices in kept.items()
    }
    first, second, scratch = factors(pair[0]), factors(pair[1]), pair[0]
    losses, middle = [], float("nan")
    for share in GRID:
        put(scratch, {name: (1 - share) * first[name] + share * second[name] for name in first})
        losses.append(loss(scratch, data))
        middle = accuracy(scratch, data) if share == 0.5 else middle
    put(scratch, first)
    line = [(1 - share) * losses[0] + share * losses[-1] for share in GRID]
    some = data[0][:200], data[1][:200]
    shares = shapley(lambda layers: with_layers(pair[0], layers, lambda m: -loss(m, some)))
    return {
        **found,
        "midpoint_accuracy": middle,
        "end_loss": (losses[0] + losses[-1]) / 2,
        "barrier": max(value - base for value, base in zip(losses, line, strict=True)),
        "shapley_cv": statistics.stdev(shares) / abs(statistics.mean(shares)),
    }


def shapley(value) -> list[float]:
    """Exact, over all subsets of layers."""
    values = [value([i for i in range(LAYERS) if subset >> i & 1]) for subset in range(1 << LAYERS)]
    weight = [math.factorial(n) * math.factorial(LAYERS - n - 1) / math.factorial(LAYERS) for n in range(LAYERS)]
    return [
        sum(
            weight[subset.bit_count()] * (values[subset | 1 << player] - values[subset])
            for subset in range(1 << LAYERS)
            if not subset >> player & 1
        )
        for player in range(LAYERS)
    ]


if __name__ == "__main__":
    sys.exit(main())
