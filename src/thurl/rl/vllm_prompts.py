"""Prompts for vLLM inside the training process (TRL 1.16, colocate mode).

TRL hands vLLM token ids in which every picture's placeholder is already repeated once per visual token; vLLM then
expands one of them again, and the rollout sees a corrupted prompt (TRL issues 6294 and 6401, open PR 6718). Nothing
crashes: the measured mean log-probability difference was 0.54 instead of 0.002. Remove this module when the installed
TRL collapses the placeholders itself; `tests/rl/test_vllm_prompts.py` fails when the call it wraps changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


__all__ = ["collapse_image_tokens", "wrap_colocate_generation"]


def collapse_image_tokens(ids: Sequence[int], image_token_id: int) -> list[int]:
    """One placeholder per picture: every run of `image_token_id` becomes a single one.

    Right as long as two pictures are never adjacent without a token between them, which holds for chat templates with
    vision start and end tokens (Qwen).
    """
    return [
        token
        for position, token in enumerate(ids)
        if token != image_token_id or position == 0 or ids[position - 1] != image_token_id
    ]


def wrap_colocate_generation(generation: Any, image_token_id: int) -> None:
    """Let `generation.generate(prompts=...)` of `trl`'s `VLLMGeneration` see collapsed prompts.

    Only for colocate mode: the server expects the expanded ids. The ids of the training forward are not touched.
    """
    generate = generation.generate

    def collapsed(prompts: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        return generate([collapse_image_tokens(ids, image_token_id) for ids in prompts], *args, **kwargs)

    generation.generate = collapsed
