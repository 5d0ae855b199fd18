"""A causal language model as a classifier: how likely each label's words are after a prompt, and a prompt's feature.

Prompts are int64 [B, P] with `PAD` on the left, so that the last column is every prompt's last token. `PAD` is no
token: a model may use its end token for padding, which a prompt may hold as well.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from thurl.errors import UsageError


__all__ = [
    "IGNORED",
    "PAD",
    "LanguageModelEncoder",
    "Prompts",
    "label_log_likelihoods",
    "label_rows",
    "left_padded",
    "model_inputs",
]

PAD = -1
"""In place of a token."""
IGNORED = -100
"""In place of a token to predict."""


class Prompts:
    """Inputs of a language model in `ClassData`: token ids of every sample's prompt and of every class's label.

    Args:
        prompts: token ids, at least one each.
        labels: token ids of the label of each class number, at least one each.

    Attributes:
        identity: SHA-256 of all of them.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> None:
        self.prompts = tuple(torch.tensor(ids, dtype=torch.int64) for ids in prompts)
        self.labels = tuple(tuple(ids) for ids in labels)
        content = f"{[list(ids) for ids in prompts]}\0{[list(ids) for ids in labels]}"
        self.identity = hashlib.sha256(content.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        """Prompts of `rows`, int64 [n], as int64 [n, P] with `PAD` on the left, P the longest of them."""
        return left_padded([self.prompts[row] for row in rows.tolist()])


class LanguageModelEncoder(nn.Module):
    """Features of prompts: the last hidden state of a causal language model.

    Args:
        model: of transformers; its head gives no feature, but learners of labels use it.
        pooling: "last", at the prompt's last token, or "mean", over all its tokens.

    Raises:
        UsageError: another pooling, or no causal language model.
    """

    def __init__(self, model: Any, pooling: str = "last") -> None:
        super().__init__()
        if pooling not in ("last", "mean"):
            raise UsageError(f"pooling is {pooling!r}; choose last or mean")
        if getattr(model, "get_output_embeddings", lambda: None)() is None:
            raise UsageError(f"{type(model).__name__} is no causal language model; give one of transformers")
        self.model = model
        self.pooling = pooling
        # What makes features, for `thurl.continual.encoding.fingerprint`.
        self.config = {**model.config.to_diff_dict(), "pooling": pooling}

    def forward(self, prompts: torch.Tensor) -> torch.Tensor:
        """Float [B, D] for prompts [B, P]."""
        given, body = prompts >= 0, self.model.base_model
        states = body(**model_inputs(body, prompts), use_cache=False).last_hidden_state
        if self.pooling == "last":
            return states[:, -1]
        return (states * given[..., None]).sum(dim=1) / given.sum(dim=1, keepdim=True)


def label_log_likelihoods(
    model: Any, prompts: torch.Tensor, labels: Sequence[Sequence[int]], *, normalise: bool = False
) -> torch.Tensor:
    """Log-probability of each label after each prompt: the sum over the label's tokens, in nats.

    A prompt is read once; its keys and values serve all labels.

    Args:
        model: a causal language model of transformers whose cache can be repeated.
        prompts: int64 [B, P], see the module.
        labels: token ids of C labels.
        normalise: divide by the number of the label's tokens.

    Returns:
        float32 [B, C].
    """
    given = prompts >= 0
    count, longest = len(labels), max(map(len, labels))
    output = model(**model_inputs(model, prompts), use_cache=longest > 1, logits_to_keep=1)
    first = torch.log_softmax(output.logits[:, -1].float(), dim=-1)
    scores = first[:, torch.tensor([ids[0] for ids in labels], device=prompts.device)]
    if longest > 1:
        cache = output.past_key_values
        cache.batch_repeat_interleave(count)
        tokens = torch.full((count, longest), PAD)
        for row, ids in enumerate(labels):
            tokens[row, : len(ids)] = torch.tensor(ids)
        tokens = tokens.to(prompts.device).repeat(len(prompts), 1)  # (B * C, longest)
        read, wanted = tokens[:, :-1], tokens[:, 1:]
        seen = torch.cat([given.repeat_interleave(count, dim=0), read >= 0], dim=1)
        places = given.sum(dim=1).repeat_interleave(count)[:, None] + torch.arange(longest - 1, device=prompts.device)
        logits = model(**model_inputs(model, read, seen, places), past_key_values=cache, use_cache=True).logits
        found = torch.log_softmax(logits.float(), dim=-1).gather(-1, wanted.clamp_min(0)[..., None])[..., 0]
        scores = scores + (found * (wanted >= 0)).sum(dim=1).view(len(prompts), count)
    return scores / torch.tensor([len(ids) for ids in labels], device=scores.device) if normalise else scores


def label_rows(prompts: Sequence[torch.Tensor], labels: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Rows to train on: prompt and label, padded on the left.

    Returns:
        `input_ids` int64 [B, L] with `PAD`, and `labels` int64 [B, L], `IGNORED` where nothing is to be predicted.
    """
    ids = [torch.cat([prompt, torch.tensor(label)]) for prompt, label in zip(prompts, labels, strict=True)]
    joined = left_padded(ids)
    wanted = torch.full_like(joined, IGNORED)
    for row, label in enumerate(labels):
        wanted[row, -len(label) :] = torch.tensor(label)
    return {"input_ids": joined, "labels": wanted}


def left_padded(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """int64 [n, L] of token ids with `PAD` on the left."""
    width = max(map(len, rows), default=0)
    padded = torch.full((len(rows), width), PAD, dtype=torch.int64)
    for row, ids in enumerate(rows):
        padded[row, width - len(ids) :] = ids
    return padded


def model_inputs(
    model: Any, tokens: torch.Tensor, seen: torch.Tensor | None = None, positions: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Arguments of a model of transformers for token ids [B, L] with `PAD`.

    Args:
        seen: bool [B, past + L], which tokens may be attended to; those of `tokens` that are no `PAD` when None.
        positions: int64 [B, L]; counted from each row's first token when None.
    """
    if seen is None:
        seen = tokens >= 0
    if positions is None:
        positions = (seen.cumsum(dim=1) - 1).clamp_min(0)
    inputs = {"input_ids": tokens.clamp_min(0), "attention_mask": seen.long(), "position_ids": positions}
    # Models that count positions by themselves, from the mask, have no such argument.
    accepted = inspect.signature(model.forward).parameters
    return {name: value for name, value in inputs.items() if name in accepted}
