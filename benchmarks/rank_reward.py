"""Time of the Thurstone fidelity reward of one generation batch on one CPU thread.

    python benchmarks/rank_reward.py

128 images of 8 completions each, about 850 characters long. `reward` is `rank_rewards` on tensors: `one_set` with all
images in one comparison set, the most work there is, `four_sets` with 32 in each. `call` is the reward function as the
trainer calls it: reading the 1,024 completions, the reward, and everything it logs; `format` is the format reward of
the same completions. Milliseconds, median, smallest and largest of the repetitions; `cpu` is the median time this
process had the processor, which other programs on the machine do not change.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from thurl.rl.rank_reward import FormatReward, RankReward
from thurl.rl.rewards import RankRewardOptions, rank_rewards
from thurl.training.results import write_results


IMAGES, COMPLETIONS = 128, 8
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "official": {"mode": "official"},
    "soft": {"targets": "soft"},
    "scores": {"comparison": "scores"},
}
THOUGHT = "The edges are soft and there is noise in the dark parts, yet the colours are natural. " * 10


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=50, help="timed ones, after three that are not counted")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--completions", type=int, default=COMPLETIONS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/rank_reward.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record = measure(options.images, options.completions, options.repetitions, options.seed)
    write_results(
        options.out,
        recipe="benchmarks/rank_reward.py",
        overrides={"images": options.images, "completions": options.completions, "threads": 1},
        runs=[{"seed": options.seed, **record}],
    )
    for group, entries in record.items():
        for name, entry in entries.items():
            sys.stdout.write(
                f"{group:18} {name:9} {entry['ms']:7.2f} ms ({entry['ms_min']:.2f} to {entry['ms_max']:.2f}), "
                f"{entry['cpu_ms']:.2f} ms of the processor\n"
            )
    return 0


def measure(images: int, completions: int, repetitions: int, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    generator = torch.Generator().manual_seed(seed)
    scores = (1 + 4 * torch.rand(images, completions, dtype=torch.float64, generator=generator)).mul(100).round() / 100
    mos = 100 * torch.rand(images, dtype=torch.float64, generator=generator)
    std = 1 + 10 * torch.rand(images, dtype=torch.float64, generator=generator)
    valid = torch.ones_like(scores, dtype=torch.bool)
    ids = [f"picture {image}" for image in range(images)]
    sets = {"one_set": ["a"] * images, "four_sets": [str(image % 4) for image in range(images)]}
    texts = [f"<think>{THOUGHT}</think><answer>{score:.2f}</answer>" for score in scores.flatten().tolist()]

    def columns(values: Sequence[Any]) -> list[Any]:
        return [value for value in values for _ in range(completions)]

    arguments = {
        "completions": [[{"role": "assistant", "content": text}] for text in texts],
        "mos": columns(mos.tolist()),
        "mos_std": columns(std.tolist()),
        "image_id": columns(ids),
        "log_metric": lambda name, value: None,
        "log_extra": lambda name, values: None,
    }

    def reward(dataset: list[str], **options: Any) -> dict[str, float]:
        made = RankRewardOptions(**options)
        return timed(lambda: rank_rewards(scores, valid, mos, dataset, ids, mos_std=std, options=made), repetitions)

    def call(dataset: list[str], **options: Any) -> dict[str, float]:
        function = RankReward(completions, **options)
        return timed(lambda: function(**arguments, dataset=columns(dataset)), repetitions)

    record: dict[str, dict[str, dict[str, float]]] = {}
    for name, dataset in sets.items():
        record[f"reward_{name}"] = {option: reward(dataset, **chosen) for option, chosen in OPTIONS.items()}
        record[f"call_{name}"] = {option: call(dataset, **chosen) for option, chosen in OPTIONS.items()}
    formats = {mode: FormatReward(mode) for mode in ("official", "strict")}
    record["format"] = {
        mode: timed(lambda function=function: function(arguments["completions"]), repetitions)
        for mode, function in formats.items()
    }
    return record


def timed(function: Callable[[], Any], repetitions: int) -> dict[str, float]:
    """Milliseconds of one call."""
    wall, processor = [], []
    for repetition in range(repetitions + 3):
        began, began_cpu = time.perf_counter(), time.process_time()
        function()
        if repetition >= 3:
            wall.append(1000 * (time.perf_counter() - began))
            processor.append(1000 * (time.process_time() - began_cpu))
    return {
        "ms": statistics.median(wall),
        "ms_min": min(wall),
        "ms_max": max(wall),
        "cpu_ms": statistics.median(processor),
    }


if __name__ == "__main__":
    sys.exit(main())
