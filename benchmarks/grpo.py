"""Whole GRPO steps of thurl against those of plain TRL, in one process, on the same pictures and random numbers.

    python benchmarks/grpo.py

Three trainers train the same model from the same weights: `trl`, TRL's `GRPOTrainer`; `thurl`; and `thurl_shared`,
with `prefix_sharing="auto"`. All have the same configuration and the same reward (a Thurstone fidelity reward of
scores that are made from the answers' letters, since an untrained model gives none), and draw pictures in thurl's
order: plain TRL has no sampler for data sets that must not be mixed, so it gets this one; nor does it forbid vision
tokens in answers, which these untrained models would give. Its phases are measured by
the same timers.

Per shape (about P prompt tokens, C new tokens, K completions), two pictures per step: files of 1024 x 768 pixels, as
large as those of a rated set, scaled down by the processor to the prompt's length. Every run has new weights,
optimizer and random state and one step that is not counted. The three take turns in changing order; `faster` is the
median over the rounds of TRL's time per step over thurl's. `parity` is the largest difference of a log entry from
TRL's: without prefix sharing there must be none, with it only rounding as long as the same completions are drawn.
Phases are means over all timed steps. `cpu_s_per_step` is the time this process had the processor (all its threads),
which other programs on the machine hardly change.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hand_updates import PIXELS, SOME_LAYERS, save_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback, set_seed
from trl import GRPOTrainer

from thurl.data.records import RatedImage
from thurl.rl import RankGRPOConfig, RankGRPOTrainer, RankReward, build_rank_dataset
from thurl.rl.prompts import PromptPreset
from thurl.rl.rollouts import vision_token_ids
from thurl.rl.timed_rollouts import TimedRollouts, timed_log_probs
from thurl.rl.tiny import TINY_QUESTION, TINY_THINK_SUFFIX
from thurl.training.progress import quiet_libraries, quiet_trainer
from thurl.training.results import write_results


SHAPES = ((256, 32, 6), (256, 128, 6))
PICTURES = 2  # per step
PRESET = PromptPreset(TINY_QUESTION, TINY_THINK_SUFFIX, name="tiny")
TRAINERS = ("trl", "thurl", "thurl_shared")
COMPARED = ("loss", "grad_norm", "reward", "reward_std", "kl", "completions/mean_length")


class PlainTrainer(TimedRollouts, GRPOTrainer):
    """TRL's trainer with timers around its phases and the order of the pictures given from outside."""

    order: Any = None
    _get_per_token_logps_and_entropies = timed_log_probs(GRPOTrainer._get_per_token_logps_and_entropies)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return self.order


class Watch(TrainerCallback):
    """When log entries are made, which is at the end of every step."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.processor: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())
        self.processor.append(time.process_time())


class MadeUpScores:
    """A Thurstone fidelity reward of scores that depend on the letters of the answers alone."""

    def __init__(self) -> None:
        self.reward = RankReward()
        self.__name__ = "made_up_scores"

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        texts = [completion[0]["content"] for completion in completions]
        scores = [1 + 4 * (zlib.crc32(text.encode()) % 997) / 996 for text in texts]
        answers = [
            f"<think>{text}</think><answer>{score:.2f}</answer>" for text, score in zip(texts, scores, strict=True)
        ]
        return self.reward(answers, **columns)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each trainer, after one round not counted")
    parser.add_argument("--steps", type=int, default=2, help="timed optimizer steps per run")
    parser.add_argument("--threads", type=int, default=1, help="one suffers least from whatever else runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shapes", nargs="*", help="P x C x K, for example 256x32x6")
    parser.add_argument("--out", type=Path, default=Path("results/grpo.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    logging.getLogger("thurl").setLevel(logging.WARNING)
    quiet_libraries()
    shapes = [tuple(map(int, text.split("x"))) for text in options.shapes] if options.shapes else SHAPES
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for shape in shapes:
            name = "x".join(map(str, shape))
            place = Path(folder) / name
            prepare(place, shape, options.seed)
            found[name] = measure(place, shape, options.rounds, options.steps, options.seed)
            sys.stdout.write(lines(name, found[name]))
            sys.stdout.flush()
            # After every shape, so that an interrupted run keeps what it has.
            write_results(
                options.out,
                recipe="benchmarks/grpo.py",
                overrides={"threads": options.threads, "rounds": options.rounds, "steps": options.steps},
                runs=[{"seed": options.seed, **found}],
                model=SOME_LAYERS,
            )
    return 0


def prepare(folder: Path, shape: Sequence[int], seed: int) -> None:
    """Model, processor and pictures of this shape."""
    _, processor = save_model(folder, {**SOME_LAYERS, "max_pixels": shape[0] * PIXELS**2}, seed)
    text = processor.apply_chat_template(
        [{"role": "user", "content": PRESET.text("think")}], add_generation_prompt=True
    )
    around = len(processor.tokenizer(text)["input_ids"])
    size = {"shortest_edge": PIXELS**2, "longest_edge": max(4, shape[0] - around) * PIXELS**2}
    processor.image_processor.size = size
    processor.save_pretrained(folder)
    rng = np.random.default_rng(seed)
    for index in range(4 * PICTURES):
        small = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8))
        small.resize((1024, 768), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg", quality=90)


def measure(folder: Path, shape: Sequence[int], rounds: int, steps: int, seed: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in TRAINERS}
    for number in range(rounds + 1):
        turn = number % len(TRAINERS)
        for name in TRAINERS[turn:] + TRAINERS[:turn]:
            # The first round only warms up caches; one step of it is enough.
            done = run(name, folder, shape, steps if number else 1, seed)
            if number:
                runs[name].append(done)
    prompt = runs["trl"][0]["prompt"]
    record: dict[str, Any] = {
        **{"prompt": prompt, "answer": shape[1], "completions": shape[2], "pictures": PICTURES, "rounds": rounds},
        **{"steps": {}, "phases": {}, "parity": {}},
    }
    rows = shape[2] * PICTURES
    for name, done in runs.items():
        times = [entry["seconds"] for entry in done]
        ratios = [plain["seconds"] / ours for plain, ours in zip(runs["trl"], times, strict=True)]
        middle = statistics.median(times)
        record["steps"][name] = {
            **{"s_per_step": middle, "s_min": min(times), "s_max": max(times)},
            "cpu_s_per_step": statistics.median(entry["processor"] for entry in done),
            **{"faster": statistics.median(ratios), "faster_min": min(ratios), "faster_max": max(ratios)},
            **{"new_tokens_per_s": rows * shape[1] / middle, "tokens_per_s": rows * (prompt + shape[1]) / middle},
        }
        record["phases"][name] = {
            phase: statistics.fmean(entry["phases"][phase] for entry in done)
            for phase in (*TimedRollouts.phases, "other", "step")
            if any(entry["phases"][phase] for entry in done)
        }
        if name != "trl":
            record["parity"][name] = {
                what.replace("/", "_"): max(
                    abs(left - right)
                    for ours, plain in zip(done, runs["trl"], strict=True)
                    for left, right in zip(ours["logged"][what], plain["logged"][what], strict=True)
                )
                for what in COMPARED
            }
    return record


def run(name: str, folder: Path, shape: Sequence[int], steps: int, seed: int) -> dict[str, Any]:
    """One training run; mean seconds per timed step, its phases, and what was logged in all steps."""
    trainer = make_trainer(name, folder, shape, steps, seed)
    watch = Watch()
    trainer.add_callback(watch)
    quiet_trainer(trainer)
    set_seed(seed)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    phases = (*TimedRollouts.phases, "other", "step")
    tokens = entries[-1]["num_tokens"] / len(entries) / (PICTURES * shape[2])
    return {
        "seconds": (watch.times[steps] - watch.times[0]) / steps,
        "processor": (watch.processor[steps] - watch.processor[0]) / steps,
        "phases": {phase: statistics.fmean(entry[f"timing/{phase}"] for entry in entries[1:]) for phase in phases},
        "logged": {what: [entry[what] for entry in entries] for what in COMPARED},
        "prompt": round(tokens - shape[1]),
    }


def make_trainer(name: str, folder: Path, shape: Sequence[int], steps: int, seed: int) -> Any:
    _, answer, group = shape
    records = [RatedImage(str(folder / f"{index}.jpg"), float(index)) for index in range(4 * PICTURES)]
    processor = AutoProcessor.from_pretrained(folder)
    # thurl forbids them, and an untrained model would draw them; TRL then stops.
    generation = {"min_new_tokens": answer, "suppress_tokens": sorted(vision_token_ids(processor.tokenizer))}
    arguments: dict[str, Any] = {
        "args": RankGRPOConfig(
            str(folder / "out"),
            **{"use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True, "seed": seed},
            **{"num_generations": group, "per_device_train_batch_size": group * PICTURES, "learning_rate": 1e-4},
            **{"max_completion_length": answer, "generation_kwargs": generation},
            **{"max_steps": steps + 1, "logging_steps": 1, "save_strategy": "no", "gradient_checkpointing": False},
        ),
        "reward_funcs": MadeUpScores(),
        "train_dataset": build_rank_dataset(records, PRESET),
        "processing_class": processor,
    }
    set_seed(seed)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    sharing = "auto" if name == "thurl_shared" else "off"
    if name != "trl":
        return RankGRPOTrainer(model, **arguments, block_size=PICTURES, prefix_sharing=sharing)
    # The order of the pictures is a function of the settings alone; this trainer lends it and does not run.
    lender = RankGRPOTrainer(model, **arguments, block_size=PICTURES)
    set_seed(seed)
    trainer = PlainTrainer(AutoModelForImageTextToText.from_pretrained(folder), **arguments)
    trainer.order = lender._get_train_sampler()
    return trainer


def lines(name: str, record: dict[str, Any]) -> str:
    text = ""
    for which, entry in record["steps"].items():
        phases = ", ".join(
            f"{phase} {seconds:.2f}" for phase, seconds in record["phases"][which].items() if phase != "step"
        )
        text += (
            f"{name:12} {which:13} {entry['s_per_step']:7.2f} s  x{entry['faster']:.2f} "
            f"({entry['faster_min']:.2f} to {entry['faster_max']:.2f})  CPU {entry['cpu_s_per_step']:.2f} s  "
            f"{entry['new_tokens_per_s']:.0f} new tokens/s  "
            f"{phases}\n"
        )
    for which, parity in record["parity"].items():
        text += f"{name:12} {which:13} differs by " + ", ".join(f"{k} {v:.1e}" for k, v in parity.items()) + "\n"
    return text


if __name__ == "__main__":
    sys.exit(main())
