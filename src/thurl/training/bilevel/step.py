"""The outer step: from a model, its optimizer, a training batch and an outer batch to new task weights.

The model is never moved. Its parameters and buffers are exchanged for other tensors while a pass needs other values,
and the very same tensors are put back, so that parameters and the statistics of BatchNorm are bit-identical afterwards
by construction, also after an error. (The official code adds and subtracts in place, which drifts, and lets four
passes update the statistics instead of one.) Gradients in `.grad` are not touched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from thurl.errors import UsageError
from thurl.training.bilevel.config import BilevelConfig
from thurl.training.bilevel.mathematics import (
    AdamState,
    Tensors,
    adam_update,
    difference_radius,
    direction,
    finite_difference,
    from_raw,
    global_norm,
    raw_gradient,
    shifted,
    step_rules,
    to_raw,
    virtual_parameters,
)


__all__ = ["BilevelReport", "BilevelStep", "Losses", "RandomState", "random_state"]

logger = logging.getLogger(__name__)

Losses = Callable[[Any], tuple[torch.Tensor, torch.Tensor | None]]
"""A batch to its task losses (T,) with graph and which tasks it has labels for (T,) bool, None: all of them."""
Average = Callable[[Tensors], Tensors]
"""Means of tensors over all processes, each of which must call it."""
RandomState = tuple[torch.Tensor, torch.Tensor | None]


@dataclass(frozen=True)
class BilevelReport:
    """What an outer step did.

    Attributes:
        weights: (T,) float64, after the step.
        hypergradient: (T,) float64, `h` of `thurl.training.bilevel.mathematics`: positive where the task helps the
            primary ones. The gradient of the outer loss is `-alpha h`.
        present: (T,) bool, tasks with labels in the training batch; only their weights have moved.
        outer_loss: of the primary tasks at the virtual parameters.
        alpha: largest learning rate of the virtual step.
        skipped: why nothing was updated, empty when something was.
    """

    weights: torch.Tensor
    hypergradient: torch.Tensor
    present: torch.Tensor
    outer_loss: float
    alpha: float
    skipped: str = ""


@dataclass
class BilevelStep:
    """Learns the weights of tasks, one outer step at a time; the state is `state_dict()`.

    Args:
        config: the settings.
        average: means over the processes under data parallel training; default: one process. Gradients of the
            training and the outer batch, their losses and which tasks are present go through it, so that all
            processes hold the same weights.
    """

    config: BilevelConfig
    average: Average = field(default=lambda tensors: tensors)

    def __post_init__(self) -> None:
        starts = torch.tensor(self.config.starts, dtype=torch.float64)
        self._raw = to_raw(starts, self.config.positive)
        self._adam = AdamState.zeros(len(starts))
        self._primary = torch.tensor([name in self.config.primary for name in self.config.tasks])
        self._at_zero: set[str] = set()

    @property
    def weights(self) -> torch.Tensor:
        """(T,) float64 on the CPU, in the order of `config.tasks`."""
        return from_raw(self._raw, self.config.positive)

    def due(self, step: int) -> bool:
        """Whether the weights are updated in optimizer step `step`, counted from 0."""
        return step >= self.config.warmup and (step - self.config.warmup) % self.config.every == 0

    def weighted(self, losses: torch.Tensor) -> torch.Tensor:
        """`sum_i lambda_i L_i` with the present weights, which are constants; `losses` (T,)."""
        return (self.weights.to(losses) * losses).sum()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Tensors only."""
        return {"raw": self._raw, "mean": self._adam.mean, "square": self._adam.square, "updates": self._adam.updates}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            UsageError: of another number of tasks.
        """
        if state["raw"].shape != self._raw.shape:
            raise UsageError(
                f"The saved outer state has {len(state['raw'])} task weights, this run {len(self._raw)}: "
                f"{', '.join(self.config.tasks)}. Take the same tasks, or begin anew."
            )
        self._raw = state["raw"].clone()
        self._adam = AdamState(*(state[name].clone() for name in ("mean", "square", "updates")))

    def step(
        self,
        model: torch.nn.Module,
        optimizer: Any,
        losses: Losses,
        train: Sequence[Any],
        outer: Sequence[Any],
        *,
        gradients: Sequence[torch.Tensor | None] | None = None,
        random_states: Sequence[RandomState] | None = None,
    ) -> BilevelReport:
        """Update the weights once.

        Args:
            model: the module whose parameters `losses` reads, not its DDP wrapper.
            optimizer: of the model; its learning rates, weight decay and momentum make the virtual step.
            losses: runs the model on a batch, in full precision.
            train: the micro-batches of one optimizer step; their mean is the training loss.
            outer: likewise, of the outer loss.
            gradients: of the weighted training loss at the present parameters and weights, one per trained parameter
                of `model.parameters()`, mean over micro-batches and processes. None: computed here.
            random_states: of the generators before each training pass that made `gradients`
                (`random_state`), so that dropout drops the same in the two passes whose difference is taken.
        """
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        _refuse_half(parameters)
        with _preserved(model, parameters) as place:
            start = [parameter.data for parameter in parameters]
            if gradients is None:
                gradients, random_states = self._train_gradients(parameters, losses, train)
            elif random_states is None:
                random_states = [random_state(parameters)] * len(train)
            rules = step_rules(optimizer, parameters, self.config.virtual)
            with torch.no_grad():
                place(virtual_parameters(start, gradients, rules))
            outer_loss, outer_gradients = self._outer_gradients(parameters, losses, outer)
            with torch.no_grad():
                along, alpha = direction(outer_gradients, start, rules)
                norm = global_norm(along)
            none = torch.zeros_like(self._raw)
            if not norm > 0 or norm == float("inf"):
                reason = f"the outer gradient has the norm {norm}"
                return BilevelReport(self.weights, none, none.bool(), outer_loss, alpha, reason)
            after = random_state(parameters)
            if self.config.method == "exact":
                place(start)
                h, present = self._exact(parameters, losses, train, random_states, along)
            else:
                eps = difference_radius(norm, self.config.fd_radius, self.config.fd_eps)
                sides = []
                for sign in (1, -1):
                    with torch.no_grad():
                        place(shifted(start, along, sign * eps))
                    sides.append(self._train_losses(losses, train, random_states))
                h, present = finite_difference(sides[0][0], sides[1][0], eps), sides[0][1]
            set_random_state(after)
        h, shares = self.average([h.cpu().double(), present.cpu().double()])
        return self._update(h, shares > 0, outer_loss, alpha)

    def _update(self, h: torch.Tensor, present: torch.Tensor, outer_loss: float, alpha: float) -> BilevelReport:
        config = self.config
        if not bool(torch.isfinite(h).all()):
            return BilevelReport(self.weights, h, present, outer_loss, alpha, "the outer gradient is not finite")
        gradient = raw_gradient(-alpha * h if config.scale_by_lr else -h, self._raw, config.positive)
        self._raw, self._adam = adam_update(
            self._raw, gradient, self._adam, lr=config.lr, betas=config.betas, eps=config.adam_eps, present=present
        )
        if config.positive == "clamp":
            low = {name for name, value in zip(config.tasks, self._raw.tolist(), strict=True) if value < 0}
            self._raw = self._raw.clamp_min(0)
            for name in sorted(low - self._at_zero):
                logger.warning("The weight of task %r reached 0: it works against %s", name, ", ".join(config.primary))
            self._at_zero |= low
        skipped = "" if bool(present.any()) else "no task has labels in the training batch"
        return BilevelReport(self.weights, h, present, outer_loss, alpha, skipped)

    # -- passes ------------------------------------------------------------------------------------------------------

    def _train_gradients(
        self, parameters: Sequence[torch.nn.Parameter], losses: Losses, train: Sequence[Any]
    ) -> tuple[list[torch.Tensor | None], list[RandomState]]:
        total: list[torch.Tensor | None] = [None] * len(parameters)
        states = []
        for batch in train:
            states.append(random_state(parameters))
            values, _ = losses(batch)
            total = _added(total, _gradients(self.weighted(values) / len(train), parameters))
        return self._averaged(total, parameters), states

    def _outer_gradients(
        self, parameters: Sequence[torch.nn.Parameter], losses: Losses, outer: Sequence[Any]
    ) -> tuple[float, list[torch.Tensor | None]]:
        total: list[torch.Tensor | None] = [None] * len(parameters)
        value = 0.0
        for batch in outer:
            values, _ = losses(batch)
            loss = (self._primary.to(values) * values).sum() / len(outer)
            total = _added(total, _gradients(loss, parameters))
            value += float(loss.detach())
        (mean,) = self.average([torch.tensor([value], dtype=torch.float64)])
        return float(mean), self._averaged(total, parameters)

    def _train_losses(
        self, losses: Losses, train: Sequence[Any], random_states: Sequence[RandomState]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean task losses (T,) over the micro-batches, and which tasks any of them has."""
        total, present = torch.zeros(()), torch.zeros(())
        for batch, state in zip(train, random_states, strict=True):
            set_random_state(state)
            if self.config.method == "autograd":
                values, has = losses(batch)
                weights = self.weights.to(values).requires_grad_()
                (values,) = torch.autograd.grad((weights * values).sum(), weights)
            else:
                with torch.no_grad():
                    values, has = losses(batch)
            has = torch.ones_like(values, dtype=torch.bool) if has is None else has
            total = total.to(values.device) + values.detach().double() / len(train)
            present = present.to(values.device) + has.double()
        return total, present > 0

    def _exact(
        self,
        parameters: Sequence[torch.nn.Parameter],
        losses: Losses,
        train: Sequence[Any],
        random_states: Sequence[RandomState],
        along: Tensors,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`<grad L_i, d>` by differentiating `<grad sum_i lambda_i L_i, d>` with respect to lambda."""
        total, present = torch.zeros(()), torch.zeros(())
        for batch, state in zip(train, random_states, strict=True):
            set_random_state(state)
            values, has = losses(batch)
            weights = self.weights.to(values).requires_grad_()
            gradients = _gradients((weights * values).sum() / len(train), parameters, create_graph=True)
            pairs = zip(gradients, along, strict=True)
            product = sum(((gradient * step).sum() for gradient, step in pairs if gradient is not None))
            (h,) = torch.autograd.grad(product, weights)
            has = torch.ones_like(values, dtype=torch.bool) if has is None else has
            total, present = total.to(h.device) + h.double(), present.to(h.device) + has.double()
        return total, present > 0

    def _averaged(
        self, gradients: Sequence[torch.Tensor | None], parameters: Sequence[torch.nn.Parameter]
    ) -> list[torch.Tensor | None]:
        # A parameter that one process did not use may have a gradient on another one.
        whole = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
        return list(self.average(whole))


def random_state(parameters: Sequence[torch.Tensor] = ()) -> RandomState:
    """State of the generators a forward pass draws from: the CPU's, and that of the parameters' GPU."""
    device = parameters[0].device if parameters else torch.device("cpu")
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(state: RandomState) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])


@contextmanager
def _preserved(
    model: torch.nn.Module, parameters: Sequence[torch.nn.Parameter]
) -> Iterator[Callable[[Tensors], None]]:
    """Run passes with other parameters (`place(values)`) and with copies of the buffers; then all is as before."""
    held = [*parameters, *model.buffers()]
    saved = [tensor.data for tensor in held]

    def place(values: Tensors) -> None:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value

    try:
        for buffer in model.buffers():
            buffer.data = buffer.data.clone()
        yield place
    finally:
        for tensor, data in zip(held, saved, strict=True):
            tensor.data = data


def _gradients(
    loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter], create_graph: bool = False
) -> list[torch.Tensor | None]:
    if not loss.requires_grad:
        return [None] * len(parameters)
    return list(torch.autograd.grad(loss, list(parameters), allow_unused=True, create_graph=create_graph))


def _added(total: list[torch.Tensor | None], more: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    return [b if a is None else a if b is None else a + b for a, b in zip(total, more, strict=True)]


def _refuse_half(parameters: Sequence[torch.nn.Parameter]) -> None:
    half = {str(parameter.dtype) for parameter in parameters} & {"torch.float16", "torch.bfloat16"}
    if half:
        raise UsageError(
            f"bi-level: trained parameters are {', '.join(sorted(half))}, whose rounding is larger than the finite "
            "difference. Keep float32 weights and compute in lower precision (`training.bf16: true`)."
        )
