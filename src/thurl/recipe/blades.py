"""BLADES (arXiv 2507.22824) as a recipe: eleven tasks in a joint embedding, weights learned by a bi-level step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from thurl.forensics.exif.tasks import OFFICIAL_COLUMNS
from thurl.recipe.exif_recipe import ExifRecipe
from thurl.recipe.exif_sections import BilevelSection, BladesModelSection


__all__ = ["BladesRecipe"]


class BladesRecipe(ExifRecipe):
    """`training` holds verbatim `transformers.TrainingArguments` fields. Without `bilevel` all weights stay 1."""

    components: ClassVar[int] = 10

    method: Literal["blades"]
    model: BladesModelSection
    bilevel: BilevelSection | None = None

    @property
    def columns(self) -> dict[str, int]:
        return {**OFFICIAL_COLUMNS, "fine_face": self.model.regions}

    @classmethod
    def metric_columns(cls, sections: Mapping[str, Any]) -> dict[str, int]:
        model = sections.get("model")
        return {**OFFICIAL_COLUMNS, "fine_face": 3 if model is None else model.regions}
