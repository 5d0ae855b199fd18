"""Meta-training of a hypernetwork that says where to edit a vision transformer, as a recipe (arXiv 2411.01948)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from thurl.recipe.fields import Problem, field_value, method_problems, usable_fields
from thurl.recipe.sections import HubSection, MethodRecipe, ReportSection, Section, TrainingFields


__all__ = [
    "CutMixSection",
    "EditEvaluationSection",
    "EditViTRecipe",
    "HypernetworkSection",
    "MetaDataSection",
    "MetaSection",
    "TinyDigits",
    "ToBeEditedSection",
]

_Whole = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]
_Pair = Annotated[tuple[float, float], Field(strict=False)]
_Shares = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(strict=False)]
_Editors = Annotated[
    tuple[Literal["learned", "mean", "hybrid", "grad", "random", "full", "l1", "l2", "lora", "neurons"], ...],
    Field(strict=False),
]


class TinyDigits(Section):
    """A ViT trained in the run on the digits of scikit-learn (`thurl.editing.digits`); brings its pictures along."""

    seed: int | None = None
    """Of its weights and of the split; `training.seed` when left out."""
    epochs: int = Field(24, ge=1)


class ToBeEditedSection(Section):
    """The classifier to be edited: a folder, `timm:NAME` or a Hub name; or a tiny one trained on the spot."""

    name_or_path: str | None = Field(None, min_length=1)
    digits: TinyDigits | None = None
    layers: _Whole | None = None
    """Blocks whose feed-forward networks are edited, from 0; three blocks around two thirds when left out."""

    def problems(self) -> list[Problem]:
        if (self.name_or_path is None) == (self.digits is None):
            have = "both" if self.digits else "neither"
            return [(("name_or_path",), f"give either `name_or_path` or `digits`; the recipe has {have}")]
        return []


class MetaDataSection(Section):
    """Pictures for pseudo-failures; no labels are read. Those of `model.digits` are taken when left out."""

    folder: str = Field(min_length=1)
    scale: _Pair = (0.25, 1.0)
    """Share of the area that a random crop has."""
    obtain: str | None = None
    seed: int | None = None
    """Of the crops; `training.seed` when left out."""


class HypernetworkSection(Section):
    """Sizes of the hypernetwork that do not follow from the classifier."""

    blocks: int = Field(3, ge=1)
    heads: int = Field(6, ge=1)
    gradient_tokens: bool = False
    """The loss gradient of every neuron as an input, too; ours."""


class CutMixSection(Section):
    """Sizes of the rectangles in patches."""

    smallest: int = Field(3, ge=1)
    largest: int = Field(8, ge=1)
    exclusive_corner: bool = True

    def problems(self) -> list[Problem]:
        if self.smallest > self.largest:
            return [(("smallest",), f"is {self.smallest}, but must not be above `largest` ({self.largest})")]
        return []


class MetaSection(Section):
    """An iteration: the search of the label masks, and the updates of the hypernetwork."""

    inner_steps: int = Field(5, ge=1)
    inner_rate: float = Field(1e-3, gt=0)
    outer_steps: int = Field(10, ge=1)
    outer_rate: float = Field(0.1, gt=0)
    penalty: float = Field(1 / (8 * 6 * 3072), ge=0)
    """Per entry of a mask."""
    temperature: float = Field(5.0, gt=0)
    locality: float = Field(0.0, ge=0)
    """Weight of the loss on other pictures under the same update; ours."""
    updates: int = Field(4, ge=1)
    bce_weight: float = Field(0.1, gt=0)


class EditEvaluationSection(Section):
    """Edits of failing pictures, one at a time, with several editors (`thurl.editing.comparison`)."""

    editors: _Editors = ("learned", "grad", "random")
    densities: _Shares = (0.05,)
    """Of the editors that have a mask."""
    rate: float = Field(2e-5, gt=0)
    max_steps: int = Field(100, ge=1)
    stop_loss: float = Field(0.01, ge=0)
    edits: int = Field(2, ge=1)
    """Of each group of failures, at most."""
    manifest: str | None = Field(None, min_length=1)
    """File of `thurl edit manifest`, made for `model.name_or_path`; `model.digits` has failures of its own."""
    pictures: str | None = Field(None, min_length=1)
    """Folder that the manifest's paths are relative to."""

    def problems(self) -> list[Problem]:
        empty = [name for name in ("editors", "densities") if not getattr(self, name)]
        found: list[Problem] = [((name,), "is empty: name at least one") for name in empty]
        if len(set(self.editors)) < len(self.editors):
            found.append((("editors",), "has a name twice; name each once"))
        if (self.manifest is None) != (self.pictures is None):
            missing = "pictures" if self.pictures is None else "manifest"
            found.append(((missing,), "is missing: `manifest` and `pictures` go together"))
        return found


class EditViTRecipe(MethodRecipe):
    """`training` holds verbatim `transformers.TrainingArguments` fields."""

    training_schema: ClassVar[str] = "training_arguments"
    packages: ClassVar[tuple[str, ...]] = ()
    files: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("data", "folder"),
        ("evaluation", "manifest"),
        ("evaluation", "pictures"),
    )

    method: Literal["edit_vit"]
    model: ToBeEditedSection
    data: MetaDataSection | None = None
    hypernetwork: HypernetworkSection = HypernetworkSection()
    cutmix: CutMixSection = CutMixSection()
    meta: MetaSection = MetaSection()
    training: TrainingFields
    evaluation: EditEvaluationSection | None = None
    hub: HubSection = HubSection()
    report: ReportSection = ReportSection()

    @classmethod
    def cross_problems(cls, sections: Mapping[str, Any], processes: int | None = None) -> list[Problem]:
        """Impossible combinations across the sections that are valid alone (the others are missing here)."""
        found: list[Problem] = []
        model, data, evaluation = (sections.get(name) for name in ("model", "data", "evaluation"))
        if model is not None and "data" in sections:
            if model.digits is None and data is None:
                found.append((("data",), "is missing: `model.name_or_path` needs a folder of pictures"))
            if model.digits is not None and data is not None:
                found.append((("data",), "is brought along by `model.digits`; remove it"))
        if model is not None and evaluation is not None:
            if model.digits is None and evaluation.manifest is None:
                message = (
                    "is missing: only `model.digits` has failures of its own; make one with `thurl edit manifest`"
                )
                found.append((("evaluation", "manifest"), message))
            if model.digits is not None and evaluation.manifest is not None:
                message = "does not go with `model.digits`, which has failures of its own; remove it"
                found.append((("evaluation", "manifest"), message))
        training = sections.get("training")
        if not isinstance(training, dict):
            return found
        found += [(("training", *path), text) for path, text in method_problems(training)]
        usable = usable_fields(training, cls.training_schema)

        def get(name: str) -> Any:
            return field_value(usable, name, cls.training_schema)

        rules = {
            "optim": (str(get("optim")) == "rmsprop", "must be rmsprop, the method's optimizer"),
            "max_grad_norm": (not get("max_grad_norm"), "must be 0: only the last update of a batch would be clipped"),
            "gradient_accumulation_steps": (
                get("gradient_accumulation_steps") == 1,
                "must be 1: an iteration updates on its own batch",
            ),
            "eval_strategy": (
                str(get("eval_strategy")) == "no",
                "must stay no: the section `evaluation` edits after training",
            ),
            "deepspeed": (not get("deepspeed"), "steps by itself; remove it, train with DDP"),
            "per_device_train_batch_size": (
                get("per_device_train_batch_size") % 2 == 0,
                "must be even: a pseudo-failure is made of two pictures",
            ),
        }
        found += [(("training", name), text) for name, (holds, text) in rules.items() if not holds]
        return found

    def missing_weights_and_data(self) -> list[str]:
        """Weights that are not here, each with the fix; cheap, and without heavy imports."""
        name = self.model.name_or_path
        if name is None or name.startswith("timm:") or Path(name).expanduser().is_dir() or name.count("/") == 1:
            return []  # what the Hub gives is fetched, or missed, by the run
        return [
            f"model weights: {name} is no folder of a classifier; save one with `save_pretrained` beside its image "
            "processor, or set `model.name_or_path` to `timm:NAME` or a name of the Hub"
        ]
