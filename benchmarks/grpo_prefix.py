"""The policy update with shared prompts against TRL's plain one, in one process, on the same batches.

    python benchmarks/grpo_prefix.py           # about ten minutes on one idle thread
    python benchmarks/grpo_prefix.py --full    # every shape

Per shape (prompt tokens P, completion tokens C, completions K): one picture, K completions of C tokens each, all of
equal length, so that nothing is padded and the plain layout is at its best. An update is `compute_loss`, backward and
an AdamW step of the trainer's model; the reference pass is the same log-probabilities without gradients. Plain and
shared alternate, and change places in every second pair; a speedup is the median of the pairs' ratios. `auto_speedup`
is that of `prefix_sharing: auto`: where it keeps the plain layout, what its decision costs, which is too little to
show between two updates and therefore timed alone. Memory is the peak of forward and backward above the weights, in
bytes of tensors.

Models: `some_layers` (text width 256, 4 layers; vision width 128, 4 layers of which one sees the whole picture, as
released models have it) and `recipe`, the model, pictures and answers of the tiny recipe.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hand_updates import SOME_LAYERS, make_batch, make_trainer, reference

from thurl.rl import RankGRPOTrainer
from thurl.rl.shared_prefix import PrefixSharing, update
from thurl.training.results import write_results
from thurl.training.tensor_memory import TensorMemory


RECIPE = "recipe"
RECIPE_SHAPE = (0, 14, 8, 24)  # its pictures are small, so the prompt is as long as it is
SHAPES = {
    f"{prompt}x{answer}x{group}": (prompt, answer, group, 1)
    for prompt in (64, 256, 1024)
    for answer in (32, 128, 256)
    for group in (6, 8)
}
DEFAULT = [RECIPE, *(name for name in SHAPES if name.endswith("x6")), "1024x256x8"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="timed pairs per shape")
    parser.add_argument("--long-pairs", type=int, default=3, help="the same for prompts of 1024 tokens")
    parser.add_argument("--threads", type=int, default=1, help="one suffers least from whatever else runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true", help="all shapes")
    parser.add_argument("--shapes", nargs="*", choices=[RECIPE, *SHAPES], metavar="PxCxK", help="only these")
    parser.add_argument("--out", type=Path, default=Path("results/grpo_prefix.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    chosen = options.shapes or ([RECIPE, *SHAPES] if options.full else DEFAULT)
    shapes: dict[str, Any] = {}
    details: dict[str, Any] = {}
    trainers: dict[bool, RankGRPOTrainer] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            own = name == RECIPE
            if own not in trainers:
                trainers[own] = make_trainer(
                    Path(folder) / str(own), {} if own else SOME_LAYERS, options.seed, prefix_sharing="on"
                )
            shape = RECIPE_SHAPE if own else SHAPES[name]
            pairs = options.long_pairs if shape[0] >= 1024 else options.pairs
            shapes[name], details[name] = measure(trainers[own], shape, pairs, options.seed)
            sys.stdout.write(line(name, shapes[name], details[name]) + "\n")
            sys.stdout.flush()
            # After every shape, so that an interrupted run keeps what it has.
            write_results(
                options.out,
                recipe="benchmarks/grpo_prefix.py",
                overrides={"threads": options.threads},
                runs=[{"seed": options.seed, "shapes": shapes, "details": details}],
                model=SOME_LAYERS,
            )
    return 0


def measure(
    trainer: RankGRPOTrainer, shape: tuple[int, int, int, int], pairs: int, seed: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """What the table shows of a shape, and the rest."""
    always = PrefixSharing("on", 0, trainer.accelerator.autocast)
    choice = PrefixSharing("auto", 0, trainer.accelerator.autocast)
    batch = make_batch(trainer, shape, seed)
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=0.0)  # as much work as any, and the weights stay

    def one_update(sharing: PrefixSharing | None) -> float:
        trainer._sharing = sharing
        started = time.perf_counter()
        optimizer.zero_grad()
        trainer.compute_loss(trainer.model, batch).backward()
        optimizer.step()
        return time.perf_counter() - started

    def reference_pass(sharing: PrefixSharing | None) -> float:
        trainer._sharing = sharing
        started = time.perf_counter()
        reference(trainer, batch)
        return time.perf_counter() - started

    def peak(sharing: PrefixSharing | None) -> float:
        trainer._sharing = sharing
        optimizer.zero_grad()
        # TRL's head reserves 512 MiB, of which a small vocabulary touches hardly any.
        with TensorMemory(reserved=False) as memory:
            trainer.compute_loss(trainer.model, batch).backward()
        return memory.peak / 2**20

    plain_mib, shared_mib = peak(None), peak(always)  # also the first, slower pass of both
    updates, references = alternate(one_update, always, pairs), alternate(reference_pass, always, pairs)
    trainer._sharing = choice
    reference(trainer, batch)
    decision = decision_seconds(trainer, batch)
    plain_s, shared_s = (statistics.median(times) for times in updates)
    ratios = speedups(updates)
    prompt, answer = batch["prompt_ids"].shape[1], shape[1]
    group, pictures = shape[2:]
    shares = choice.packed_calls > 0
    shown = {
        "token_ratio": group * (prompt + answer) / (prompt - 1 + group * (1 + answer)),
        "plain_s": plain_s,
        "shared_s": shared_s,
        "speedup": statistics.median(ratios),
        "reference_speedup": statistics.median(speedups(references)),
        "auto_speedup": statistics.median(ratios) if shares else plain_s / (plain_s + decision),
        "plain_mib": plain_mib,
        "shared_mib": shared_mib,
    }
    rest = {
        **{"prompt": prompt, "answer": answer, "completions": group, "pictures": pictures, "pairs": pairs},
        **{"speedup_min": min(ratios), "speedup_max": max(ratios)},
        **{"auto_shares": shares, "decision_seconds": decision},
    }
    return shown, rest


class _DecisionMadeError(Exception):
    pass


def decision_seconds(trainer: RankGRPOTrainer, batch: dict[str, Any]) -> float:
    """Median time from the call to the verdict, with the grouping and packing that lead to it."""
    times = []
    compare = update.estimate_speedup

    def stop(*arguments: Any) -> float:
        compare(*arguments)
        raise _DecisionMadeError

    update.estimate_speedup = stop
    try:
        for _ in range(5):
            started = time.perf_counter()
            try:
                reference(trainer, batch)
            except _DecisionMadeError:
                times.append(time.perf_counter() - started)
    finally:
        update.estimate_speedup = compare
    return statistics.median(times)


def alternate(timed: Any, sharing: PrefixSharing, pairs: int) -> tuple[list[float], list[float]]:
    """Seconds of plain and shared."""
    plain: list[float] = []
    shared: list[float] = []
    for pair in range(pairs):
        for which in (None, sharing) if pair % 2 else (sharing, None):
            (plain if which is None else shared).append(timed(which))
    return plain, shared


def speedups(times: tuple[list[float], list[float]]) -> list[float]:
    """Plain over shared, pair by pair."""
    return [before / after for before, after in zip(*times, strict=True)]


def line(name: str, shown: dict[str, float], rest: dict[str, Any]) -> str:
    return (
        f"{name:12} P {rest['prompt']:4}  tokens {shown['token_ratio']:.2f}  update {shown['speedup']:.2f} "
        f"({rest['speedup_min']:.2f} to {rest['speedup_max']:.2f}; plain {shown['plain_s']:.3f} s)  "
        f"reference {shown['reference_speedup']:.2f}  auto {'shares' if rest['auto_shares'] else 'plain'} "
        f"{shown['auto_speedup']:.3f}  MiB {shown['plain_mib']:.0f} to {shown['shared_mib']:.0f}"
    )


if __name__ == "__main__":
    sys.exit(main())
