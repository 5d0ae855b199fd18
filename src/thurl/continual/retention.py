"""Losses that keep what was learned: distillation from the model before, and elastic weight consolidation.

LwF: "Learning without Forgetting" (arXiv 1606.09282). EWC: "Overcoming catastrophic forgetting in neural networks"
(arXiv 1612.00796), in the online form of "Progress & Compress" (arXiv 1805.06370): one running Fisher, and the weights
after the last task as the only anchor, so that a state does not grow with the number of tasks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn
from torch.func import grad, vmap

from thurl.errors import UsageError


__all__ = ["bounded_weight", "decayed_fisher", "diagonal_fisher", "distillation_loss", "elastic_penalty"]

logger = logging.getLogger(__name__)

Tensors = Mapping[str, torch.Tensor]

MEMORY = 2**28
"""Bytes that the gradients of single samples may take at once."""


def distillation_loss(logits: torch.Tensor, old_logits: torch.Tensor, temperature: float = 2.0) -> torch.Tensor:
    """Cross-entropy of the old model's softened answer and the new one's, over the old columns; a scalar in nats.

    Mean over b of -sum_c softmax(old / T)_c log softmax(new[:, :C] / T)_c, equations 2 and 3 of LwF: without the
    factor T^2 that Hinton's distillation has. Least, the entropy of the old answer, where both agree up to a constant.

    Args:
        logits: float [B, C or more], the old classes first; columns after C do not count.
        old_logits: float [B, C] of the model before the task; no gradient flows into them.
        temperature: T, above 0.
    """
    soft = (old_logits.detach() / temperature).softmax(dim=1)
    new = (logits[:, : old_logits.shape[1]] / temperature).log_softmax(dim=1)
    return -(soft * new).sum(dim=1).mean()


def diagonal_fisher(
    logits: Callable[[Tensors, torch.Tensor], torch.Tensor],
    parameters: Tensors,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """Diagonal of the empirical Fisher: the mean over samples of the squared gradient of log p(true label | sample).

    The gradient of each sample is squared before the mean; that of a batch, squared, would be something else. Samples
    are taken many at once by `torch.func.vmap`, one by one for a model that it does not support (a warning says so).

    Args:
        logits: of parameters and inputs [B, ...], float [B, C]; a model in evaluation mode.
        parameters: by name; the result has the same names, shapes and dtypes.
        batches: inputs [B, ...] and labels, int64 [B], numbers of the columns; at least one sample.

    Raises:
        UsageError: no sample.
    """
    held = {name: value.detach() for name, value in parameters.items()}

    def likelihood(at: Tensors, one: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return -nn.functional.cross_entropy(logits(at, one[None]), label[None])

    single = grad(likelihood)
    together: Callable[..., Tensors] | None = vmap(single, in_dims=(None, 0, 0))
    chunk = max(1, MEMORY // sum(value.numel() * value.element_size() for value in held.values()))
    total = {name: torch.zeros_like(value) for name, value in held.items()}
    count = 0
    for inputs, labels in batches:
        count += len(labels)
        for some, names in zip(inputs.split(chunk), labels.split(chunk), strict=True):
            found: list[Tensors] = []
            if together is not None:
                try:
                    found = [together(held, some, names)]
                except RuntimeError as error:
                    logger.warning("Fisher: samples are taken one by one, since vmap cannot run this model: %s", error)
                    together = None
            if together is None:
                found = [
                    {name: value[None] for name, value in single(held, one, label).items()}
                    for one, label in zip(some, names, strict=True)
                ]
            for gradients in found:
                for name, value in gradients.items():
                    total[name] += value.square().sum(dim=0)
    if count == 0:
        raise UsageError("the Fisher needs at least one sample, and got none")
    return {name: value / count for name, value in total.items()}


def decayed_fisher(old: Tensors, new: Tensors, decay: float) -> dict[str, torch.Tensor]:
    """decay * old + new, Progress & Compress; where `new` has more rows (of a head that grew), they count alone.

    Args:
        old: by name, may lack names of `new`.
        decay: in [0, 1]; 1 forgets no task.
    """
    result = {}
    for name, value in new.items():
        result[name] = value.clone()
        if name in old:
            result[name][: len(old[name])] += decay * old[name]
    return result


def bounded_weight(fisher: torch.Tensor, strength: float, rate: float) -> torch.Tensor:
    """w = strength F / (1 + rate strength F): strength F, but where a step of gradient descent could not follow it.

    A step at `rate` multiplies the distance from the anchor by 1 - rate w, which is 1 / (1 + rate strength F): what an
    implicit step gives. With w = strength F itself, distances would grow from rate strength F = 2 on.
    """
    return strength * fisher / (1 + rate * strength * fisher)


def elastic_penalty(parameters: Tensors, anchors: Tensors, weights: Tensors) -> torch.Tensor:
    """Half the sum over the entries of `weights` of w (parameter - anchor)^2, a scalar; equation 3 of EWC.

    Args:
        parameters: by name, with all names of `weights`; rows after those of the anchor (new classes) do not count.
        anchors: parameters after the last task; no gradient flows into them.
        weights: lambda times the Fisher, of the anchors' shapes, at least one.
    """
    parts = [
        (value * (parameters[name][: len(value)] - anchors[name].detach()).square()).sum()
        for name, value in weights.items()
    ]
    return 0.5 * torch.stack(parts).sum()
