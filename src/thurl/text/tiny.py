"""A tiny causal language model: Llama or Qwen2 architecture, one token per character, built and taught offline.

Classes and files are those of released checkpoints, so that loading, generation, TRL, PEFT and saving take the path
a real model takes. It is pre-trained on commands of `thurl.text.commands`, in seconds on one core.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from thurl.errors import UsageError
from thurl.text.questions import Question


__all__ = ["build_character_tokenizer", "build_tiny_language_model", "pretrain"]

logger = logging.getLogger(__name__)

Architecture = Literal["llama", "qwen2"]


def build_character_tokenizer() -> Any:
    """A tokenizer with one token per printable ASCII character and for a new line; others become `<unk>`."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    characters = ["\n", *map(chr, range(32, 127))]
    special = ("<pad>", "<eos>", "<unk>")
    vocabulary = {token: index for index, token in enumerate([*special, *characters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def build_tiny_language_model(
    seed: int,
    *,
    architecture: Architecture = "llama",
    hidden: int = 64,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int | None = None,
    intermediate: int | None = None,
) -> tuple[Any, Any]:
    """Model with random weights, in float32, and its tokenizer.

    Args:
        seed: of the weights; the global random state is left as it was.
        hidden: width, a multiple of twice `heads`.
        intermediate: width inside the MLP, twice `hidden` by default.

    Raises:
        UsageError: sizes that do not divide.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    if hidden % (2 * heads) or heads % (kv_heads or heads):
        raise UsageError(f"hidden {hidden}, heads {heads}, kv_heads {kv_heads}: take a multiple of {2 * heads}")
    tokenizer = build_character_tokenizer()
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }[architecture]
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=intermediate or 2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        max_position_embeddings=512,
        # The library's 0.02 is meant for widths of thousands; a narrow model so initialised learns far more slowly.
        initializer_range=hidden**-0.5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


def pretrain(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    folder: Path,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
) -> dict[str, float]:
    """Teach all weights to complete the questions.

    Args:
        questions: with text prompts and completions; gone through in turn, as often as `steps * batch` needs.
        folder: for the trainer's files.
        learning_rate: peak; linear warm-up over a twentieth of the steps, then linear decay to 0.

    Returns:
        `loss` of the last tenth of the steps, in nats per token of the completions, and `seconds`.
    """
    import torch
    from transformers import TrainingArguments

    def collate(rows: Sequence[Question]) -> dict[str, Any]:
        pairs = [
            (tokenizer(str(row.prompt))["input_ids"], tokenizer(f"{row.completion}{tokenizer.eos_token}")["input_ids"])
            for row in rows
        ]
        width = max(len(prompt) + len(completion) for prompt, completion in pairs)
        ids = torch.full((len(rows), width), tokenizer.pad_token_id)
        labels = torch.full((len(rows), width), -100)
        for row, (prompt, completion) in enumerate(pairs):
            ids[row, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
            labels[row, len(prompt) : len(prompt) + len(completion)] = torch.tensor(completion)
        return {"input_ids": ids, "labels": labels, "attention_mask": (ids != tokenizer.pad_token_id).long()}

    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=max(1, steps // 20),
        weight_decay=0.01,
        logging_steps=max(1, steps // 10),
        save_strategy="no",
        report_to=[],
        seed=seed,
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    from thurl.training.finite import FiniteTrainer
    from thurl.training.progress import quiet_trainer

    started = time.perf_counter()
    trainer = FiniteTrainer(model, arguments, train_dataset=list(questions), data_collator=collate)
    quiet_trainer(trainer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"loss": losses[-1], "seconds": time.perf_counter() - started}
