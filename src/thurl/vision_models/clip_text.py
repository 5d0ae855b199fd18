"""What CLIP says of names: text features of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from thurl.errors import UsageError


__all__ = ["clip_text_features"]


def clip_text_features(
    model: Any, tokenizer: Any, classes: Sequence[str], *, template: str = "a photo of a {}."
) -> torch.Tensor:
    """Text features of classes by a transformers CLIP model, float [C, D]; pictures must be encoded by the same model
    with `get_image_features`.

    Args:
        classes: `class_uid`s; what stands after the last slash is the name, `_` and `-` are read as spaces.
        template: with `{}` for the name.

    Raises:
        UsageError: a template without `{}`, or with anything else to fill in.
    """
    try:
        whole = template.format("a") != template.format("b")
    except (IndexError, KeyError, ValueError):
        whole = False
    if not whole:
        raise UsageError(f"prompt template {template!r}: there must be one {{}} for the name of the class")
    names = [uid.rpartition("/")[2].replace("_", " ").replace("-", " ") for uid in classes]
    longest = model.config.text_config.max_position_embeddings
    found = []
    for first in range(0, len(names), 256):
        texts = [template.format(name) for name in names[first : first + 256]]
        words = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        with torch.no_grad():
            output = model.get_text_features(input_ids=words["input_ids"], attention_mask=words["attention_mask"])
        found.append(output if isinstance(output, torch.Tensor) else output.pooler_output)
    return torch.cat(found)
