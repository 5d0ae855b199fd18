"""GRPO on checkable answers with CoTo as a recipe. Ours: the paper, arXiv 2506.05713, trains with supervision only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from thurl.recipe.adapters import AdapterSection
from thurl.recipe.coto import CoToSection, coto_problems
from thurl.recipe.fields import Problem, grpo_problems
from thurl.recipe.sections import GRPOFields, HubSection, MethodRecipe, ReportSection
from thurl.recipe.text_sections import (
    AnswersSection,
    ExactRewardSection,
    LanguageModelSection,
    PretrainingSection,
    ShuffledAnswersSection,
    TextDataSection,
    text_problems,
)


__all__ = ["CoToGRPORecipe"]


class CoToGRPORecipe(MethodRecipe):
    """`training` holds verbatim `trl.GRPOConfig` fields."""

    training_schema: ClassVar[str] = "grpo_config"

    method: Literal["coto_grpo"]
    model: LanguageModelSection
    data: TextDataSection
    training: GRPOFields
    reward: ExactRewardSection = ExactRewardSection()
    adapter: AdapterSection | None = None
    coto: CoToSection | None = None
    pretraining: PretrainingSection | None = None
    evaluation: AnswersSection | None = None
    control: ShuffledAnswersSection = ShuffledAnswersSection()
    hub: HubSection = HubSection()
    report: ReportSection = ReportSection()

    @classmethod
    def cross_problems(cls, sections: Mapping[str, Any], processes: int | None = None) -> list[Problem]:
        """Impossible combinations across the sections that are valid alone (the others are missing here)."""
        found = text_problems(sections)
        training = sections.get("training")
        if isinstance(training, dict):
            found += [(("training", *path), message) for path, message in grpo_problems(training, processes)]
            found += coto_problems(sections, cls.training_schema, processes=processes, grpo=True)
            beta, adapter = training.get("beta"), sections.get("adapter")
            if adapter is not None and adapter.kind == "pissa" and beta:
                # PiSSA takes the adapter's start out of the base weights, and the reference is these alone.
                message = f"`pissa` changes the base weights, to which `training.beta` {beta} would pull; set it to 0"
                found.append((("adapter", "kind"), message))
            if training.get("eval_strategy", "no") != "no":
                message = "must stay no: answers are evaluated by the section `evaluation` (`every_steps`)"
                found.append((("training", "eval_strategy"), message))
        return found
