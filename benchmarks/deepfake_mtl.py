"""The DeepFake method on drawn faces: the graph against independent answers, tasks beside the first one, learned
weights.

    OMP_NUM_THREADS=1 python benchmarks/deepfake_mtl.py --seeds 401 402 403 404 405 --jobs 2

Every seed draws people, forgeries, weights and batches anew. A forgery is one region (eyes, mouth, nose) of another
person, laid in by the functions of the expansion with the donor's own colours (`FORGERIES`). The network is
`thurl.forensics.deepfake.tiny`'s with patches of 16 pixels, one layer, and positions that start five times as large as
CLIP's, without which so few patches are hardly told apart in so few steps. A batch holds 8 real faces, each with its
three forgeries. Losses are the cross-entropy of the tasks, summed: from random weights the fidelity loss learns too
slowly.

- `joint`, `sigmoids`: the same network from the same weights, on the same batches, for as many steps; its energies are
  read through the label graph, or each through a logistic function of its own. AUC on people who were not trained on;
  `illegal`: share of test faces whose answers, the most probable state or the probabilities cut at 0.5, no legal state
  has.
- `held_out`: trained on eyes and mouths, tested on noses: AUC of P(fake) after training with all tasks and with the
  first alone, the others' labels unknown.
- `toy`: one network with one output for three tasks; `global` has the labels of `binary` turned round, `local` has
  one in ten turned round. Task weights learned by the bi-level step in 300 steps, against weights of 1.

The bars, set after runs with the development seeds 5 and 6 and before the first with others:

- `weights`: the weight of `local` above that of `global` by 0.1 in every seed, and the loss of `binary` on new data
  not above that with weights of 1 in four of five seeds.
- `binary`, `regions`: `joint`'s AUC of P(fake), and its mean over eye, lip, mouth and nose, above `BARS`, means over
  the seeds.
- `graph`: `joint`'s mean region AUC at least that of `sigmoids`, or `sigmoids` illegal in 1 % of the faces or more;
  `joint` never.

`held_out` has no bar.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from thurl.binary_metrics import roc_auc
from thurl.forensics.deepfake.drawn_faces import draw_face
from thurl.forensics.deepfake.expansion_plan import ExpansionConfig, region_labels
from thurl.forensics.deepfake.forgeries import blend_regions, warped_donor
from thurl.forensics.deepfake.graph import load_graph
from thurl.forensics.deepfake.marginals import agreeing
from thurl.forensics.deepfake.model import DeepFakeModel
from thurl.forensics.deepfake.tiny import tiny_config
from thurl.ranking import log_fidelity_loss
from thurl.training.bilevel import BilevelConfig, BilevelStep
from thurl.training.results import write_results


GRAPH = load_graph("ffpp")
KINDS = ("eye", "mouth", "nose")
REGIONS = ("eye", "lip", "mouth", "nose")
FORGERIES = ExpansionConfig(dilation=(0.1, 0.15), jitter=(0.0, 0.03), feather=(2.0, 4.0), colour=(0.0, 0.0))
BARS = {"binary": 0.75, "regions": 0.75}
WEIGHT_GAP, BETTER, ILLEGAL = 0.1, 0.8, 0.01
STEPS, HELD_OUT_STEPS, TOY_STEPS = 400, 200, 300
TRAIN, TEST = (80, 3), (30, 2)
FACES_PER_BATCH, RATE, POSITIONS = 8, 2e-3, 5.0

Losses = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def faces(seed: int, first: int, people: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (faces, 4, 3, 48, 48) and labels (faces, 4, n) of people from number `first` on: real, then `KINDS`."""
    pictures, labels = [], []
    for place in range(people):
        for frame in range(frames):
            real = draw_face(first + place, frame=frame, seed=seed)
            rng = np.random.default_rng((seed, first + place, frame))
            pictures.append(real.pixels)
            labels.append(GRAPH.vector("real"))
            for kind in KINDS:
                other = first + (place + 1 + int(rng.integers(people - 1))) % people
                face = draw_face(other, frame=frames, seed=seed)
                donor = warped_donor(face.pixels, face.landmarks, real.landmarks, real.pixels.shape[:2], [kind])
                blend = FORGERIES.draw_blend("region", rng)
                pictures.append(blend_regions(real.pixels, real.landmarks, donor, [kind], blend)[0])
                labels.append(list(region_labels(GRAPH, [kind])))
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
    shape = (people * frames, 1 + len(KINDS))
    return ((pixels - 0.5) / 0.25).unflatten(0, shape), torch.tensor(labels, dtype=torch.int8).unflatten(0, shape)


def start(seed: int) -> DeepFakeModel:
    """The network at its start."""
    torch.manual_seed(seed)
    model = DeepFakeModel(tiny_config(GRAPH, patch_size=16, hidden=64, layers=1, heads=4, cross_entropy=1.0))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith("vision_model") and "position_embedding" in name:
                weight.mul_(POSITIONS)
    return model


def trained(
    model: DeepFakeModel, losses: Losses, pictures: torch.Tensor, labels: torch.Tensor, steps: int, seed: int
) -> DeepFakeModel:
    """The model after so many steps of AdamW on the sum of `losses` of its energies."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(pictures), (FACES_PER_BATCH,), generator=generator)
        energies = model(pictures[rows].flatten(0, 1)).logits
        loss = losses(energies, labels[rows].flatten(0, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def joint_losses(model: DeepFakeModel) -> Losses:
    """Through the label graph."""
    return lambda energies, labels: torch.stack(list(model.compute_terms(energies, labels).values())).sum()


def sigmoid_losses(energies: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Each energy through a logistic function of its own; means per task as through the graph."""
    each = functional.binary_cross_entropy_with_logits(energies, labels.float(), reduction="none")
    return torch.stack([each[:, columns].mean() for columns in GRAPH.tasks.values()]).sum()


@torch.no_grad()
def outputs(model: DeepFakeModel, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
    """`logits`, `log_odds` and `states` of pictures."""
    parts = [model(part) for part in pictures.flatten(0, 1).split(240)]
    return {name: torch.cat([part[name] for part in parts]) for name in ("logits", "log_odds", "states")}


def measured(scores: torch.Tensor, answers: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """AUC of P(fake) and of each region, their mean, and the share of answers that cannot be."""
    truth = labels.flatten(0, 1)
    auc = {}
    for name in ("fake", *REGIONS):
        column = GRAPH.names.index(name)
        own, known = scores[:, column].numpy(), truth[:, column].numpy()
        auc[name] = roc_auc(own[known == 1], own[known == 0])
    legal = agreeing(answers.to(torch.int8), GRAPH.states).any(dim=1)
    found = {f"auc_{name}": auc[name] for name in REGIONS}
    return {"binary": auc["fake"], "regions": fmean(auc[name] for name in REGIONS), **found,
            "illegal": float((~legal).float().mean())}  # fmt: skip


def graph_against_sigmoids(seed: int, train: Any, test: Any) -> dict[str, dict[str, float]]:
    """`joint` and `sigmoids`."""
    model = start(seed)
    found = outputs(trained(model, joint_losses(model), *train, STEPS, seed), test[0])
    joint = measured(found["log_odds"], found["states"], test[1])
    found = outputs(trained(start(seed), sigmoid_losses, *train, STEPS, seed), test[0])
    return {"joint": joint, "sigmoids": measured(found["logits"], found["logits"] >= 0, test[1])}


def held_out(seed: int, train: Any, test: Any) -> dict[str, float]:
    """AUC on noses after training on eyes and mouths, with all tasks and with the first alone."""
    pictures, labels = (part[:, :3] for part in train)
    alone = labels.clone()
    alone[..., 1:] = -1
    found = {}
    for name, own in (("all_tasks", labels), ("first_alone", alone)):
        model = start(seed)
        trained(model, joint_losses(model), pictures, own, HELD_OUT_STEPS, seed)
        scores = outputs(model, test[0])["log_odds"][:, 0].unflatten(0, test[0].shape[:2]).numpy()
        found[name] = roc_auc(scores[:, 3], scores[:, 0])
    return {**found, "gain": found["all_tasks"] - found["first_alone"]}


def toy(seed: int) -> dict[str, float]:
    """Weights learned on tasks that agree and disagree with the first one, and what that does to its loss."""
    tasks = tuple(GRAPH.tasks)
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(8, generator=generator)

    def drawn(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(count, 8, generator=generator)
        y = x @ direction > 0
        turned = torch.rand(count, generator=generator) < 0.1
        return x, torch.stack([y, ~y, y ^ turned], dim=1)

    def losses(net: torch.nn.Module, batch: Any) -> torch.Tensor:
        on = functional.logsigmoid(net(batch[0])).expand(-1, len(tasks))
        off = functional.logsigmoid(-net(batch[0])).expand(-1, len(tasks))
        return torch.stack([log_fidelity_loss(on[:, i], off[:, i], batch[1][:, i].long()) for i in range(len(tasks))])

    train, outer, new = drawn(96), drawn(96), drawn(2000)
    found = {}
    for learned in (True, False):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        step = BilevelStep(BilevelConfig(tasks=tasks, primary=("binary",), lr=1e-3, fd_eps=1e-6))
        for _ in range(TOY_STEPS):
            if learned:
                step.step(net, optimizer, lambda batch, net=net: (losses(net, batch), None), [train], [outer])
            optimizer.zero_grad()
            step.weighted(losses(net, train)).backward()
            optimizer.step()
        with torch.no_grad():
            found["loss_learned" if learned else "loss_equal"] = float(losses(net, new)[0])
        if learned:
            found |= {f"weight_{name}": float(value) for name, value in zip(tasks, step.weights, strict=True)}
    return found


def one_seed(seed: int) -> dict[str, Any]:
    """The record of one seed."""
    torch.set_num_threads(1)
    began = time.process_time()
    train, test = faces(seed, 0, *TRAIN), faces(seed, 100_000, *TEST)
    record = {
        "seed": seed,
        "answers": graph_against_sigmoids(seed, train, test),
        "held_out": {"nose": held_out(seed, train, test)},
        "toy": {"learned weights": toy(seed)},
    }
    return {**record, "cpu_seconds": time.process_time() - began}


def gain(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean of what the other tasks add on an unknown forgery, with its 95 % interval over the seeds."""
    values = [run["held_out"]["nose"]["gain"] for run in runs]
    # Student's quantile for as many seeds.
    from scipy.stats import t

    half = (
        float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    )
    return {"mean": fmean(values), "low": fmean(values) - half, "high": fmean(values) + half}


def verdicts(runs: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Which bars are met."""
    toys = [run["toy"]["learned weights"] for run in runs]
    gaps = [found["weight_local"] - found["weight_global"] for found in toys]
    better = [found["loss_learned"] <= found["loss_equal"] for found in toys]
    means = {
        kind: {name: fmean(run["answers"][kind][name] for run in runs) for name in ("binary", "regions", "illegal")}
        for kind in ("joint", "sigmoids")
    }
    apart = means["joint"]["regions"] >= means["sigmoids"]["regions"] or means["sigmoids"]["illegal"] >= ILLEGAL
    return {
        "weights": min(gaps) >= WEIGHT_GAP and fmean(better) >= BETTER,
        **{name: means["joint"][name] >= bar for name, bar in BARS.items()},
        "graph": apart and means["joint"]["illegal"] == 0,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time")
    parser.add_argument("--out", type=Path, default=Path("results/deepfake_mtl.json"))
    options = parser.parse_args(arguments)
    if options.jobs > 1:
        with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            runs = list(pool.map(one_seed, options.seeds))
    else:
        runs = [one_seed(seed) for seed in options.seeds]
    bars = verdicts(runs)
    write_results(
        options.out,
        recipe="benchmarks/deepfake_mtl.py",
        runs=runs,
        bars={**BARS, "weights": {"gap": WEIGHT_GAP, "seeds": BETTER}, "graph": {"illegal": ILLEGAL}},
        met=bars,
        held_out_gain=gain(runs),
    )
    for name, met in bars.items():
        sys.stdout.write(f"{name:8} {'met' if met else 'MISSED'}\n")
    return int(not all(bars.values()))


if __name__ == "__main__":
    sys.exit(main())
