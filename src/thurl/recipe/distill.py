"""Rate-utility dataset distillation as a recipe: warm-up, joint run, one `.ddr` file (arXiv 2507.17221)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from thurl.recipe.distill_judging import (
    BaselinesSection,
    ChoiceSection,
    DistillEvaluationSection,
    DistillReportSection,
)
from thurl.recipe.distill_sections import (
    CodecSection,
    DistillDataSection,
    FitSection,
    PostQuantisationSection,
    QuantisationSection,
    RateSection,
    UtilitySection,
    WarmUpSection,
)
from thurl.recipe.fields import Problem, field_value, method_problems, usable_fields
from thurl.recipe.sections import HubSection, MethodRecipe, TrainingFields


__all__ = ["DistillRecipe"]


class DistillRecipe(MethodRecipe):
    """`training` holds verbatim `transformers.TrainingArguments` fields of the joint run."""

    training_schema: ClassVar[str] = "training_arguments"
    packages: ClassVar[tuple[str, ...]] = ("constriction",)
    files: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("data", "source", "folder"),
        ("data", "source", "index_file"),
        ("utility", "experts"),
    )

    method: Literal["distill_rate_utility"]
    model: CodecSection
    data: DistillDataSection
    warm_up: WarmUpSection = WarmUpSection()
    fit: FitSection = FitSection()
    utility: UtilitySection = UtilitySection()
    rate: RateSection
    quantisation: QuantisationSection = QuantisationSection()
    training: TrainingFields
    post_quantisation: PostQuantisationSection = PostQuantisationSection()
    choice: ChoiceSection = ChoiceSection()
    evaluation: DistillEvaluationSection = DistillEvaluationSection()
    baselines: BaselinesSection = BaselinesSection()
    hub: HubSection = HubSection()
    report: DistillReportSection = DistillReportSection()

    @classmethod
    def cross_problems(cls, sections: Mapping[str, Any], processes: int | None = None) -> list[Problem]:
        """Impossible combinations across the sections that are valid alone (the others are missing here)."""
        found: list[Problem] = []
        training = sections.get("training")
        if isinstance(training, dict):
            found += [(("training", *path), text) for path, text in method_problems(training)]
            found += _training_problems(usable_fields(training, cls.training_schema), sections)
        choice, evaluation = sections.get("choice"), sections.get("evaluation")
        if choice is not None and evaluation is not None and set(choice.seeds) & set(evaluation.seeds):
            found.append((("choice", "seeds"), "must differ from `evaluation.seeds`: what chose must not judge"))
        return found

    def missing_weights_and_data(self) -> list[str]:
        """Nothing beyond the folders of `files`, which have been looked up: there are no weights to start from."""
        return []


def _training_problems(training: dict[str, Any], sections: Mapping[str, Any]) -> list[Problem]:
    """What of `training` a joint run cannot have: it is one process, one step per row, of a stated length."""
    found: list[Problem] = []
    value = {
        name: field_value(training, name, DistillRecipe.training_schema)
        for name in ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "fp16")
    }
    if value["max_steps"] < 1:
        found.append((("training", "max_steps"), "must say how long the joint run is"))
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if value[name] != 1:
            found.append((("training", name), f"is {value[name]}, but must be 1; `utility` has the sizes of batches"))
    for name in ("bf16", "fp16"):
        if value[name]:
            found.append((("training", name), "bits need float32; remove it"))
    for name in ("deepspeed", "load_best_model_at_end"):
        if training.get(name):
            message = {
                "deepspeed": "splits a codec of some thousand parameters; remove it",
                "load_best_model_at_end": "`choice` chooses, within the size; remove it",
            }[name]
            found.append((("training", name), message))
    rate = sections.get("rate")
    if rate is not None and rate.lambdas and value["max_steps"] > 0:
        steps = sum(stage.steps for stage in rate.lambdas)
        if steps != value["max_steps"]:
            message = f"have {steps} steps together, `training.max_steps` is {value['max_steps']}"
            found.append((("rate", "lambdas"), message))
    return found
