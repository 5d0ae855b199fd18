"""CoTo inside VisualQuality-R1: the two methods know nothing of each other, here they are put together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from thurl.coto.grpo import CoToGRPOMixin
from thurl.recipe.coto import CoToSection
from thurl.rl.trainer import RankGRPOTrainer


__all__ = ["CoToRankGRPOTrainer", "rank_trainer"]


class CoToRankGRPOTrainer(CoToGRPOMixin, RankGRPOTrainer):
    """`RankGRPOTrainer` whose update sees some of the adapters, and whose rollouts see all of them."""

    _tag_names = [*RankGRPOTrainer._tag_names, "coto"]

    def _rollout_difference(self, outputs: dict[str, Any]) -> float | None:
        # TRL's number compares vLLM, which has every adapter, with the masked policy; these differ by intent.
        sampled = outputs.get("sampling_per_token_logps")
        if sampled is None or self._coto_mode != "masked_old":
            return super()._rollout_difference(outputs)
        difference = (self.whole_policy_logps(outputs) - sampled).abs()
        scored = outputs["completion_mask"].bool() & ~difference.isnan()  # vLLM may leave a token without a number
        sums = self.accelerator.reduce(difference[scored].sum(), reduction="sum")
        count = self.accelerator.reduce(scored.sum(), reduction="sum")
        return (sums / count.clamp(min=1)).item()


def rank_trainer(section: CoToSection | None) -> Callable[..., RankGRPOTrainer]:
    """The trainer class of a recipe, with CoTo's arguments where it has that section."""
    if section is None:
        return RankGRPOTrainer
    return partial(CoToRankGRPOTrainer, coto=section.config(), coto_old_logprobs=section.old_logprobs or "masked_old")
