"""Pictures and sentences in one embedding: the head that BLADES (arXiv 2507.22824) and SJEDD (arXiv 2408.16305) share.

A picture's logit for a sentence is `scale <v, t>`, v the features of the picture and t those of the sentence. BLADES
brings both to length 1 and learns the scale; SJEDD takes them as they are and a scale of 1/10.

The sentences are token ids, in the configuration of a model. They are padded to the longest of them and not to 77,
which the causal mask of CLIP's text tower hides anyway, and encoded once per set of weights where no gradient is
wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.nn import functional


__all__ = ["KeptFeatures", "compact_prompts", "joint_logits", "padded_prompts", "prompt_problem", "unit_features"]

# Smaller norms are as good as zero: far below any feature, far above what 1 / norm would turn into infinite gradients.
_SMALLEST_NORM = 1e-6


def unit_features(features: torch.Tensor) -> torch.Tensor:
    """Rows of length 1, in float32 or better; a row of zeros stays zero.

    The official code of BLADES divides by the bare norm, which makes NaN of a zero feature. A row longer than 1e-6 is
    the same here as there.

    Args:
        features: (..., d), any floating dtype.
    """
    return functional.normalize(_wide(features), dim=-1, eps=_SMALLEST_NORM)


def joint_logits(
    pictures: torch.Tensor, sentences: torch.Tensor, *, scale: torch.Tensor | float, normalize: bool
) -> torch.Tensor:
    """`scale <v, t>` of every picture and sentence.

    Args:
        pictures: (B, d) features of any length and floating dtype.
        sentences: (n, d) likewise.
        scale: a number or a scalar tensor.
        normalize: bring both to length 1 first.

    Returns:
        (B, n), in float32 or better, also under autocast: half precision is too coarse for what is made of logits.
    """
    if normalize:
        pictures, sentences = unit_features(pictures), unit_features(sentences)
    pictures = _wide(pictures)
    with torch.autocast(pictures.device.type, enabled=False):
        if isinstance(scale, torch.Tensor):
            scale = scale.to(pictures.dtype)
        return scale * pictures @ sentences.to(pictures.dtype).T


def padded_prompts(prompt_ids: Sequence[Sequence[int]], device: torch.device | str | None = None) -> torch.Tensor:
    """Token ids (n, longest) int64, zeros on the right."""
    longest = max(map(len, prompt_ids))
    return torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in prompt_ids], device=device)


def prompt_problem(prompt_ids: Sequence[Sequence[int]], text_config: Any, columns: int) -> str:
    """Why a text tower cannot read prompts as the columns of a model, "" if it can.

    Args:
        prompt_ids: token ids with start and end, without padding.
        text_config: `CLIPTextConfig`.
        columns: of the logits.
    """
    if len(prompt_ids) != columns:
        return f"prompt_ids: {len(prompt_ids)} prompts for {columns} columns; one per column"
    for number, ids in enumerate(prompt_ids):
        if not ids or len(ids) > text_config.max_position_embeddings:
            return (
                f"prompt {number} has {len(ids)} tokens; 1 to {text_config.max_position_embeddings} fit the text tower"
            )
        if min(ids) < 0 or max(ids) >= text_config.vocab_size:
            return (
                f"prompt {number} has token ids {min(ids)} to {max(ids)}; the vocabulary of `text_config` is "
                f"0 to {text_config.vocab_size - 1}. Give `prompt_ids` that fit it."
            )
        if text_config.eos_token_id not in ids:
            return (
                f"prompt {number} lacks the end token {text_config.eos_token_id}, whose position the text tower reads"
            )
    return ""


def compact_prompts(prompt_ids: Sequence[Sequence[int]]) -> tuple[list[list[int]], dict[str, int]]:
    """The same prompts with a vocabulary of their own tokens only, for small text towers.

    Args:
        prompt_ids: token ids; the first and last of a prompt are start and end.

    Returns:
        New ids in the order of the old ones, so that the end token stays the last; and what of a `CLIPTextConfig`
        depends on them.
    """
    vocabulary = sorted({token for ids in prompt_ids for token in ids})
    place = {token: number for number, token in enumerate(vocabulary)}
    settings = {
        "vocab_size": len(vocabulary),
        "max_position_embeddings": max(map(len, prompt_ids)),
        "bos_token_id": place[prompt_ids[0][0]],
        "eos_token_id": place[prompt_ids[0][-1]],
        "pad_token_id": 0,
    }
    return [[place[token] for token in ids] for ids in prompt_ids], settings


class KeptFeatures:
    """Features of the prompts, kept until a weight they come from changes.

    A copy, or what a pickle gives back, holds nothing: its weights count their changes anew, which could hide one.
    """

    def __init__(self) -> None:
        # The weights are held too, so that no other object can take the place of one unnoticed.
        self._state: tuple[list[tuple[Any, ...]], torch.dtype | None] | None = None
        self._features: torch.Tensor | None = None

    def get(
        self, weights: Iterable[torch.Tensor], encode: Callable[[], torch.Tensor], *, training: bool
    ) -> torch.Tensor:
        """What `encode` returns, anew whenever a gradient may be wanted.

        Args:
            weights: all that `encode` reads.
            encode: makes the features.
            training: of the model.
        """
        weights = list(weights)
        # torch counts changes in place, except of tensors that were made in inference mode. `Module.to` gives a weight
        # other memory without counting.
        if training or torch.is_grad_enabled() or any(weight.is_inference() for weight in weights):
            self._state = self._features = None
            return encode()
        kind = weights[0].device.type
        state = (
            [(weight, weight._version, weight.data_ptr(), weight.dtype) for weight in weights],
            torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
        )
        if self._features is None or not _same(self._state, state):
            self._state, self._features = state, encode()
        return self._features

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return KeptFeatures, ()


def _same(mine: Any, yours: Any) -> bool:
    pairs = zip(mine[0], yours[0], strict=True)
    return mine[1] == yours[1] and all(one[0] is other[0] and one[1:] == other[1:] for one, other in pairs)


def _wide(features: torch.Tensor) -> torch.Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))
