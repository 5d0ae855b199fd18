"""What CoTo saves: time of a training step against the plain adapter, and of a whole run.

    python benchmarks/coto_step_time.py

A Llama of 8 layers (width 256, MLP 1024) with adapters of rank 16 on its seven linear maps per layer; 4 rows of 64
tokens, one thread. A step is forward, backward and the clearing of gradients; the optimizer is left out. Times are CPU
seconds of this process, so that other processes disturb them through caches and clocks only.

Settings: "plain" trains as it is; "checkpointing" and "reentrant" are the two kinds of gradient checkpointing as
transformers switches them on. "without idle" is `idle_prefix=False`.

One round measures every setting in turn: a step of the plain adapter and one at each p, in an order that turns. Each
step at p < 1 has a mask of its own, drawn as in training. A ratio is mean time over mean time in the round; the spread
is over rounds. `step`: ratios by p in percent. Then, in every round, the default schedule over a short run, step by
step beside the plain adapter (`run`):

- `saving` of the run, and `active`, the mean share of adapters that were on;
- `adapter`: share of the adapter in the plain step, which is 1 - (base model forward and backward) / (plain step);
- `bound`: (1 - mean p) * adapter with the schedule's mean p, what skipping adapters alone can save;
- `of_bound`: saving / bound. More than 1 is possible: below the lowest active adapter the base model's backward pass
  is left out, too.

`count` puts beside the ratios what a count of work gives: forward and backward of the base model F and B, A of the
adapters, all as measured; a step costs F + A (active share) + B (share of the layers from the lowest active one up).
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
from peft import HiraConfig, LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from thurl.coto import CoToConfig, CoToController, apply_coto
from thurl.coto.schedule import mean_activation_probability
from thurl.training.results import write_results


LAYERS, WIDTH, RANK, ROWS, LENGTH, VOCABULARY = 8, 256, 16, 4, 64, 1000
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROBABILITIES = [0.1, 0.25, 0.5, 0.75, 1.0]
KINDS: dict[str, Callable[[], Any]] = {
    "LoRA": lambda: LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS),
    "DoRA": lambda: LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, use_dora=True),
    "HiRA": lambda: HiraConfig(r=RANK, target_modules=TARGETS),
}
# name, checkpointing (None, False: not reentrant, True), idle prefix
SETTINGS: list[tuple[str, bool | None, bool]] = [
    ("plain", None, True),
    ("checkpointing without idle", False, False),
    ("checkpointing", False, True),
    ("reentrant without idle", True, False),
    ("reentrant", True, True),
]
RUN_SETTINGS = ["plain", "checkpointing"]


class Case:
    """A model with its adapter in one setting."""

    def __init__(self, kind: str, setting: tuple[str, bool | None, bool], seed: int) -> None:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS,
            num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=LENGTH, pad_token_id=0,
            bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        self.name, reentrant, self.idle = setting
        self.model = get_peft_model(LlamaForCausalLM(config), KINDS[kind]()).train()
        if reentrant is not None:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        self.tokens = torch.randint(3, VOCABULARY, (ROWS, LENGTH))
        for _ in range(2):
            self.step()

    def controller(self, config: CoToConfig, steps: int) -> CoToController:
        return apply_coto(self.model, config, total_steps=steps, idle_prefix=self.idle)

    def step(self) -> float:
        """CPU seconds of a step."""
        begin = time.process_time()
        self.model(self.tokens, labels=self.tokens, use_cache=False).loss.backward()
        self.model.zero_grad(set_to_none=True)
        return time.process_time() - begin

    def masked(self, coto: CoToController, step: int) -> tuple[float, tuple[bool, ...]]:
        coto.begin_step(step)
        seconds = self.step()
        mask = coto.active
        coto.end_step()
        return seconds, mask

    def base(self) -> tuple[float, float]:
        """CPU seconds of the base model: forward, and backward down to the embeddings."""
        with self.model.disable_adapter():
            begin = time.process_time()
            embedded = self.model.get_input_embeddings()(self.tokens).detach().requires_grad_()
            loss = self.model(inputs_embeds=embedded, labels=self.tokens, use_cache=False).loss
            middle = time.process_time()
            loss.backward()
        return middle - begin, time.process_time() - middle


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--cycles", type=int, default=6, help="steps at each p, per setting and round")
    parser.add_argument("--steps", type=int, default=20, help="length of the short run")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--limit", type=float, default=float("inf"), help="begin no round after so many seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/coto_step_time.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    begin = time.monotonic()
    # LoRA in every setting; for the others one that says whether it is alike.
    cases = {
        (kind, setting[0]): Case(kind, setting, options.seed)
        for kind in options.kinds
        for setting in SETTINGS
        if kind == "LoRA" or setting[0] in RUN_SETTINGS
    }
    runs: list[dict[str, Any]] = []
    for number in range(options.rounds):
        if runs and time.monotonic() - begin > options.limit:
            break
        seed = options.seed + number
        runs.append({"seed": seed, **one_round(cases, options.cycles, options.steps, seed)})
        sys.stdout.write(f"round {number}: {time.monotonic() - begin:.0f} s\n{report(runs)}\n")
        sys.stdout.flush()
        write_results(
            options.out,
            recipe="benchmarks/coto_step_time.py",
            overrides={"cycles": options.cycles, "steps": options.steps, "threads": 1},
            runs=runs,
            model={"layers": LAYERS, "width": WIDTH, "rank": RANK, "rows": ROWS, "tokens": LENGTH},
        )
    return 0


def one_round(cases: dict[tuple[str, str], Case], cycles: int, steps: int, seed: int) -> dict[str, Any]:
    record: dict[str, Any] = {"milliseconds": {}, "step": {}, "count": {}, "run": {}}
    for (kind, name), case in cases.items():
        label = kind if name == "plain" else f"{kind}, {name}"
        times, masks, bases = cycle_times(case, cycles, seed)
        plain = statistics.fmean(times[None])
        record["step"][label] = {column(p): statistics.fmean(times[p]) / plain for p in PROBABILITIES}
        if name not in RUN_SETTINGS:
            continue
        forward, backward = (statistics.fmean(values) for values in zip(*bases, strict=True))
        if name == "plain":
            adapter = plain - forward - backward
            record["milliseconds"][kind] = {
                "base_forward": 1e3 * forward, "base_backward": 1e3 * backward, "adapter": 1e3 * adapter,
                "step": 1e3 * plain,
            }  # fmt: skip
            record["count"][kind] = {
                column(p): statistics.fmean(counted(mask, forward, backward, adapter) for mask in masks[p]) / plain
                for p in PROBABILITIES
            }
        record["run"][label] = run_times(case, steps, seed, share=1 - (forward + backward) / plain)
    return record


def cycle_times(case: Case, cycles: int, seed: int) -> tuple[dict[Any, list[float]], dict[Any, list[Any]], list[Any]]:
    """Times by p (None: without CoTo), masks by p, and the base model's times."""
    times: dict[Any, list[float]] = {p: [] for p in [None, *PROBABILITIES]}
    masks: dict[Any, list[Any]] = {p: [] for p in PROBABILITIES}
    bases = []
    order = list(times)
    for cycle in range(cycles):
        for p in order:
            if p is None:
                times[None].append(case.step())
                continue
            coto = case.controller(CoToConfig(initial_p=p, final_p=p, seed=1000 * seed + cycle), 1000)
            seconds, mask = case.masked(coto, cycle)
            coto.detach()
            times[p].append(seconds)
            masks[p].append(mask)
        bases.append(case.base())
        order = order[1:] + order[:1]
    return times, masks, bases


def counted(mask: Sequence[bool], forward: float, backward: float, adapter: float) -> float:
    """Seconds of a step by the count of the module's docstring."""
    lowest = mask.index(True)
    return forward + adapter * sum(mask) / len(mask) + backward * (len(mask) - lowest) / len(mask)


def run_times(case: Case, steps: int, seed: int, share: float) -> dict[str, float]:
    ours, theirs, active = 0.0, 0.0, []
    coto = case.controller(CoToConfig(seed=seed), steps)
    for step in range(steps):
        if step % 2:
            theirs += case.step()
        seconds, mask = case.masked(coto, step)
        ours += seconds
        active.append(sum(mask) / len(mask))
        if not step % 2:
            theirs += case.step()
    coto.detach()
    bound = (1 - mean_activation_probability(steps)) * share
    saving = 1 - ours / theirs
    return {
        "saving": saving, "active": statistics.fmean(active), "adapter": share, "bound": bound,
        "of_bound": saving / bound,
    }  # fmt: skip


def column(p: float) -> str:
    return f"p{round(100 * p)}"


def report(runs: list[dict[str, Any]]) -> str:
    lines = []
    for table in ("milliseconds", "step", "count", "run"):
        for row, values in runs[-1][table].items():
            numbers = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
            lines.append(f"  {table}: {row}: {numbers}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
