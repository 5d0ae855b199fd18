"""Frozen networks that judge a restored picture: further loss terms of `RestorationModel`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from thurl.restoration.losses import cosine_distance, feature_distance


__all__ = ["FrozenCritic", "embedding_critic", "feature_critic", "score_critic"]

Judge = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class FrozenCritic:
    """A loss term with a network that is never trained.

    The network is computed in float32 whatever the trained model computes in, follows the pictures to their device,
    and stays in evaluation mode.

    Args:
        network: taken over: frozen, in evaluation mode.
        judge: restored and target pictures, (B, 3, H, W) float32 in about [0, 1], to a scalar; may call the network.
    """

    def __init__(self, network: nn.Module, judge: Judge):
        self.network = network.float().eval().requires_grad_(False)
        self._judge = judge

    def __call__(self, restored: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss, with gradients for `restored` only."""
        device = restored.device
        held = next(self.network.parameters(), None)
        if held is not None and held.device != device:
            self.network.to(device)
        with torch.autocast(device.type, enabled=False):
            return self._judge(restored.float(), target.detach().float())


def feature_critic(network: nn.Module, features: Callable[[torch.Tensor], Sequence[torch.Tensor]]) -> FrozenCritic:
    """Distance of features.

    Args:
        network: what `features` computes with.
        features: pictures (B, 3, H, W) in [0, 1] to a list of (B, C, ...).
    """

    def judge(restored: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = features(target)
        return feature_distance(features(restored), wanted)

    return FrozenCritic(network, judge)


def embedding_critic(network: nn.Module, embed: Callable[[torch.Tensor], torch.Tensor]) -> FrozenCritic:
    """One minus the cosine of the embeddings (B, D) of restored and target picture: the identity loss of faces."""

    def judge(restored: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = embed(target)
        return cosine_distance(embed(restored), wanted)

    return FrozenCritic(network, judge)


def score_critic(network: nn.Module, score: Callable[..., Any], *, reference: bool) -> FrozenCritic:
    """Mean of a quality score that is smaller for better pictures.

    Args:
        network: what `score` computes with.
        score: restored pictures, and with `reference` the targets, to (B,).
        reference: whether the score compares. Without, nothing ties the result to the target but the other terms.
    """

    def judge(restored: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (score(restored, target) if reference else score(restored)).mean()

    return FrozenCritic(network, judge)
