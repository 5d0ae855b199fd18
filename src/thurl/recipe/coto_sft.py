"""Supervised fine-tuning of a language model with CoTo (arXiv 2506.05713) as a recipe; without `coto` the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from thurl.recipe.adapters import AdapterSection
from thurl.recipe.coto import CoToSection, coto_problems
from thurl.recipe.fields import Problem, field_value, sft_problems, usable_fields
from thurl.recipe.sections import HubSection, MethodRecipe, ReportSection, SFTFields
from thurl.recipe.text_sections import (
    AnswersSection,
    LanguageModelSection,
    PretrainingSection,
    ShuffledAnswersSection,
    TextDataSection,
    text_problems,
)


__all__ = ["CoToSFTRecipe"]


class CoToSFTRecipe(MethodRecipe):
    """`training` holds verbatim `trl.SFTConfig` fields."""

    training_schema: ClassVar[str] = "sft_config"

    method: Literal["coto_sft"]
    model: LanguageModelSection
    data: TextDataSection
    training: SFTFields
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
        if not isinstance(training, dict):
            return found
        found += [(("training", *path), message) for path, message in sft_problems(training)]
        found += coto_problems(sections, cls.training_schema, processes=processes)
        usable, model = usable_fields(training, cls.training_schema), sections.get("model")
        flash = str(getattr(model, "attn_implementation", "flash_attention_2")).startswith("flash_attention")
        for name in ("packing", "padding_free"):
            if field_value(usable, name, cls.training_schema) and not flash:
                found.append(
                    (("training", name), "needs `model.attn_implementation: flash_attention_2`; others mix the rows")
                )
        return found
