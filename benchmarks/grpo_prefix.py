"""The policy update with shared prompts against TRL's plain one, in one process, on the same batches.

    python benchmarks/grpo_prefix.py

Per shape (prompt tokens P, completion tokens C, completions K): one picture, K completions of C tokens each, all of
equal length, so that nothing is padded and the plain layout is at its best. An update is `compute_loss`, backward and
an AdamW step of the trainer's model; the reference pass is the same log-probabilities without gradients. Plain and
shared alternate, and change places in every second pair; the ratio is the median of the pairs' ratios. `auto_seconds`
is what `auto` pays for its decision, in each pass, whatever it decides: too little to show between two updates.

Models: `some_layers` (text width 256, 4 layers; vision width 128, 4 layers of which one sees the whole picture, as
released models have it) and `recipe`, the model, pictures and answers of the tiny recipe.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from thurl.data.records import RatedImage
from thurl.rl import RankGRPOConfig, RankGRPOTrainer, build_rank_dataset, shared_prefix
from thurl.rl.shared_prefix import PrefixSharing
from thurl.rl.tiny import TINY_QUESTION, TINY_THINK_SUFFIX, build_tiny_qwen2_5_vl
from thurl.training.results import write_results


PIXELS = 28  # side of what one visual token sees
SOME_LAYERS = {
    **{"hidden": 256, "layers": 4, "heads": 4, "kv_heads": 2, "intermediate": 512},
    **{"vision_hidden": 128, "vision_depth": 4, "vision_heads": 4},
    **{"min_pixels": PIXELS**2, "max_pixels": 1200 * PIXELS**2},
}
SHAPES = [
    # P, C, K, pictures
    *((prompt, answer, 6, 1) for prompt in (64, 256) for answer in (32, 128, 256)),
    *((1024, 128, 6, 1), (1024, 32, 6, 1), (1024, 128, 8, 1), (1024, 256, 6, 1)),
]
RECIPE_SHAPE = (0, 14, 8, 24)  # its pictures are small, so the prompt is as long as it is


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="timed pairs per shape, after one that is not counted")
    parser.add_argument("--long-pairs", type=int, default=3, help="the same for prompts of 1024 tokens")
    parser.add_argument("--threads", type=int, default=1, help="one suffers least from whatever else runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shapes", nargs="*", help="only these, for example 1024x128x6 or recipe")
    parser.add_argument("--out", type=Path, default=Path("results/grpo_prefix.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    shapes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for model, plan in (("recipe", [RECIPE_SHAPE]), ("some_layers", SHAPES)):
            names = ["recipe" if model == "recipe" else "x".join(map(str, shape[:3])) for shape in plan]
            chosen = [
                pair for pair in zip(names, plan, strict=True) if not options.shapes or pair[0] in options.shapes
            ]
            if not chosen:
                continue
            trainer = make_trainer(Path(folder) / model, {} if model == "recipe" else SOME_LAYERS, options.seed)
            for name, shape in chosen:
                pairs = options.long_pairs if shape[0] >= 1024 else options.pairs
                shapes[name] = measure(trainer, shape, pairs, options.seed)
                sys.stdout.write(line(name, shapes[name]) + "\n")
                sys.stdout.flush()
                # After every shape, so that an interrupted run keeps what it has.
                write_results(
                    options.out,
                    recipe="benchmarks/grpo_prefix.py",
                    overrides={"threads": options.threads},
                    runs=[{"seed": options.seed, **shapes}],
                    model=SOME_LAYERS,
                )
    return 0


def make_trainer(folder: Path, sizes: dict[str, int], seed: int) -> RankGRPOTrainer:
    """A trainer whose model is updated by hand; its own data set is never read."""
    model, processor = build_tiny_qwen2_5_vl(seed, **sizes)
    if sizes:
        model.config.vision_config.fullatt_block_indexes = [sizes["vision_depth"] - 1]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    records = []
    for index in range(2):
        Image.fromarray(np.full((56, 56, 3), 100 * index, np.uint8)).save(folder / f"{index}.png")
        records.append(RatedImage(str(folder / f"{index}.png"), float(index)))
    trainer = RankGRPOTrainer(
        type(model).from_pretrained(folder),
        args=RankGRPOConfig(
            str(folder),
            **{"use_cpu": True, "bf16": False, "report_to": [], "gradient_checkpointing": False, "disable_tqdm": True},
            **{"num_generations": 2, "per_device_train_batch_size": 4},
        ),
        train_dataset=build_rank_dataset(records),
        processing_class=processor,
        block_size=2,
        prefix_sharing="on",
    )
    trainer.current_gradient_accumulation_steps = 1  # `train` would set it
    trainer.model.train()
    return trainer


def make_batch(trainer: RankGRPOTrainer, shape: tuple[int, int, int, int], seed: int) -> dict[str, Any]:
    """Inputs of `compute_loss`: pictures of noise of the size that makes a prompt of about P tokens."""
    prompt, answer, group, pictures = shape
    processor, rng = trainer.processing_class, np.random.default_rng(seed)
    content = [{"type": "image"}, {"type": "text", "text": f"{TINY_QUESTION} {TINY_THINK_SUFFIX}"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    around = len(processor.tokenizer(text)["input_ids"]) - 1
    height = max(2, math.isqrt(max(0, prompt - around)))
    width = max(2, round((prompt - around) / height))
    size = (48, 48) if not prompt else (PIXELS * height, PIXELS * width)
    images = [
        picture
        for picture in [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for _ in range(pictures)]
        for _ in range(group)
    ]
    inputs = processor(text=[text] * len(images), images=[[image] for image in images], return_tensors="pt")
    rows = len(images)
    generator = torch.Generator().manual_seed(seed)
    completions = torch.randint(300, 330, (rows, answer), generator=generator)
    batch = {
        "prompt_ids": inputs["input_ids"],
        "prompt_mask": inputs["attention_mask"],
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": torch.randn(rows, generator=generator),
        "num_items_in_batch": torch.tensor(completions.numel()),
        "pixel_values": inputs["pixel_values"],
        "image_grid_thw": inputs["image_grid_thw"],
        "num_images": [1] * rows,
        "mm_token_type_ids": torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(completions)], dim=1),
    }
    batch["ref_per_token_logps"] = reference(trainer, batch)
    return batch


def reference(trainer: RankGRPOTrainer, batch: dict[str, Any]) -> torch.Tensor:
    names = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
    with torch.no_grad():
        logps, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
            batch["completion_ids"].shape[1],
            **{name: batch[name] for name in names},
        )
    return logps


def measure(trainer: RankGRPOTrainer, shape: tuple[int, int, int, int], pairs: int, seed: int) -> dict[str, Any]:
    always = PrefixSharing("on", 0, trainer.accelerator.autocast)
    choice = PrefixSharing("auto", 0, trainer.accelerator.autocast)
    batch = make_batch(trainer, shape, seed)
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=0.0)  # as much work as any, and the weights stay

    def update(sharing: PrefixSharing | None) -> float:
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

    prompt, answer = batch["prompt_ids"].shape[1], shape[1]
    group, pictures = shape[2:]
    record: dict[str, Any] = {
        **{"prompt": prompt, "answer": answer, "completions": group, "pictures": pictures, "pairs": pairs},
        "token_ratio": group * (prompt + answer) / (prompt - 1 + group * (1 + answer)),
        "update": alternate(update, always, pairs),
        "reference": alternate(reference_pass, always, pairs),
    }
    trainer._sharing = choice
    reference(trainer, batch)
    record["auto_shares"] = choice.packed_calls > 0
    record["auto_seconds"] = decision_seconds(trainer, batch)
    update_seconds = record["update"]["plain_seconds"]
    record["auto_ratio"] = (
        record["update"]["ratio"]
        if record["auto_shares"]
        else update_seconds / (update_seconds + record["auto_seconds"])
    )
    return record


class _DecisionMadeError(Exception):
    pass


def decision_seconds(trainer: RankGRPOTrainer, batch: dict[str, Any]) -> float:
    """Median time from the call to the verdict, with the grouping and packing that lead to it."""
    times = []
    compare = shared_prefix.estimate_speedup

    def stop(*arguments: Any) -> float:
        compare(*arguments)
        raise _DecisionMadeError

    shared_prefix.estimate_speedup = stop
    try:
        for _ in range(5):
            started = time.perf_counter()
            try:
                reference(trainer, batch)
            except _DecisionMadeError:
                times.append(time.perf_counter() - started)
    finally:
        shared_prefix.estimate_speedup = compare
    return statistics.median(times)


def alternate(timed: Any, sharing: PrefixSharing, pairs: int) -> dict[str, float]:
    """Median seconds of both and median, smallest and largest of the pairs' ratios (plain over shared)."""
    plain, shared = [], []
    for pair in range(pairs + 1):
        for which in (None, sharing) if pair % 2 else (sharing, None):
            (plain if which is None else shared).append(timed(which))
    plain, shared = plain[1:], shared[1:]
    ratios = [before / after for before, after in zip(plain, shared, strict=True)]
    return {
        "plain_seconds": statistics.median(plain),
        "shared_seconds": statistics.median(shared),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def line(name: str, record: dict[str, Any]) -> str:
    update, reference_pass = record["update"], record["reference"]
    return (
        f"{name:12} P {record['prompt']:4}  tokens {record['token_ratio']:.2f}  update {update['ratio']:.2f} "
        f"({update['ratio_min']:.2f} to {update['ratio_max']:.2f}; plain {update['plain_seconds']:.3f} s)  "
        f"reference {reference_pass['ratio']:.2f}  auto {'shares' if record['auto_shares'] else 'plain'} "
        f"{record['auto_ratio']:.3f}"
    )


if __name__ == "__main__":
    sys.exit(main())
