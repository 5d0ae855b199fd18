"""Supervised fine-tuning of a vision-language model on rated pictures, with CoTo (arXiv 2506.05713), as a recipe.

The answer is the MOS in the official answer format. Without the section `coto` it is the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from thurl.recipe.adapters import AdapterSection, adapter_problems
from thurl.recipe.coto import CoToSection, coto_problems
from thurl.recipe.fields import Problem, field_value, sft_problems, usable_fields
from thurl.recipe.sections import (
    ControlSection,
    DataSection,
    EvaluationSection,
    HubSection,
    MethodRecipe,
    ModelSection,
    ReportSection,
    SFTFields,
    WarmStartSection,
)


__all__ = ["CoToVLMRecipe"]


class CoToVLMRecipe(MethodRecipe):
    """`training` holds verbatim `trl.SFTConfig` fields."""

    training_schema: ClassVar[str] = "sft_config"

    method: Literal["coto_vlm"]
    model: ModelSection
    data: DataSection
    training: SFTFields
    adapter: AdapterSection | None = None
    coto: CoToSection | None = None
    warm_start: WarmStartSection | None = None
    evaluation: EvaluationSection | None = None
    control: ControlSection = ControlSection()
    hub: HubSection = HubSection()
    report: ReportSection = ReportSection()

    @classmethod
    def cross_problems(cls, sections: Mapping[str, Any], processes: int | None = None) -> list[Problem]:
        """Impossible combinations across the sections that are valid alone (the others are missing here)."""
        found = adapter_problems(sections)
        data, model, evaluation = (sections.get(name) for name in ("data", "model", "evaluation"))
        if data is not None and data.prompt.think:
            message = "must be false: a rated picture has no thoughts to learn, only a score"
            found.append((("data", "prompt", "think"), message))
        if evaluation is not None and evaluation.mode == "think":
            message = "is `think`, but the model learns to answer at once; use `direct` or `expected`"
            found.append((("evaluation", "mode"), message))
        if evaluation is not None and evaluation.every_steps and data is not None and not data.validation:
            message = "needs images to evaluate on: add `data.validation`, or remove it"
            found.append((("evaluation", "every_steps"), message))
        if model is not None and model.prefix_sharing != "off":
            found.append((("model", "prefix_sharing"), "is for GRPO, where completions share a prompt; remove it"))
        training = sections.get("training")
        if not isinstance(training, dict):
            return found
        found += [(("training", *path), message) for path, message in sft_problems(training)]
        found += coto_problems(sections, cls.training_schema, processes=processes)
        usable = usable_fields(training, cls.training_schema)
        length = field_value(usable, "max_length", cls.training_schema)
        if length is not None:
            message = f"is {length}: cutting would take image tokens away; set it to null"
            found.append((("training", "max_length"), message))
        for name in ("packing", "padding_free"):
            if field_value(usable, name, cls.training_schema):
                found.append((("training", name), "is not possible with pictures (TRL); remove it"))
        return found
