"""CoTo in GRPO: which adapters see what, and against which old log-probabilities the update is measured.

The paper has no reinforcement learning; everything here is ours, to be read as an ablation. Samples come from the
whole policy pi, the update differentiates the masked one, pi_m. Three choices of the ratio's denominator:

- "masked_old": old log-probabilities under the mask of the step, so the ratio starts at 1 and moves with the updates
  only. One mask per batch of completions (`CoToConfig.hold`).
- "full_old": under all adapters, the policy that sampled. The ratio pi_m / pi is then far from 1 while p is small, and
  the clip can silence tokens; read `coto/abs_log_ratio` and TRL's `clip_ratio/*`.
- "detach": no old log-probabilities; the ratio is 1 in value and its gradient is E_pi[A grad log pi_m].

At p = 1 all three are one. A plain `CoToCallback` in a GRPO trainer is "masked_old" without the adjustment of `hold`.

Private methods of TRL 1.16 that are overridden (tests/coto/test_grpo.py checks their signatures): `_generate`,
`_generate_and_score_completions`, `_get_per_token_logps_and_entropies`, `_compute_loss`.
"""

from __future__ import annotations

import dataclasses
import logging
from contextlib import nullcontext
from typing import Any, Literal, get_args

import torch

from thurl.coto.callback import CoToCallback
from thurl.coto.config import CoToConfig
from thurl.coto.schedule import generation_period
from thurl.errors import UsageError


__all__ = ["CoToGRPOMixin", "OldLogProbs"]

logger = logging.getLogger(__name__)

OldLogProbs = Literal["masked_old", "full_old", "detach"]

_MODEL_INPUTS = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
    "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip


class CoToGRPOMixin:
    """Before a GRPO trainer: `class Trainer(CoToGRPOMixin, RankGRPOTrainer)`.

    Rollouts (also the weights that vLLM gets), reference log-probabilities and evaluation see all adapters or none, as
    without CoTo. Logs `coto/abs_log_ratio`, the mean of |log pi_m - log pi_old| over completion tokens, in nats.

    Args:
        coto: settings. With "masked_old" a `hold` of 1 becomes the number of optimizer steps that a batch of
            completions is used for.
        coto_old_logprobs: see the module.

    Raises:
        UsageError: an unknown mode; with "masked_old", a `hold` that lets the mask change while completions are in
            use.
    """

    def __init__(
        self, *args: Any, coto: CoToConfig, coto_old_logprobs: OldLogProbs = "masked_old", **kwargs: Any
    ) -> None:
        if coto_old_logprobs not in get_args(OldLogProbs):
            raise UsageError(
                f"`coto_old_logprobs` is {coto_old_logprobs!r}; it is one of {', '.join(get_args(OldLogProbs))}."
            )
        self._coto_mode = coto_old_logprobs
        self._coto_scoring = False
        self._coto_loss_inputs: dict[str, Any] | None = None
        super().__init__(*args, **kwargs)
        if coto_old_logprobs == "masked_old":
            coto = _aligned(coto, self.args)
        self.coto_callback = CoToCallback(coto)
        self.coto_callback.register(self)

    def _coto_whole(self) -> Any:
        # Asked of the trainer, not remembered: a resume may put another callback in its place.
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, CoToCallback) and callback.controller is not None:
                return callback.controller.all_active()
        return nullcontext()

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        with self._coto_whole():
            return super()._generate(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        self._coto_scoring = True
        try:
            output = super()._generate_and_score_completions(inputs)
        finally:
            self._coto_scoring = False
        if self.model.training:
            if self._coto_mode == "detach":
                output.pop("old_per_token_logps", None)
            elif self._coto_mode == "full_old" and "old_per_token_logps" not in output:
                output["old_per_token_logps"] = self.whole_policy_logps(output)
        return output

    def whole_policy_logps(self, output: dict[str, Any]) -> torch.Tensor:
        """Log-probabilities (B, C), in nats, of the completion tokens under all adapters.

        Args:
            output: as `_generate_and_score_completions` gives it.
        """
        with torch.no_grad(), self._coto_whole():
            logps, _, _ = self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
                torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
                output["completion_ids"].size(1),
                batch_size=self.args.per_device_train_batch_size,
                **{name: output[name] for name in _MODEL_INPUTS if output.get(name) is not None},
            )
        return logps

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        whole = self._coto_scoring and self._coto_mode != "masked_old"
        with self._coto_whole() if whole else nullcontext():
            result = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if self._coto_loss_inputs is not None:
            self._coto_log_ratio(result[0].detach(), self._coto_loss_inputs)
        return result

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        self._coto_loss_inputs = inputs if self.model.training else None
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._coto_loss_inputs = None

    def _coto_log_ratio(self, logps: torch.Tensor, inputs: dict[str, Any]) -> None:
        old = inputs.get("old_per_token_logps")
        mask = inputs["completion_mask"].to(logps.dtype)
        if "tool_mask" in inputs:
            mask = mask * inputs["tool_mask"]
        difference = torch.zeros_like(logps) if old is None else (logps - old).abs()
        sums = torch.stack([(difference * mask).sum(), mask.sum()])
        total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        self._metrics["train"]["coto/abs_log_ratio"].append(total / max(count, 1.0))


def _aligned(config: CoToConfig, args: Any) -> CoToConfig:
    period = generation_period(args.steps_per_generation, args.num_iterations, args.gradient_accumulation_steps)
    numbers = (
        f"`steps_per_generation` {args.steps_per_generation} x `num_iterations` {args.num_iterations} / "
        f"`gradient_accumulation_steps` {args.gradient_accumulation_steps}"
    )
    if period is None:
        raise UsageError(
            f"A batch of completions ends in the middle of an optimizer step ({numbers}), so that its mask changes "
            "while it is in use. Make one a multiple of the other, or use `coto_old_logprobs='full_old'`."
        )
    if config.hold == 1 and period > 1:
        logger.info("CoTo holds each mask for %d optimizer steps, as long as a batch of completions is used", period)
        return dataclasses.replace(config, hold=period)
    if config.hold % period:
        raise UsageError(
            f"`hold` is {config.hold}, but a batch of completions is used for {period} optimizer steps ({numbers}): "
            f"the mask would change in between. Use a multiple of {period}."
        )
    return config
