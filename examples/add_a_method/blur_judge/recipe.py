"""The recipe: what may stand in it. Imports no torch, so that a wrong recipe is found in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from thurl.recipe.fields import Problem, method_problems
from thurl.recipe.methods import Method
from thurl.recipe.sections import MethodRecipe, Section, TrainingFields


METHOD = Method(
    recipe="blur_judge.recipe:BlurJudgeRecipe",
    run="blur_judge.run:run",
    summary="orders drawn pictures by their blur (the example of docs/extending.md)",
)


class DataSection(Section):
    """Pictures of noise, each blurred by its own width."""

    count: int = Field(64, ge=2)
    widest: int = Field(4, ge=2)
    """Largest blur, in passes of a 3x3 mean."""


class BlurJudgeRecipe(MethodRecipe):
    """`training` holds verbatim `transformers.TrainingArguments` fields."""

    training_schema: ClassVar[str] = "training_arguments"

    method: Literal["blur_judge"]
    data: DataSection = DataSection()
    channels: int = Field(8, ge=1)
    training: TrainingFields

    @classmethod
    def cross_problems(cls, sections: Mapping[str, Any], processes: int | None = None) -> list[Problem]:
        """Settings that cannot go together, each with its place in the recipe."""
        training = sections.get("training")
        if not isinstance(training, dict):
            return []
        found: list[Problem] = [(("training", *path), text) for path, text in method_problems(training)]
        if training.get("per_device_train_batch_size", 8) < 2:
            found.append((("training", "per_device_train_batch_size"), "must be at least 2: the loss compares pairs"))
        return found

    def missing_weights_and_data(self) -> list[str]:
        """What has to be fetched before a run: nothing, the pictures are drawn."""
        return []
