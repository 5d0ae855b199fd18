"""Sampling that depends on the picture and the seed, and on nothing else.

`generate` draws its tokens from one global random state, so a picture's answer depends on its place in the batch and
on everything drawn before. Here the noise of each token is a hash of (seed, picture, sample, position, token): adding
Gumbel noise to log-probabilities and taking the largest is an exact draw from them (Gumbel 1954; Maddison et al.,
arXiv 1411.0030), and a counter-based hash (SplitMix64, Steele et al., OOPSLA 2014) needs no state to carry along.

The same picture therefore gets the same draw in any batch, at any place, on any device, as far as its logits are the
same; those differ by rounding when the batch or the padding differs (see `thurl.rl.scorer`).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor


if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ForcedTokens", "SeededSampling", "image_digest", "sample_key", "seeded_gumbel"]

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def image_digest(image: Image.Image) -> bytes:
    """16-byte hash of mode, size and pixels: equal pictures are equal whatever file they came from."""
    digest = hashlib.blake2b(f"{image.mode} {image.width} {image.height} ".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()


def sample_key(seed: int, digest: bytes, sample: int, attempt: int = 0) -> int:
    """64-bit key (as a signed integer) of one completion of one picture."""
    text = f"{seed} {sample} {attempt} ".encode() + digest
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def seeded_gumbel(keys: torch.Tensor, step: int, vocabulary: int) -> torch.Tensor:
    """Standard Gumbel noise that is a pure function of its arguments.

    Args:
        keys: (B,) int64, one per row.
        step: position of the token, from 0.
        vocabulary: number of tokens V.

    Returns:
        (B, V) float64 on the device of `keys`.
    """
    rows = _mix(keys + _signed(_GOLDEN * (step + 1)))  # (B,)
    tokens = torch.arange(1, vocabulary + 1, device=keys.device, dtype=torch.int64) * _signed(_GOLDEN)  # (V,)
    bits = _shift(_mix(rows[:, None] + tokens[None, :]), 11)  # (B, V), 53 bits
    uniform = (bits.to(torch.float64) + 0.5) * 2.0**-53
    return -torch.log(-torch.log(uniform))


class SeededSampling(LogitsProcessor):
    """Turns greedy decoding into sampling: temperature, top-k and top-p as in `generate`, then seeded Gumbel noise.

    Args:
        keys: (B,) int64, one per row of the batch (`sample_key`).
        prompt_length: number of tokens before the first new one.
        temperature: > 0.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens with at least this probability; 1 keeps all.
    """

    def __init__(
        self, keys: torch.Tensor, prompt_length: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
    ):
        self.keys = keys
        self.prompt_length = prompt_length
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        logits = scores.to(torch.float64) / self.temperature  # (B, V)
        if 0 < self.top_k < logits.shape[-1]:
            floor = torch.topk(logits, self.top_k).values[..., -1, None]
            logits = logits.masked_fill(logits < floor, -torch.inf)
        if self.top_p < 1:
            ordered, order = torch.sort(logits, descending=True, stable=True)
            probability = ordered.softmax(-1)
            drop = probability.cumsum(-1) - probability >= self.top_p
            logits = logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), -torch.inf)
        step = input_ids.shape[1] - self.prompt_length
        return logits + seeded_gumbel(self.keys.to(logits.device), step, logits.shape[-1])


class ForcedTokens(LogitsProcessor):
    """Makes greedy decoding write the given tokens.

    Args:
        tokens: token id for each new position, the same for all rows; later positions are left alone.
        prompt_length: number of tokens before the first new one.
    """

    def __init__(self, tokens: list[int], prompt_length: int):
        self.tokens = tokens
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        step = input_ids.shape[1] - self.prompt_length
        if step >= len(self.tokens):
            return scores
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.tokens[step]] = 0.0
        return forced


def _signed(value: int) -> int:
    """The two's complement of the low 64 bits: torch has no arithmetic on unsigned integers."""
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right and fill with zeros; torch's own shift copies the sign bit."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: torch.Tensor) -> torch.Tensor:
    """Finaliser of SplitMix64; multiplication wraps around."""
    value = (value ^ _shift(value, 30)) * _signed(_MIX_1)
    value = (value ^ _shift(value, 27)) * _signed(_MIX_2)
    return value ^ _shift(value, 31)
