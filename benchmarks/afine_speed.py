"""A-FINE at the size of ViT-B/32: pictures in batches against one at a time, and memory per megapixel.

    python benchmarks/afine_speed.py

Random weights, random pictures, float32, one thread, no GPU; ratios of CPU time of this process to the same work done
one pair at a time in the same round with the same weights. Larger is faster. `largest_difference` is the largest
difference of D between the two ways.

- `batch`: pairs of 224x224 in one batch, every picture with a reference of its own.
- `one_reference`: pictures of one reference, which goes through the tower once, against pairs one at a time.
- `scene`: all pairs of a scene of pictures and their reference, as a benchmark like SRIQA-Bench compares them: each
  picture once, then pairs, against reference and both pictures anew for each pair as the official evaluation does.
- `naturalness`: without reference, batch against one at a time.

`memory`: largest sum of living tensors, weights and pictures left out, in MiB per megapixel of one picture of 512x512:
scoring a pair, naturalness alone, and the gradient of D by the picture with and without gradient checkpointing. It is
a count and does not change from round to round.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from thurl.iqa.afine import AFineConfig, AFineModel
from thurl.training.results import write_results
from thurl.training.tensor_memory import TensorMemory


SIDE, MEMORY_SIDE = 224, 512


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="pairs per batch")
    parser.add_argument("--scene", type=int, default=4, help="pictures of a scene")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a tiny model and small pictures, to try the script")
    parser.add_argument("--out", type=Path, default=Path("results/afine_speed.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    model = AFineModel(AFineConfig.tiny() if options.tiny else AFineConfig()).eval()
    side, memory_side = (64, 96) if options.tiny else (SIDE, MEMORY_SIDE)
    memory = peak_memory(model, memory_side)
    runs: list[dict[str, Any]] = []
    for number in range(options.rounds):
        seed = options.seed + number
        runs.append({"seed": seed, **one_round(model, side, options, seed), "memory": memory})
        sys.stdout.write(f"round {number}: {runs[-1]}\n")
        sys.stdout.flush()
    write_results(
        options.out,
        recipe="benchmarks/afine_speed.py",
        overrides={"batch": options.batch, "scene": options.scene, "threads": 1, "tiny": options.tiny},
        runs=runs,
        pictures={"side": side, "memory_side": memory_side},
    )
    return 0


@torch.no_grad()
def one_round(model: AFineModel, side: int, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Times of both ways of each kind of work, in an order that turns with the seed."""
    generator = torch.Generator().manual_seed(seed)
    ref, dis = (torch.rand(options.batch, 3, side, side, generator=generator) for _ in range(2))
    scene = torch.rand(options.scene, 3, side, side, generator=generator)

    def pairs_of_scene() -> torch.Tensor:
        found = []
        for i, j in combinations(range(options.scene), 2):
            scores = [model(ref[:1], scene[k : k + 1]).afine for k in (i, j)]
            found.append(scores[0] - scores[1])
        return torch.cat(found)

    def scene_at_once() -> torch.Tensor:
        scores = model([ref[0]] * options.scene, list(scene)).afine
        first, second = zip(*combinations(range(options.scene), 2), strict=True)
        return scores[list(first)] - scores[list(second)]

    work: dict[str, tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]] = {
        "batch": (lambda: model(ref, dis).afine, lambda: each(model, ref, dis)),
        "one_reference": (
            lambda: model([ref[0]] * options.batch, list(dis)).afine,
            lambda: each(model, ref[:1].expand_as(ref), dis),
        ),
        "scene": (scene_at_once, pairs_of_scene),
        "naturalness": (
            lambda: model.naturalness(dis),
            lambda: torch.cat([model.naturalness(dis[i : i + 1]) for i in range(options.batch)]),
        ),
    }
    model(ref[:1], dis[:1])
    record: dict[str, Any] = {"ratio": {}, "seconds_at_once": {}, "largest_difference": 0.0}
    for name, (at_once, one_by_one) in work.items():
        order = [at_once, one_by_one] if seed % 2 else [one_by_one, at_once]
        timed = {function: measured(function) for function in order}
        (fast, a), (slow, b) = timed[at_once], timed[one_by_one]
        record["ratio"][name] = slow / fast
        record["seconds_at_once"][name] = fast
        record["largest_difference"] = max(record["largest_difference"], (a - b).abs().max().item())
    return record


def each(model: AFineModel, ref: torch.Tensor, dis: torch.Tensor) -> torch.Tensor:
    """Scores of pairs, one pair at a time."""
    return torch.cat([model(ref[i : i + 1], dis[i : i + 1]).afine for i in range(len(dis))])


def measured(function: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """CPU seconds and the result."""
    begin = time.process_time()
    result = function()
    return time.process_time() - begin, result


def peak_memory(model: AFineModel, side: int) -> dict[str, dict[str, float]]:
    """MiB per megapixel of one picture, by kind of work."""
    ref, dis = torch.rand(1, 3, side, side), torch.rand(1, 3, side, side)
    megapixels = side * side / 1e6

    def gradient() -> None:
        picture = dis.clone().requires_grad_()
        torch.autograd.grad(model(ref, picture).afine.sum(), picture)

    def scoring() -> None:
        with torch.no_grad():
            model(ref, dis)

    def naturalness() -> None:
        with torch.no_grad():
            model.naturalness(dis)

    found = {}
    model.requires_grad_(False)
    for name, function in (("score", scoring), ("naturalness", naturalness), ("gradient", gradient)):
        found[name] = {"mib": peak(function) / megapixels}
    model.gradient_checkpointing_enable()
    model.train()
    found["gradient_with_checkpointing"] = {"mib": peak(gradient) / megapixels}
    model.gradient_checkpointing_disable()
    model.eval().requires_grad_(True)
    return found


def peak(function: Callable[[], None]) -> float:
    """MiB."""
    with TensorMemory() as memory:
        function()
    return memory.peak / 2**20


if __name__ == "__main__":
    raise SystemExit(main())
