"""A policy learns by GRPO how strongly to smooth noisy pictures; A-FINE is its only reward.

    python examples/afine_reward.py --afine afine_model --pictures photos --output runs/smoothing

The smallest policy that shows the pieces: a language model of one token per character answers with one digit, `render`
turns the answer into a picture, and `AFineReward` scores that picture against the clean one. For a restorer of your
own, replace `render`; for a policy of your own, the model and its tokenizer.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image, ImageFilter
from trl import GRPOConfig, GRPOTrainer

from thurl.data.image_files import find_images
from thurl.data.images import open_image
from thurl.iqa.afine import AFine, AFineReward
from thurl.text.tiny import build_tiny_language_model


NOISE = 30.0  # standard deviation, of 255
PROMPT = "smoothing 0-9: "


def render(completion: str, reference: str, **row: Any) -> Image.Image:
    """The noisy picture, smoothed as the completion says: one digit, in steps of 0.4 pixels.

    Raises:
        ValueError: the completion is no digit; the reward counts it as failed.
    """
    sigma = 0.4 * int(completion)
    clean = open_image(reference)
    noise = np.random.default_rng(0).normal(0, NOISE, (clean.height, clean.width, 3))
    noisy = Image.fromarray(np.clip(np.asarray(clean) + noise, 0, 255).round().astype(np.uint8))
    return noisy.filter(ImageFilter.GaussianBlur(sigma))


def build_trainer(afine: AFine, pictures: list[str], output: str, *, steps: int, seed: int) -> GRPOTrainer:
    """The trainer, ready to train."""
    model, tokenizer = build_tiny_language_model(seed)
    arguments = GRPOConfig(
        output,
        max_steps=steps,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
        per_device_train_batch_size=64,
        num_generations=16,
        max_completion_length=1,
        beta=0.0,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        seed=seed,
    )
    return GRPOTrainer(
        model,
        reward_funcs=AFineReward(afine, render),
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": PROMPT, "reference": path} for path in pictures]),
        processing_class=tokenizer,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--afine", required=True, help="model folder or released checkpoint")
    parser.add_argument("--pictures", required=True, type=Path, help="folder of clean pictures")
    parser.add_argument("--output", required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    pictures = [str(path) for path in find_images([given.pictures])]
    trainer = build_trainer(AFine.from_pretrained(given.afine), pictures, given.output, steps=given.steps,
                            seed=given.seed)  # fmt: skip
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
