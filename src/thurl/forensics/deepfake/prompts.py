"""Token ids of the sentences of a label graph, as CLIP's text tower reads them.

Those of the shipped graphs are kept, so that a model can be made without a tokenizer. A graph of your own needs
CLIP's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from thurl.errors import UsageError
from thurl.forensics.deepfake.graph import LabelGraph


__all__ = ["known_prompts", "tokenized"]


@cache
def known_prompts() -> Mapping[str, tuple[int, ...]]:
    """Sentence to token ids of CLIP's tokenizer with start (49406) and end (49407), without padding."""
    text = resources.files(__package__).joinpath("graphs", "prompts.json").read_text(encoding="utf-8")
    return {row["text"]: tuple(row["ids"]) for row in json.loads(text)}


def tokenized(graph: LabelGraph, tokenizer: Any = None) -> list[list[int]]:
    """Token ids of a graph's sentences, without padding.

    Args:
        graph: whose sentences.
        tokenizer: `CLIPTokenizer` of transformers; None: only sentences of the shipped graphs.

    Raises:
        UsageError: a sentence that is not known, and no tokenizer.
    """
    sentences: Sequence[str] = graph.prompts()
    if tokenizer is not None:
        return [list(ids) for ids in tokenizer(list(sentences))["input_ids"]]
    if unknown := [sentence for sentence in sentences if sentence not in known_prompts()]:
        raise UsageError(
            f"label graph {graph.name}: the token ids of {unknown[0]!r} are not known. Give `prompt_ids`, or a CLIP "
            "model with its tokenizer"
        )
    return [list(known_prompts()[sentence]) for sentence in sentences]
