"""The slow ways that `thurl.editing` replaces, as the official code goes: target masks one picture at a time, and an
edit with whole matrices as parameters, both through the whole network. Used by a benchmark and by the tests.
"""

from __future__ import annotations

import torch
from torch.func import functional_call
from torch.nn import functional

from thurl.editing.classifier import Classifier
from thurl.editing.meta_step import MaskSearch, SearchSettings, pseudo_loss


def search_one_by_one(
    classifier: Classifier, mixed: torch.Tensor, clean: torch.Tensor, settings: SearchSettings, start: torch.Tensor
) -> MaskSearch:
    """As `thurl.editing.meta_step.search_masks`, without its locality term."""
    found = [_search(classifier, mixed[i : i + 1], clean[i : i + 1], settings, start[i]) for i in range(len(mixed))]
    scores, unedited, edited = (torch.stack(values) for values in zip(*found, strict=True))
    return MaskSearch(scores, torch.sigmoid(3 * scores), unedited, edited)


def edit_whole_model(
    classifier: Classifier, pictures: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, rate: float, steps: int
) -> dict[str, torch.Tensor]:
    """Weights of the units by name after all the steps: RMSprop on whole matrices with masked gradients."""
    parameters = {name: value.detach() for name, value in classifier.model.named_parameters()}
    weights = {unit.parameter: parameters[unit.parameter].clone().requires_grad_() for unit in classifier.units}
    optimizer = torch.optim.RMSprop(list(weights.values()), lr=rate)
    for _ in range(steps):
        changed = {f"model.{name}": value for name, value in {**parameters, **weights}.items()}
        loss = functional.cross_entropy(functional_call(classifier, changed, (pictures,)), labels)
        optimizer.zero_grad()
        loss.backward()
        for row, unit in enumerate(classifier.units):
            gradient = weights[unit.parameter].grad
            assert gradient is not None
            gradient.mul_(mask[row].repeat(unit.groups).unsqueeze(1 - unit.axis))
        optimizer.step()
    return {name: weight.detach() for name, weight in weights.items()}


def _search(
    classifier: Classifier, mixed: torch.Tensor, clean: torch.Tensor, settings: SearchSettings, start: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        teacher = classifier.logits(clean)
    parameters = {name: value.detach() for name, value in classifier.model.named_parameters()}
    names = [unit.parameter for unit in classifier.units]

    def loss(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        changed = {f"model.{name}": value for name, value in {**parameters, **weights}.items()}
        return pseudo_loss(teacher, functional_call(classifier, changed, (mixed,)), settings.temperature).sum()

    def factors(masks: torch.Tensor) -> list[torch.Tensor]:
        return [masks[row].repeat(unit.groups).unsqueeze(1 - unit.axis) for row, unit in enumerate(classifier.units)]

    scores = start.clone().requires_grad_()
    optimizer = torch.optim.RMSprop([scores], lr=settings.outer_rate)
    unedited = edited = torch.zeros(())
    for _ in range(settings.outer_steps):
        masks = torch.sigmoid(10 * scores)
        deltas = [torch.zeros_like(parameters[name]) for name in names]
        for step in range(settings.inner_steps):
            weights = {
                name: (parameters[name] + mask * delta).requires_grad_()
                for name, mask, delta in zip(names, factors(masks.detach()), deltas, strict=True)
            }
            value = loss(weights)
            if step == 0:
                unedited = value.detach()
            gradients = torch.autograd.grad(value, list(weights.values()))
            deltas = [delta - settings.inner_rate * found for delta, found in zip(deltas, gradients, strict=True)]
        value = loss(
            {
                name: parameters[name] + mask * delta
                for name, mask, delta in zip(names, factors(masks), deltas, strict=True)
            }
        )
        edited = value.detach()
        optimizer.zero_grad()
        (value + settings.penalty * masks.sum()).backward()
        optimizer.step()
    return scores.detach(), unedited, edited
