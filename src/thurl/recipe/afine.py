"""A-FINE as a recipe: three stages of pairwise learning to rank (arXiv 2503.11221), together or one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from thurl.recipe.afine_sections import (
    AdapterStageSection,
    AFineCalibrationSection,
    AFineControlSection,
    AFineDataSection,
    AFineEvaluationSection,
    AFineModelSection,
    AFineReportSection,
    PairSource,
    RestartSection,
    StageSection,
)
from thurl.recipe.fields import Problem, method_problems, usable_fields
from thurl.recipe.sections import HubSection, MethodRecipe, TrainingFields


__all__ = ["AFineRecipe", "rated", "source_name"]

STAGES = ("naturalness", "fidelity", "adapter")

_UNRATED = ("triplets", "diffiqa")


class AFineRecipe(MethodRecipe):
    """`training` holds verbatim `transformers.TrainingArguments` fields, which each stage may change."""

    training_schema: ClassVar[str] = "training_arguments"
    packages: ClassVar[tuple[str, ...]] = ()

    method: Literal["afine"]
    model: AFineModelSection
    data: AFineDataSection
    stages: Annotated[tuple[Literal["naturalness", "fidelity", "adapter"], ...], Field(strict=False)] = STAGES
    """In this order; a later one alone starts from the folder of the one before (`model.name_or_path`)."""
    training: TrainingFields
    naturalness: StageSection = StageSection()
    fidelity: StageSection = StageSection()
    adapter: AdapterStageSection = AdapterStageSection()
    schedule: RestartSection | None = None
    """`null`: that of `training.lr_scheduler_type`."""
    calibration: AFineCalibrationSection = AFineCalibrationSection()
    evaluation: AFineEvaluationSection = AFineEvaluationSection()
    control: AFineControlSection = AFineControlSection()
    hub: HubSection = HubSection()
    report: AFineReportSection = AFineReportSection()

    @classmethod
    def cross_problems(cls, sections: Mapping[str, Any], processes: int | None = None) -> list[Problem]:
        """Impossible combinations across the sections that are valid alone (the others are missing here)."""
        found = _stage_problems(sections)
        training = sections.get("training")
        if isinstance(training, dict):
            found += [(("training", *path), message) for path, message in method_problems(training)]
            usable = usable_fields(training, cls.training_schema)
            if usable.get("deepspeed"):
                message = "splits a model that fits any GPU; use DDP (accelerate_configs/ddp.yaml)"
                found.append((("training", "deepspeed"), message))
            for stage in STAGES:
                section = sections.get(stage)
                own = getattr(section, "training", {})
                joined = usable | own
                found += [
                    ((stage, "training", *path), message)
                    for path, message in method_problems(joined)
                    if path[0] in own
                ]
                found += _length_problems(stage, joined, sections)
            found += _schedule_problems(usable, sections)
            data = sections.get("data")
            watches = str(usable.get("eval_strategy", "no")) != "no"
            if watches and data is not None and not data.validation:
                found.append((("training", "eval_strategy"), "needs data to evaluate on: add `data.validation`"))
        return found + _calibration_problems(sections)

    def stage_training(self, stage: str) -> dict[str, Any]:
        """Fields of `TrainingArguments` of one stage."""
        return {**self.training, **getattr(self, stage).training}


def rated(source: Any) -> bool:
    """Whether a source has opinions beside its pairs."""
    if isinstance(source, PairSource):
        return source.format not in _UNRATED
    return bool(source.references == "perfect")  # opinions are about images with a clean reference


def source_name(source: Any) -> str:
    """What a source is called where the recipe does not say; the second of a name is known by its own only."""
    return str(source.dataset or (source.format if isinstance(source, PairSource) else source.references))


def _stage_problems(sections: Mapping[str, Any]) -> list[Problem]:
    stages, data = sections.get("stages"), sections.get("data")
    if stages is None:
        return []
    if not stages or list(stages) != [stage for stage in STAGES if stage in stages]:
        return [(("stages",), f"is {list(stages)}; name one or more of {', '.join(STAGES)}, each once, in this order")]
    found: list[Problem] = []
    for stage in stages:
        if data is not None and not any(stage in source.stages for source in data.train):
            found.append((("data", "train"), f"has no data set for stage `{stage}`; add it to `stages` of one"))
    return found


def _length_problems(stage: str, training: dict[str, Any], sections: Mapping[str, Any]) -> list[Problem]:
    schedule, stages = sections.get("schedule"), sections.get("stages") or STAGES
    steps = training.get("max_steps", -1)
    if schedule is None or stage not in stages:
        return []
    if steps is None or steps < 1:
        return [(("schedule",), f"counts steps: set `max_steps` for stage `{stage}`")]
    if steps > sum(schedule.periods):
        message = f"end after {sum(schedule.periods)} steps, but stage `{stage}` has {steps}; add a period"
        return [(("schedule", "periods"), message)]
    return []


def _schedule_problems(training: dict[str, Any], sections: Mapping[str, Any]) -> list[Problem]:
    if sections.get("schedule") is None:
        return []
    message = "has no effect beside `schedule`; remove it, or set `schedule: null`"
    return [(("training", name), message) for name in ("lr_scheduler_type", "warmup_steps") if training.get(name)]


def _calibration_problems(sections: Mapping[str, Any]) -> list[Problem]:
    calibration, data = sections.get("calibration"), sections.get("data")
    if calibration is None or data is None or "naturalness" not in (sections.get("stages") or ()):
        return []
    if calibration.kind != "opinions":
        return [(("calibration", "dataset"), "is for `kind: opinions`")] if calibration.dataset else []
    names = [source_name(source) for source in data.train if rated(source)]
    if calibration.dataset is None and len(names) != 1:
        message = f"must name the rated training set to fit to; there are {len(names)} ({', '.join(names) or 'none'})"
        if not names:
            message += ": use `kind: moments`"
        return [(("calibration", "dataset"), message)]
    if calibration.dataset is not None and calibration.dataset not in names:
        message = f"is `{calibration.dataset}`, which is no rated training set; there are {', '.join(names) or 'none'}"
        return [(("calibration", "dataset"), message)]
    return []
