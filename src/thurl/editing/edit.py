"""Masked fine-tuning on a few failing pictures.

Paper: "Learning Where to Edit Vision Transformers" (arXiv 2411.01948) and its released code: RMSprop on the masked
rows of `fc1` and columns of `fc2` until every picture is right with a cross-entropy of at most 0.01, checked before
each of at most 100 steps.

Different from the release, with the same result: the part of the model before the first edited block runs once, and
only the masked rows and columns are parameters, so gradients and optimizer state are of their size. Different on
purpose: pictures that are all right already are not edited.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from thurl.editing.classifier import Classifier
from thurl.editing.delta import Delta, UnitChange, edited_weights, touched, wide
from thurl.editing.protection import Protection
from thurl.editing.updates import OPTIMIZERS, State
from thurl.errors import DataError, UsageError
from thurl.messages import nearest


__all__ = ["Edit", "EditSettings", "edit"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EditSettings:
    """How an edit is made; the defaults are those of the released command.

    Args:
        rate: learning rate, positive.
        max_steps: at most this many steps, positive.
        stop_loss: an edit ends when every picture is right with a mean cross-entropy of at most this, in nats.
        optimizer: `rmsprop` (the paper's), `adam` or `sgd`.
        l1: weight of the sum of absolute changes in the loss; 0 in the paper's edit, more in its baselines.
        l2: weight of half the sum of squared changes in the loss.
        change_cap: an edit that changes the touched weights of a unit by more than this, relative to their norm, is
            warned about.

    Raises:
        UsageError: a value out of range; all of them in one error.
    """

    rate: float = 2e-5
    max_steps: int = 100
    stop_loss: float = 0.01
    optimizer: str = "rmsprop"
    l1: float = 0.0
    l2: float = 0.0
    change_cap: float = 0.5

    def __post_init__(self) -> None:
        problems = []
        for name in ("rate", "change_cap"):
            if not 0 < getattr(self, name) < math.inf:
                problems.append(f"{name} {getattr(self, name)}: must be positive")
        for name in ("stop_loss", "l1", "l2"):
            if not 0 <= getattr(self, name) < math.inf:
                problems.append(f"{name} {getattr(self, name)}: must not be negative")
        if self.max_steps < 1:
            problems.append(f"max_steps {self.max_steps}: must be at least 1")
        if self.optimizer not in OPTIMIZERS:
            hint = nearest(self.optimizer, OPTIMIZERS)
            problems.append(f"optimizer {self.optimizer!r}: must be one of {', '.join(OPTIMIZERS)}{hint}")
        if problems:
            raise UsageError(problems)


@dataclass(frozen=True, eq=False)
class Edit:
    """What came of it.

    Args:
        delta: the change; empty when the pictures were right already.
        steps: updates made.
        losses: mean cross-entropy before each update and at the end, in nats; steps + 1 values.
        right_before: for each picture, whether the model was right.
        right: the same after the edit.
        reached: the stop rule is met: all right, and the loss low enough.
        relative_change: norm of the change over the norm of the touched weights, by label of the unit.
        logits: after the edit, [B, C] on the CPU.
    """

    delta: Delta
    steps: int
    losses: tuple[float, ...]
    right_before: tuple[bool, ...]
    right: tuple[bool, ...]
    reached: bool
    relative_change: Mapping[str, float]
    logits: torch.Tensor

    @property
    def already_right(self) -> bool:
        """There was nothing to edit."""
        return all(self.right_before)

    @property
    def success(self) -> bool:
        """Every picture is right now."""
        return all(self.right)


@dataclass(eq=False)
class _Slice:
    """A unit's touched weights during an edit."""

    change: UnitChange
    original: torch.Tensor
    value: torch.Tensor
    projector: torch.Tensor | None
    state: State = field(default=())

    def done(self) -> UnitChange:
        """On the CPU, so that edits of any device are merged and saved alike."""
        return UnitChange(self.change.unit, self.change.neurons.cpu(), self.value.detach().cpu(), self.original.cpu())

    def difference(self) -> torch.Tensor:
        """What is added to the weights once they are back in their own dtype; gradients reach `value`."""
        original = self.original
        edited = (original.to(self.value.dtype) + self.value).to(original.dtype)
        return (edited.to(self.value.dtype) - original.to(self.value.dtype)).to(original.dtype)

    def hook(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        """The layer's output with the edit in it, without a second copy of the whole weight."""
        index = self.change.indices
        if self.change.unit.axis == 0:
            return output.index_add(-1, index, functional.linear(inputs[0], self.difference()))
        return output + functional.linear(inputs[0].index_select(-1, index), self.difference())

    def update(self, gradient: torch.Tensor, step: int, settings: EditSettings) -> None:
        with torch.no_grad():
            gradient = gradient + settings.l1 * self.value.sign() + settings.l2 * self.value
            move, self.state = OPTIMIZERS[settings.optimizer](gradient, self.state, step, settings.rate)
            self.value += move if self.projector is None else move @ self.projector


def edit(
    classifier: Classifier,
    pixel_values: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor,
    settings: EditSettings | None = None,
    *,
    protection: Protection | None = None,
    note: Mapping[str, Any] | None = None,
    watch: Callable[[int, float], None] | None = None,
) -> Edit:
    """Make the pictures right by changing the masked neurons; the model itself stays as it is.

    Args:
        classifier: the model.
        pixel_values: [B, channels, H, W], preprocessed for it.
        labels: int64 [B], their right classes.
        mask: bool [T, M] of `classifier.units`.
        settings: default: those of the release.
        protection: of activations that must stay as they are, made with the same mask.
        note: kept in the history of the delta beside what is known here, as JSON values.
        watch: called with step and loss before each update.

    Raises:
        UsageError: labels outside the classes, a mask of another shape or an empty one, a loss that is not finite.
        DataError: pictures with NaN or infinite values.
    """
    settings = settings or EditSettings()
    _check(classifier, pixel_values, labels, mask)
    layer = classifier.first_layer
    hidden = classifier.prefix(pixel_values, layer)
    with torch.no_grad():
        logits = _wide(classifier.suffix(hidden, layer))
    right_before = _right(logits, labels)
    if all(right_before):
        logger.warning("already right: %d of %d pictures; nothing is edited", len(labels), len(labels))
        mask = torch.zeros_like(mask)
    slices = _slices(classifier, mask, protection)
    losses: list[float] = []
    stopped = False
    with ExitStack() as stack:
        for one in slices:
            stack.enter_context(_hooked(classifier.linear[one.change.unit.parameter], one))
        for step in range(settings.max_steps if slices else 0):
            logits = _wide(classifier.suffix(hidden, layer))
            loss = functional.cross_entropy(logits, labels)
            value = loss.item()
            if not math.isfinite(value):
                raise UsageError(f"the loss is {value} at step {step}, nothing is edited; {_advice(step)}")
            stopped = value <= settings.stop_loss and all(_right(logits, labels))
            if stopped:
                break
            losses.append(value)
            if watch is not None:
                watch(step, losses[-1])
            gradients = torch.autograd.grad(loss, [one.value for one in slices])
            for one, gradient in zip(slices, gradients, strict=True):
                one.update(gradient, step + 1, settings)
    done = Delta(
        classifier.fingerprint(),
        classifier.units,
        tuple(one.done() for one in slices),
    )
    # The edited weights themselves, as applying them gives: in half precision what the hooks add up is not the same.
    with torch.no_grad():
        logits = _wide(classifier.suffix(hidden, layer, edited_weights(classifier.model, done)))
    losses.append(functional.cross_entropy(logits, labels).item())
    if not math.isfinite(losses[-1]):
        raise UsageError(f"the loss is {losses[-1]} at the end, nothing is edited; {_advice(len(losses) - 1)}")
    right = _right(logits, labels)
    change = {one.change.unit.label: _relative(one) for one in slices}
    too_much = [f"{label} by {value:.2f}" for label, value in change.items() if value > settings.change_cap]
    if too_much:
        logger.warning(
            "the edit changes the touched weights of %s of their norm, more than %g; a lower rate or fewer steps "
            "change less",
            ", ".join(too_much),
            settings.change_cap,
        )
    entry = {
        "labels": labels.tolist(),
        "right_before": list(right_before),
        "right": list(right),
        "steps": len(losses) - 1,
        "loss": losses[-1],
        "density": done.density,
        "settings": asdict(settings),
        "protected": protection is not None,
        **(note or {}),
    }
    return Edit(
        replace(done, history=(entry,)),
        len(losses) - 1,
        tuple(losses),
        right_before,
        right,
        all(right) and (stopped or losses[-1] <= settings.stop_loss),
        change,
        logits.cpu(),
    )


def _check(classifier: Classifier, pixel_values: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> None:
    problems = []
    if pixel_values.dim() != 4 or labels.dim() != 1 or len(pixel_values) != len(labels) or not len(labels):
        problems.append(
            f"pictures of shape {list(pixel_values.shape)} and labels of shape {list(labels.shape)}: must be "
            "[B, channels, H, W] and [B], one or more"
        )
    if labels.dtype != torch.int64:
        problems.append(f"labels of {labels.dtype}: must be class numbers, torch.int64")
    else:
        outside = sorted({int(label) for label in labels.flatten() if not 0 <= label < classifier.classes})
        if outside:
            found = ", ".join(map(str, outside))
            problems.append(f"class {found}: the model has the classes 0 to {classifier.classes - 1}")
    if tuple(mask.shape) != classifier.mask_shape or mask.dtype != torch.bool:
        problems.append(
            f"a mask of {mask.dtype} {list(mask.shape)}: the units need torch.bool {list(classifier.mask_shape)}"
        )
    elif not mask.any():
        problems.append("a mask without any neuron: nothing could be edited; raise the density")
    if problems:
        raise UsageError(problems)
    if not pixel_values.isfinite().all():
        raise DataError("pictures with NaN or infinite values cannot be edited on; check how they are preprocessed")


def _slices(classifier: Classifier, mask: torch.Tensor, protection: Protection | None) -> list[_Slice]:
    if protection is not None and mask.any():
        protection.check(mask)
    slices = []
    for unit, neurons in touched(classifier.units, mask):
        weight = classifier.linear[unit.parameter].weight
        neurons = neurons.to(weight.device)
        change = UnitChange(unit, neurons, torch.empty(0), None)
        original = change.read(weight)
        value = torch.zeros_like(original, dtype=wide(original.dtype)).requires_grad_()
        projector = None if protection is None else protection.projectors[unit.label].to(value)
        slices.append(_Slice(change, original, value, projector))
    return slices


@contextmanager
def _hooked(module: nn.Module, one: _Slice) -> Iterator[None]:
    handle = module.register_forward_hook(one.hook)
    try:
        yield
    finally:
        handle.remove()


def _right(logits: torch.Tensor, labels: torch.Tensor) -> tuple[bool, ...]:
    return tuple((logits.argmax(dim=-1) == labels).tolist())


def _relative(one: _Slice) -> float:
    norm = one.original.double().norm().item()
    return one.value.detach().double().norm().item() / norm if norm else math.inf


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(wide(logits.dtype))


def _advice(step: int) -> str:
    return "lower the rate" if step else "check the pictures and the model's weights"
