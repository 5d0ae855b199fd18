"""The phases of a GRPO step (`thurl.training.timed_trainer`), charged around the private methods of TRL 1.16.

| phase | what belongs to it |
|---|---|
| `data` | waiting for the loader; templates, preprocessing, padding, advantages: whatever else makes a batch |
| `rollout` | drawing completions, with transformers or vLLM |
| `weight_sync` | handing the weights to vLLM |
| `reward` | reward functions, on all completions of all processes |
| `old_logps` | log-probabilities under the policy that drew the completions, where TRL needs them |
| `reference_logps` | log-probabilities under the reference model or without the adapter |
| `update` | forward, backward and optimizer |
| `save`, `evaluation` | checkpoints; evaluation with everything in it |
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from thurl.training.timed_trainer import TimedTrainer
from thurl.training.timing import phase, timed


__all__ = ["TimedRollouts", "timed_log_probs", "uses_reference"]


class TimedRollouts(TimedTrainer):
    """Mixin before `trl.GRPOTrainer`.

    A subclass that overrides `_get_per_token_logps_and_entropies` decorates it with `timed_log_probs`, and its
    `_generate_and_score_completions` with `timed("data")`.
    """

    phases = (
        *("data", "rollout", "weight_sync", "reward", "old_logps", "reference_logps"),
        *("update", "save", "evaluation"),
    )
    _draws_completions = False

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with (
            _timed_attribute(self, "rollout_func", "rollout"),
            _timed_attribute(getattr(self, "vllm_generation", None), "sync_weights", "weight_sync"),
        ):
            return super().train(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self._draws_completions = True
        try:
            with phase("data"):
                return super()._generate_and_score_completions(inputs)
        finally:
            self._draws_completions = False

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with phase("rollout"):
            return super()._generate_single_turn(*args, **kwargs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        with phase("reward"):
            return super()._calculate_rewards(*args, **kwargs)


@contextmanager
def _timed_attribute(owner: Any, name: str, phase_name: str) -> Iterator[None]:
    """Charge the function in this attribute, where there is one, until the end of the block."""
    plain = getattr(owner, name, None)
    if plain is None:
        yield
        return
    setattr(owner, name, timed(phase_name)(plain))
    try:
        yield
    finally:
        setattr(owner, name, plain)


def timed_log_probs(method: Callable[..., Any]) -> Callable[..., Any]:
    """Charge calls that belong to a new batch of completions; those of the loss are part of the update."""

    @functools.wraps(method)
    def wrapper(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._draws_completions:
            return method(self, model, *args, **kwargs)
        with phase("reference_logps" if uses_reference(model, self.ref_model) else "old_logps"):
            return method(self, model, *args, **kwargs)

    return wrapper


def uses_reference(model: Any, ref_model: Any) -> bool:
    """Whether a call of `model` asks the reference: it is `ref_model`, or its adapter is off or is named `ref`."""
    if ref_model is not None:
        return model is ref_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    layer = next((module for module in model.modules() if isinstance(module, BaseTunerLayer)), None)
    return layer is not None and (layer.disable_adapters or "ref" in layer.active_adapters)
