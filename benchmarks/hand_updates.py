"""A trainer whose model a benchmark updates by hand, and batches of any size for it; used by several benchmarks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from thurl.data.records import RatedImage
from thurl.rl import RankGRPOConfig, RankGRPOTrainer, build_rank_dataset
from thurl.rl.tiny import TINY_QUESTION, TINY_THINK_SUFFIX, build_tiny_qwen2_5_vl


PIXELS = 28  # side of what one visual token sees
SOME_LAYERS = {
    **{"hidden": 256, "layers": 4, "heads": 4, "kv_heads": 2, "intermediate": 512},
    **{"vision_hidden": 128, "vision_depth": 4, "vision_heads": 4},
    **{"min_pixels": PIXELS**2, "max_pixels": 1200 * PIXELS**2},
}


def save_model(folder: Path, sizes: dict[str, int], seed: int) -> tuple[Any, Any]:
    """Write a tiny Qwen2.5-VL; with `sizes` its last vision layer alone sees the whole picture."""
    model, processor = build_tiny_qwen2_5_vl(seed, **sizes)
    if sizes:
        model.config.vision_config.fullatt_block_indexes = [sizes["vision_depth"] - 1]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def make_trainer(
    folder: Path,
    sizes: dict[str, int],
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    freeze_vision: bool = False,
    bf16: bool = False,
    checkpointing: bool = False,
    **options: Any,
) -> RankGRPOTrainer:
    """A trainer whose model is updated by hand; its own data set is never read.

    `dtype` is that of the weights, `bf16` computes in bfloat16; `options` go to `RankGRPOTrainer`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model, processor = save_model(folder, sizes, seed)
    records = []
    for index in range(2):
        Image.fromarray(np.full((56, 56, 3), 100 * index, np.uint8)).save(folder / f"{index}.png")
        records.append(RatedImage(str(folder / f"{index}.png"), float(index)))
    model = type(model).from_pretrained(folder, dtype=dtype)
    if freeze_vision:
        model.model.visual.requires_grad_(False)
    trainer = RankGRPOTrainer(
        model,
        args=RankGRPOConfig(
            str(folder),
            **{"use_cpu": True, "bf16": bf16, "report_to": [], "gradient_checkpointing": checkpointing},
            **{"num_generations": 2, "per_device_train_batch_size": 4, "disable_tqdm": True},
        ),
        train_dataset=build_rank_dataset(records),
        processing_class=processor,
        block_size=2,
        **options,
    )
    trainer.current_gradient_accumulation_steps = 1  # `train` would set it, and switch recomputing on
    if checkpointing:
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
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
