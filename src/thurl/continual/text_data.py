"""A pool of texts as a language model reads it: prompts and labels in tokens, features by the frozen model."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from thurl.continual.class_data import ClassData
from thurl.continual.features import encode, features_key
from thurl.continual.label_scores import LanguageModelEncoder, Prompts
from thurl.continual.pool import raise_problems
from thurl.continual.text_pool import TextPool
from thurl.errors import UsageError
from thurl.text.prompts import PromptStyle, prompt_tokens
from thurl.text.questions import Question


__all__ = ["text_data"]


def text_data(
    pool: TextPool,
    encoder: LanguageModelEncoder,
    tokenizer: Any,
    *,
    style: PromptStyle | None = None,
    words: Mapping[str, str] | None = None,
    end: bool = True,
    max_length: int | None = None,
    cache: Path | None = None,
    batch_size: int = 64,
    advance: Callable[[int], None] | None = None,
) -> ClassData:
    """Prompts, labels and features of all texts.

    Args:
        encoder: with the language model, frozen here.
        tokenizer: of it.
        style: how a text becomes a prompt; the text alone when None. A template should end with a space or a new line
            of its own, since prompt and label are tokenised apart. It is part of the `pool_hash`, as are the labels.
        words: label text by `class_uid`; the class's name where it is not in it.
        end: a label ends with the tokenizer's end token. Without it a label that begins another is always likelier.
        max_length: tokens of prompt and longest label together; what the model has positions for when None.
        cache: folder in which features are kept, by the prompts' tokens.
        batch_size: prompts encoded at a time.
        advance: told the number of prompts encoded.

    Raises:
        UsageError: a label for an unknown class, no end token.
        DataError: a label or prompt without tokens, labels that are the same tokens, prompts that are too long (none
            is ever cut), features that are NaN or infinite; the first 20 and the count.
    """
    classes, style = pool.pool.classes, style or PromptStyle()
    texts = _label_texts(pool, words or {})
    labels = _label_tokens(pool, tokenizer, texts, end)
    if max_length is None:
        max_length = getattr(encoder.model.config, "max_position_embeddings", None)
    longest = max(map(len, labels))
    prompts, problems = [], []
    for item in pool.pool.images:
        ids = prompt_tokens(tokenizer, style.prompt(Question(pool.texts[item.sha256], item.dataset)))
        prompts.append(ids)
        if not ids:
            problems.append(f"{item.class_uid} {item.image}: the prompt has no token; give a template with words")
        elif max_length is not None and len(ids) + longest > max_length:
            problems.append(
                f"{item.class_uid} {item.image}: prompt of {len(ids)} tokens and label of up to {longest}, more than "
                f"{max_length}; none is cut. Shorten it, leave it out of the pool, or raise max_length"
            )
    raise_problems(problems, "texts that the model cannot read")
    inputs = Prompts(prompts, labels)
    features = encode(
        encoder,
        [hashlib.sha256(str(ids).encode()).hexdigest() for ids in prompts],
        lambda rows: inputs[torch.tensor(list(rows))],
        folder=cache,
        batch_size=batch_size,
        advance=advance,
    )
    number = {uid: index for index, uid in enumerate(classes)}
    return ClassData(
        classes,
        torch.tensor([number[item.class_uid] for item in pool.pool.images]),
        [item.split for item in pool.pool.images],
        features=features,
        inputs=inputs,
        encoder=features_key(encoder),
        pool_hash=_hash(pool, style, texts),
        groups=pool.pool.groups,
    )


def _hash(pool: TextPool, style: PromptStyle, labels: Sequence[str]) -> str:
    """Of the benchmark: other words around a text, or for a class, are another one."""
    asked = {"pool": pool.hash, "style": asdict(style), "labels": list(labels)}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _label_texts(pool: TextPool, words: Mapping[str, str]) -> list[str]:
    classes = pool.pool.classes
    unknown = [f"words: class {uid!r} is not in the pool; write dataset/class" for uid in words if uid not in classes]
    if unknown:
        raise UsageError(unknown)
    names = {item.class_uid: item.class_name for item in pool.pool.images}
    return [words.get(uid, names[uid]) for uid in classes]


def _label_tokens(pool: TextPool, tokenizer: Any, texts: Sequence[str], end: bool) -> list[list[int]]:
    """Token ids of the label of each class."""
    if end and tokenizer.eos_token_id is None:
        raise UsageError("the tokenizer has no end token; set one, or take end=False")
    classes, groups = pool.pool.classes, pool.pool.groups
    found = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    problems = [
        f"{uid}: its label {text!r} has no token; give another in `words`"
        for uid, text, ids in zip(classes, texts, found, strict=True)
        if not ids
    ]
    # Aliases never meet, so they may have one label.
    same: dict[tuple[int, ...], dict[int, str]] = defaultdict(dict)
    for uid, group, ids in zip(classes, groups, found, strict=True):
        if ids:
            same[tuple(ids)].setdefault(group, uid)
    problems += [
        f"{' and '.join(uids.values())}: their labels are the same tokens; give others in `words`"
        for uids in same.values()
        if len(uids) > 1
    ]
    raise_problems(problems, "labels that a language model cannot tell apart")
    return [[*ids, tokenizer.eos_token_id] if end else list(ids) for ids in found]
