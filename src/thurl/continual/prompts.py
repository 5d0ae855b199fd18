"""A pool of prompts for a frozen vision transformer.

"Learning to Prompt for Continual Learning" (arXiv 2112.08654), equations 3 and 4. Every sample takes the prompts whose
keys are most similar to its own query. LAMDA-PILOT takes those that are chosen most often in a batch, also when it
predicts; then an answer depends on the other samples of the batch, which is why it is not repeated here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from thurl.errors import UsageError
from thurl.vit import final_norm, transformer_blocks


__all__ = ["PromptedEncoder", "select_prompts"]

_CLASS_TOKENS = ("cls_token", "class_embedding")


def select_prompts(query: torch.Tensor, keys: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` keys with the greatest cosine to each query, the greatest first; of equal ones the first.

    Args:
        query: float [B, D].
        keys: float [P, D].
        count: 1..P.

    Returns:
        their numbers, int64 [B, count], and the cosines, float [B, count] in [-1, 1], with gradients.
    """
    cosines = nn.functional.normalize(query, dim=1) @ nn.functional.normalize(keys, dim=1).T
    # A stable sort, since topk promises nothing about equal values.
    chosen = cosines.detach().sort(dim=1, descending=True, stable=True).indices[:, :count]
    return chosen, cosines.gather(1, chosen)


class PromptedEncoder(nn.Module):
    """A vision transformer that is frozen, with prompts put before its first block.

    The query of a sample is its class token after the last norm, without prompts. The chosen prompts follow the class
    token, without position embedding; their order does not matter then. A feature is the mean of their tokens after
    the last block and the last norm.

    CLIP's projection into the space of texts is not used, neither for the query nor for the features: D is the width
    of the tower. `post_layernorm`, which CLIP applies to the class token alone, is applied to the prompts' tokens.

    Args:
        backbone: of the kinds that `thurl.vit` knows, with a class token; it is frozen and stays in evaluation mode.
        pool: prompts in the pool, P.
        length: tokens of a prompt, L.
        chosen: prompts per sample, at most `pool`.

    Attributes:
        prompts: float [P, L, D], 0 until they are set.
        keys: float [P, D], 0 until they are set.

    Raises:
        UsageError: a backbone without blocks, last norm or class token; sizes below 1.
    """

    def __init__(self, backbone: nn.Module, *, pool: int = 10, length: int = 5, chosen: int = 5) -> None:
        super().__init__()
        problems = [
            f"{name} is {value}; it must be 1 or more"
            for name, value in (("pool", pool), ("length", length), ("chosen", chosen))
            if value < 1
        ]
        if chosen > pool:
            problems.append(f"chosen is {chosen}; it must be at most the {pool} prompts of the pool")
        if not any(name.rpartition(".")[2] in _CLASS_TOKENS for name, _ in backbone.named_parameters()):
            problems.append(f"{type(backbone).__name__} has no class token to choose prompts by")
        try:
            transformer_blocks(backbone)
            width = sum(value.numel() for name, value in final_norm(backbone).named_parameters() if name == "weight")
        except UsageError as error:
            problems = [f"prompts are tokens of a vision transformer: {problem}" for problem in error.problems]
        if problems:
            raise UsageError(problems)
        self.backbone = backbone.requires_grad_(False)
        self.chosen = chosen
        self.prompts = nn.Parameter(torch.zeros(pool, length, width))
        self.keys = nn.Parameter(torch.zeros(pool, width))
        self._cosines: torch.Tensor | None = None

    def train(self, mode: bool = True) -> PromptedEncoder:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Features, float [B, D]. In training mode the cosines wait for `take_cosines`."""
        features, cosines = self.encode(inputs)
        self._cosines = cosines if self.training else None
        return features

    def take_cosines(self) -> torch.Tensor:
        """Cosines of the last `forward` in training mode, see `encode`; once."""
        found, self._cosines = self._cosines, None
        if found is None:
            raise RuntimeError("there was no forward pass in training mode since the last call")
        return found

    def encode(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features, float [B, D], and the cosines of each query with its chosen keys, float [B, chosen]."""
        chosen, cosines = select_prompts(self.query(inputs), self.keys, self.chosen)
        prompts = self.prompts[chosen].flatten(1, 2)  # (B, chosen * L, D)
        tokens = self._tokens(inputs, prompts)
        return self._norm(tokens[:, 1 : 1 + prompts.shape[1]]).mean(dim=1), cosines

    def query(self, inputs: torch.Tensor) -> torch.Tensor:
        """Class token of the backbone as it is, float [B, D], without gradients."""
        with torch.no_grad():
            return self._norm(self._tokens(inputs)[:, 0])

    def _norm(self, tokens: torch.Tensor) -> torch.Tensor:
        return final_norm(self.backbone)(tokens)

    def _tokens(self, inputs: torch.Tensor, prompts: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens after the last block, before the last norm, [B, tokens, D]."""
        blocks = transformer_blocks(self.backbone)
        with _prepended(blocks[0], prompts), _caught(blocks[-1]) as found:
            self.backbone(inputs)
        return found[0]


@contextmanager
def _prepended(block: nn.Module, prompts: torch.Tensor | None) -> Iterator[None]:
    """Inside, `block` sees `prompts` [B, n, D] after the first token."""

    def put(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        # transformers passes the tokens by position or by name.
        tokens = args[0] if args else named["hidden_states"]
        joined = torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], dim=1)
        return ((joined, *args[1:]), named) if args else (args, {**named, "hidden_states": joined})

    if prompts is None:
        yield
        return
    handle = block.register_forward_pre_hook(put, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _caught(block: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Inside, what `block` returns goes into the list."""
    found: list[torch.Tensor] = []

    def take(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output if isinstance(output, torch.Tensor) else output[0])

    handle = block.register_forward_hook(take)
    try:
        yield found
    finally:
        handle.remove()
