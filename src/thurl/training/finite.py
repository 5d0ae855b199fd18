"""A training whose loss or weights stop being numbers ends there, before a checkpoint or a final model holds them.

transformers goes on: its log replaces such a loss by the mean of those before it (`logging_nan_inf_filter`), and the
weights that it saves are NaN. Both are looked at once per optimizer step, on all processes: the loss of every
micro-batch, and the weights that are trained, since a gradient can be NaN where the loss is not.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from thurl.errors import DivergedError


__all__ = ["FiniteTrainer", "first_not_finite"]

_NO_NUMBERS = ("probability tensor contains", "all elements of input should be between 0 and 1")
"""How torch says, on a CPU, that what the model gives is NaN: drawing completions, binary cross-entropy."""


class FiniteTrainer(Trainer):
    """Mixin before a `transformers.Trainer`; `train` raises `DivergedError`."""

    stops_at_nan = True
    """False: the caller looks at what was learned."""
    _bad_loss: float | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.stops_at_nan:
            # The first, so that no other callback evaluates what is no model any more.
            self.callback_handler.callbacks.insert(0, _Look(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train.

        Raises:
            DivergedError: loss or weights are NaN or infinite after a step, or nothing can be computed with them.
        """
        self._bad_loss = None
        try:
            return super().train(*args, **kwargs)
        except RuntimeError as error:
            what = self._not_finite() if self.stops_at_nan else None
            # Weights may be numbers still, and what comes out of the model none: then there is no loss to look at.
            if what is None and self.stops_at_nan and any(words in str(error) for words in _NO_NUMBERS):
                what = f"what the model computes is not finite ({error})"
            if what is None:
                raise
            raise self.diverged(self.state.global_step + 1, what) from error

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        # transformers reads the loss at this point, too, so that a GPU need not wait for this.
        if self.stops_at_nan and not bool(loss.isfinite().all()):
            self._bad_loss = float(loss)
        return loss

    def _not_finite(self) -> str | None:
        if self._bad_loss is not None:
            return f"the loss is {self._bad_loss}"
        name = first_not_finite(self.model)
        return None if name is None else f"the weight `{name}` is not finite"

    def _stop_if_not_finite(self) -> None:
        what = self._not_finite()
        bad = what is not None
        if self.args.world_size > 1:  # all processes leave at the same step: none waits for one that has gone
            flag = torch.tensor(int(bad), device=self.args.device)
            bad = bool(self.accelerator.reduce(flag, reduction="sum"))
        if bad:
            raise self.diverged(self.state.global_step, what or "the loss of another process is not finite")

    def diverged(self, step: int, what: str) -> DivergedError:
        """The error that ends the training: what was found in the optimizer step of this number, and what to do."""
        return DivergedError(
            f"Step {step} of {self.state.max_steps}: {what}. The training stopped and saved nothing of this step. "
            f"Lower `training.learning_rate` ({self.args.learning_rate}) or `training.max_grad_norm` "
            f"({self.args.max_grad_norm}), or look for data that leave the loss undefined; then start again, or go on "
            "from the last checkpoint with `training.resume_from_checkpoint=auto`."
        )


def first_not_finite(model: torch.nn.Module) -> str | None:
    """Name of the first parameter that is trained and holds NaN or an infinity; None: all are finite.

    Of parameters that are split over processes, this process's part is looked at.
    """
    named = {name: _part(value.detach()) for name, value in model.named_parameters() if value.requires_grad}
    named = {name: value for name, value in named.items() if value.numel()}  # ZeRO-3 leaves empty ones
    # The greatest magnitude of all, in one pass without copies; it is NaN where one of them is.
    if not named or bool(torch.nn.utils.get_total_norm(named.values(), float("inf")).isfinite()):
        return None
    return next(name for name, value in named.items() if not bool(value.isfinite().all()))


def _part(value: torch.Tensor) -> torch.Tensor:
    return value.to_local() if hasattr(value, "to_local") else value  # FSDP


class _Look(TrainerCallback):
    def __init__(self, trainer: FiniteTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._stop_if_not_finite()
