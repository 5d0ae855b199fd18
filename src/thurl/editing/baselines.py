"""Editors that change something else than the masked neurons: low-rank changes and extra neurons.

LoRA (arXiv 2106.09685) through PEFT, on the matrices of the units; a neuron per mistake in the last feed-forward
network as in T-Patcher (arXiv 2301.09785), without its memory of other pictures: no editor here sees any.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from thurl.editing.classifier import Classifier
from thurl.editing.edit import EditSettings
from thurl.editing.methods import Edited, descend
from thurl.editing.units import Unit, resolve_ffn
from thurl.errors import UsageError


__all__ = ["ExtraNeurons", "LowRank"]


@dataclass(frozen=True)
class LowRank:
    """LoRA on the matrices of all units.

    Args:
        rank: r.
        alpha: the change is alpha / r times the product.
        settings: of the edit; its penalties are taken on both factors.
        seed: of the first factor; the second one starts at zero.

    Raises:
        UsageError: a rank below 1.
    """

    rank: int = 4
    alpha: int = 4
    settings: EditSettings = EditSettings()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"rank is {self.rank}; it must be 1 or more")

    def edit_each(self, classifier: Classifier, pixel_values: torch.Tensor, labels: torch.Tensor) -> Iterator[Edited]:
        for picture, label in zip(pixel_values.split(1), labels.split(1), strict=True):
            yield self._edit(classifier, picture, label)

    def _edit(self, classifier: Classifier, pixel_values: torch.Tensor, labels: torch.Tensor) -> Edited:
        from peft import LoraConfig, inject_adapter_in_model

        layer = classifier.first_layer
        hidden = classifier.prefix(pixel_values, layer)
        adapted = copy.deepcopy(classifier)
        names = [unit.parameter.removesuffix(".weight") for unit in classifier.units]
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=names)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            inject_adapter_in_model(config, adapted.model)
        adapted.model.eval()
        leaves = [value for value in adapted.model.parameters() if value.requires_grad]
        with torch.enable_grad():
            steps, reached = descend(leaves, lambda: adapted.suffix(hidden, layer), labels, self.settings)
        weights = {}
        for name in names if steps else ():
            change = adapted.model.get_submodule(name).get_delta_weight("default").detach()
            weights[f"{name}.weight"] = classifier.model.get_submodule(name).weight.detach() + change
        return Edited(weights, layer, steps, reached, sum(leaf.numel() for leaf in leaves))


@dataclass(frozen=True)
class ExtraNeurons:
    """One more neuron in the last feed-forward network for each picture.

    A neuron begins with the direction of the picture's class token as its key, at activation 1, and the value zero.
    Key, bias and value are trained; every old weight stays.

    Args:
        settings: of the edit; Adam with the rate of T-Patcher.
    """

    settings: EditSettings = EditSettings(rate=0.01, optimizer="adam")

    def edit_each(self, classifier: Classifier, pixel_values: torch.Tensor, labels: torch.Tensor) -> Iterator[Edited]:
        for picture, label in zip(pixel_values.split(1), labels.split(1), strict=True):
            yield self._edit(classifier, picture, label)

    def _edit(self, classifier: Classifier, pixel_values: torch.Tensor, labels: torch.Tensor) -> Edited:
        layer = classifier.depth - 1
        first, last = resolve_ffn(classifier.model, [layer])
        keys = classifier.model.get_submodule(first.parameter.removesuffix(".weight"))
        values = classifier.model.get_submodule(last.parameter.removesuffix(".weight"))
        if keys.bias is None:
            raise UsageError(f"{first.parameter} has no bias; a neuron that is silent elsewhere needs one")
        hidden = classifier.prefix(pixel_values, layer)
        token = _class_token_into(classifier, keys, hidden, layer)
        key = (token / token.square().sum(dim=1, keepdim=True)).repeat(first.groups, 1).requires_grad_()
        bias = token.new_zeros(len(key)).requires_grad_()
        value = token.new_zeros(values.out_features, len(token)).requires_grad_()

        def weights() -> dict[str, torch.Tensor]:
            return {
                first.parameter: _with_neurons(keys.weight.detach(), key, first),
                f"{first.parameter.removesuffix('weight')}bias": _with_neurons(keys.bias.detach(), bias, first),
                last.parameter: torch.cat([values.weight.detach(), value], dim=1),
            }

        leaves = [key, bias, value]
        with torch.enable_grad():
            steps, reached = descend(
                leaves, lambda: classifier.suffix(hidden, layer, weights()), labels, self.settings
            )
        with torch.no_grad():
            found = weights() if steps else {}
        return Edited(found, layer, steps, reached, sum(leaf.numel() for leaf in leaves))


def _class_token_into(classifier: Classifier, module: nn.Module, hidden: torch.Tensor, layer: int) -> torch.Tensor:
    kept: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0][:, 0]))
    try:
        with torch.no_grad():
            classifier.suffix(hidden, layer)
    finally:
        handle.remove()
    return kept[0]


def _with_neurons(old: torch.Tensor, new: torch.Tensor, unit: Unit) -> torch.Tensor:
    """More rows for a first matrix or bias; a gated one has each neuron in both halves."""
    halves = zip(old.split(unit.size), new.chunk(unit.groups), strict=True)
    return torch.cat([part for half in halves for part in half])
