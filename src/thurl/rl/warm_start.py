"""Teaches a randomly initialised tiny model to see and to answer in the format, without telling it any score.

Two supervised stages on `transformers.Trainer`:

1. Vision pretext: the vision tower with a linear layer on its mean output names the degradation and its level.
   A tiny tower does not learn to see from the language loss in minutes.
2. Answer format: the whole model on `<think>severity kind</think><answer>score</answer>`, where the score is drawn
   uniformly from 1.0, 1.1 .. 5.0 anew each time a picture is shown, independent of the picture.

No information on scores enters: the ratings of the records are dropped before anything else (`describe_records`), and
the names of degradations are names, not ranks. Afterwards the expected rank correlation with any rating is zero; the
order is left to reinforcement learning.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thurl.data.degradations import describe
from thurl.data.images import open_image
from thurl.errors import DataError, UsageError
from thurl.rl.tiny import TINY_QUESTION, TINY_THINK_SUFFIX


if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from thurl.data.labels import RatedImage

__all__ = ["Described", "WarmStartOptions", "answer_text", "describe_records", "warm_start"]


@dataclass(frozen=True)
class Described:
    """A picture and the two words that describe it; deliberately without any rating."""

    image: str
    words: str


@dataclass(frozen=True)
class WarmStartOptions:
    """Settings of the two stages.

    Attributes:
        pretext_steps, pretext_batch, pretext_lr: vision pretext (AdamW, cosine to zero).
        format_steps, format_batch, format_lr: answer format (AdamW, cosine to zero).
        score_weight: weight of the random score's tokens in the loss of stage 2. Their loss cannot fall below the
            entropy of the draw, so a small weight leaves the gradient to the description; it must stay positive, or
            the policy would start without exploring all scores.
        train_vision: keep training the vision tower in stage 2.
        weight_decay: of both stages.
    """

    pretext_steps: int = 600
    pretext_batch: int = 64
    pretext_lr: float = 2e-3
    format_steps: int = 500
    format_batch: int = 48
    format_lr: float = 2e-3
    score_weight: float = 0.3
    train_vision: bool = True
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)!r}: must be at least {minimum}"
            for name, minimum in (("pretext_steps", 0), ("pretext_batch", 1), ("format_steps", 0), ("format_batch", 1))
            if getattr(self, name) < minimum
        ]
        problems += [
            f"{name}={getattr(self, name)!r}: must be positive"
            for name in ("pretext_lr", "format_lr", "score_weight")
            if not getattr(self, name) > 0
        ]
        if problems:
            raise UsageError(problems)


def describe_records(records: Sequence[RatedImage]) -> list[Described]:
    """Pictures with the words for their `kind` and `level`; ratings, data set and photograph are dropped.

    Raises:
        DataError: rows without a usable `kind` and `level` column (the first three and the count).
    """
    described, problems = [], []
    for record in records:
        try:
            words = describe(record.extra["kind"], int(record.extra["level"]))
        except (KeyError, ValueError, DataError) as error:
            problems.append(f"{record.source} row {record.row}: no usable kind and level ({error})")
            continue
        described.append(Described(record.image, words))
    if problems:
        raise DataError(
            f"{len(problems)} of {len(records)} rows cannot be described; the warm start needs the columns kind and "
            "level: " + "; ".join(problems[:3])
        )
    if not described:
        raise DataError("records is empty: the warm start needs described pictures")
    return described


def answer_text(words: str, rng: np.random.Generator) -> str:
    """The answer taught in stage 2; the score depends on `rng` alone."""
    return f"<think>{words}</think><answer>{rng.integers(10, 51) / 10:.1f}</answer>"


def warm_start(
    model: Any,
    processor: Any,
    records: Sequence[RatedImage],
    *,
    question: str = f"{TINY_QUESTION} {TINY_THINK_SUFFIX}",
    options: WarmStartOptions | None = None,
    seed: int = 0,
    output_dir: str | None = None,
) -> dict[str, float]:
    """Run both stages in place. Same arguments, same weights (on the same machine, torch and thread count).

    Args:
        model, processor: as built by :func:`thurl.rl.tiny.build_tiny_qwen2_5_vl`.
        records: pictures with `kind` and `level` in `extra`; their ratings are not looked at.
        question: text of the user turn after the picture; use the one that training and scoring will use.
        options: settings of the stages.
        seed: of sampling, scores and the pretext layer.
        output_dir: where Trainer may write; a temporary folder by default. Nothing is saved.

    Returns:
        pretext_loss, pretext_accuracy, format_loss (means over the last tenth of each stage), pictures, seconds.

    Raises:
        DataError: records without kind and level, or pictures that cannot be read.
        UsageError: settings out of range.
    """
    import tempfile

    options = options or WarmStartOptions()
    started = time.perf_counter()
    described = describe_records(records)
    pixels, grids = _encode(processor, described)
    results: dict[str, float] = {"pictures": float(len(described))}
    with tempfile.TemporaryDirectory() as scratch:
        folder = output_dir or scratch
        if options.pretext_steps:
            results |= _vision_pretext(model, described, pixels, grids, options, seed, folder)
        if options.format_steps:
            results |= _answer_format(model, processor, described, pixels, grids, question, options, seed, folder)
    model.eval()
    return results | {"seconds": time.perf_counter() - started}


def _encode(processor: Any, described: Sequence[Described]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Patches of each picture `[n_patches, patch_values]` float32 and the grids `[n, 3]` (time, height, width)."""
    import torch

    pixels: list[torch.Tensor] = []
    grids = []
    for start in range(0, len(described), 256):
        images = [open_image(item.image) for item in described[start : start + 256]]
        batch = processor.image_processor(images=images, return_tensors="pt")
        pixels += batch["pixel_values"].split(batch["image_grid_thw"].prod(1).tolist())
        grids.append(batch["image_grid_thw"])
    return pixels, torch.cat(grids)


def _arguments(folder: str, steps: int, batch: int, lr: float, options: WarmStartOptions, seed: int) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=min(20, steps // 10),
        weight_decay=options.weight_decay,
        adam_beta2=0.98,  # short runs: the default 0.999 remembers longer than they last
        seed=seed,
        data_seed=seed,
        logging_steps=max(1, steps // 10),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not _has_gpu(),
    )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _train(module: nn.Module, n: int, collate: Any, arguments: Any, stage: str) -> list[dict[str, float]]:
    """Train `module` on indices 0..n-1 through transformers.Trainer; returns the log entries that hold a loss."""
    from transformers import set_seed

    from thurl.training.finite import FiniteTrainer
    from thurl.training.progress import ProgressLines, quiet_trainer

    set_seed(arguments.seed)
    # One long epoch in which every picture comes equally often: Trainer collects garbage at each start of an epoch,
    # which for small sets takes longer than the steps.
    indices = [i % n for i in range(arguments.max_steps * arguments.per_device_train_batch_size)]
    trainer = FiniteTrainer(model=module, args=arguments, train_dataset=indices, data_collator=collate)
    quiet_trainer(trainer)
    trainer.add_callback(ProgressLines({"loss": ("loss", ".3f")}, f"{stage}: "))
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def _vision_pretext(
    model: Any,
    described: Sequence[Described],
    pixels: list[torch.Tensor],
    grids: torch.Tensor,
    options: WarmStartOptions,
    seed: int,
    folder: str,
) -> dict[str, float]:
    """Stage 1: cross-entropy over the descriptions on the mean-pooled output of the vision tower."""
    import torch
    from torch import nn

    names = sorted({item.words for item in described})
    labels = torch.tensor([names.index(item.words) for item in described])
    merge = model.config.vision_config.spatial_merge_size**2
    hits: list[float] = []

    class Pretext(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = model.model.visual
            self.head = nn.Linear(model.config.vision_config.out_hidden_size, len(names))

        def forward(self, pixel_values, image_grid_thw, labels):  # noqa: ANN001, ANN202
            tokens = self.visual(pixel_values, grid_thw=image_grid_thw).pooler_output
            counts = (image_grid_thw.prod(1) // merge).tolist()
            pooled = torch.stack([part.mean(0) for part in tokens.split(counts)])
            logits = self.head(pooled)
            hits.append((logits.argmax(-1) == labels).float().mean().item())
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    def collate(indices: list[int]) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.cat([pixels[i] for i in indices]),
            "image_grid_thw": grids[indices],
            "labels": labels[indices],
        }

    torch.manual_seed(seed)
    module = Pretext()
    arguments = _arguments(folder, options.pretext_steps, options.pretext_batch, options.pretext_lr, options, seed)
    log = _train(module, len(described), collate, arguments, "learning to see")
    tail = hits[-max(1, len(hits) // 10) :]
    return {"pretext_loss": log[-1]["loss"], "pretext_accuracy": sum(tail) / len(tail)}


def _answer_format(
    model: Any,
    processor: Any,
    described: Sequence[Described],
    pixels: list[torch.Tensor],
    grids: torch.Tensor,
    question: str,
    options: WarmStartOptions,
    seed: int,
    folder: str,
) -> dict[str, float]:
    """Stage 2: next-token loss on the answers, random scores drawn when a batch is put together."""
    import numpy as np
    import torch
    from torch import nn

    tokenizer = processor.tokenizer
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    prompt = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    merge = model.config.vision_config.spatial_merge_size**2
    pad = processor.image_token
    rng = np.random.default_rng([seed, 2])
    end = tokenizer.eos_token

    def collate(indices: list[int]) -> dict[str, torch.Tensor]:
        answers = [answer_text(described[i].words, rng) for i in indices]
        prompts = [prompt.replace(pad, pad * int(grids[i].prod() // merge)) for i in indices]
        batch = tokenizer(
            [p + a + end for p, a in zip(prompts, answers, strict=True)], padding=True, return_tensors="pt"
        )
        ids = batch["input_ids"]
        weights = torch.zeros(ids.shape)
        for row, answer in enumerate(answers):
            inside = tokenizer(answer + end)["input_ids"]
            score = len(tokenizer(answer.split("<answer>")[0] + "<answer>")["input_ids"])
            weights[row, -len(inside) :] = 1.0
            weights[row, ids.shape[1] - len(inside) + score : -2] = options.score_weight
        return {
            "input_ids": ids,
            "attention_mask": batch["attention_mask"],
            "mm_token_type_ids": (ids == processor.image_token_id).long(),
            "pixel_values": torch.cat([pixels[i] for i in indices]),
            "image_grid_thw": grids[indices],
            "weights": weights,
        }

    class AnswerFormat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, weights, **inputs):  # noqa: ANN001, ANN003, ANN202
            keep = int(weights.bool().sum(1).max())  # answers end the rows: only their positions need logits
            logits = self.model(**inputs, use_cache=False, logits_to_keep=keep + 1).logits[:, :-1]
            targets, weights = inputs["input_ids"][:, -keep:].flatten(), weights[:, -keep:].flatten()
            losses = nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
            return {"loss": (losses * weights).sum() / weights.sum()}

    frozen = [] if options.train_vision else [p for p in model.model.visual.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    arguments = _arguments(folder, options.format_steps, options.format_batch, options.format_lr, options, seed)
    try:
        log = _train(AnswerFormat(), len(described), collate, arguments, "learning to answer")
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    return {"format_loss": log[-1]["loss"]}
