"""The one-class method (arXiv 2501.02207) as a recipe: five heads with equal weights, then a mixture."""

from __future__ import annotations

from typing import ClassVar, Literal

from thurl.recipe.exif_recipe import ExifRecipe


__all__ = ["ExifOrdinalRecipe"]


class ExifOrdinalRecipe(ExifRecipe):
    """`training` holds verbatim `transformers.TrainingArguments` fields."""

    components: ClassVar[int] = 12

    method: Literal["exif_ordinal"]
