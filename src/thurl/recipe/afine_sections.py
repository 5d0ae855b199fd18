"""The sections of an A-FINE recipe: model, data, stages, calibration, evaluation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from thurl.data.labels import LABEL_FORMATS
from thurl.messages import nearest
from thurl.recipe.fields import Problem
from thurl.recipe.sections import Section, TrainingFields, raise_problems, start_problems


__all__ = [
    "AFineCalibrationSection",
    "AFineControlSection",
    "AFineDataSection",
    "AFineEvaluationSection",
    "AFineModelSection",
    "AFineReportSection",
    "AFineSource",
    "AdapterStageSection",
    "GeneratedSource",
    "PairSource",
    "RestartSection",
    "StageSection",
    "TinyAFine",
]

Stage = Literal["naturalness", "fidelity", "adapter"]
_Stages = Annotated[tuple[Stage, ...], Field(strict=False)]

PAIR_FORMATS = ("triplets", "diffiqa", "sriqa")
"""Formats beside those of rated images (`thurl.data.labels.LABEL_FORMATS`)."""


class TinyAFine(Section):
    """A model built on the spot (`thurl.iqa.afine.AFineConfig.tiny`)."""

    hidden: int = Field(64, ge=16, le=1024)
    layers: int = Field(2, ge=1, le=24)
    heads: int = Field(1, ge=1)
    patch_size: int = Field(16, ge=2)
    image_size: int = Field(64, ge=8)
    """Of the position table; pictures may have any size."""
    projection: int = Field(8, ge=1)

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        if self.hidden % self.heads:
            found.append((("hidden",), f"is {self.hidden} with {self.heads} heads; take a multiple of the heads"))
        if self.image_size % self.patch_size:
            found.append((("image_size",), f"is {self.image_size}; take a multiple of `patch_size` {self.patch_size}"))
        return found

    def config_arguments(self) -> dict[str, Any]:
        """Arguments of `AFineConfig.tiny`."""
        return {
            "projection_size": self.projection,
            "vision_config": {
                "hidden_size": self.hidden,
                "intermediate_size": 4 * self.hidden,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "patch_size": self.patch_size,
                "image_size": self.image_size,
            },
        }


class AFineModelSection(Section):
    """What training starts from: a CLIP, an `AFineModel` of an earlier stage, or a tiny model built on the spot."""

    # Of the checks before a run: the method needs neither tokenizer nor image processor.
    needs_processor: ClassVar[bool] = False
    needs_tokenizer: ClassVar[bool] = False

    name_or_path: str | None = Field(None, min_length=1)
    tiny: TinyAFine | None = None
    revision: str | None = None
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = None
    adapter: Literal["official", "monotone"] | None = None
    """Form of the adapter; that of the model, or `official` for a new one, when left out."""

    def problems(self) -> list[Problem]:
        return start_problems(self)


class PairSource(Section):
    """One data set: released triplets, DiffIQA's labels, SRIQA-Bench, or rated images with their references."""

    source_tag: ClassVar[str] = "<pairs>"

    format: str
    """`triplets`, `diffiqa`, `sriqa`, or a format of rated images such as `kadid`, `tid2013`, `by_reference`."""
    labels: str = Field(min_length=1)
    images: str | None = None
    references: str | None = None
    """Folder of the references of rated images; `images` when left out."""
    dataset: str | None = None
    layout: Literal["plain", "diffiqa"] = "plain"
    """How names in a file of triplets become paths."""
    type: str | None = None
    """Of all triplets, where the file does not say."""
    split: Literal["train", "validation", "test", "all"] = "all"
    """Part of rated images, 7:1:2 by reference."""
    reference_list: str | None = None
    """File with one reference per line: the published split, instead of `split`."""
    part: Literal["All", "Reg", "Gen"] = "All"
    """Of SRIQA-Bench."""
    stages: _Stages = ("naturalness", "fidelity", "adapter")
    """That train on it."""
    seed: int = 0
    """Of the split and of the drawn pairs."""
    max_triplets: int | None = Field(None, ge=1)
    check_images: Literal["all", "none"] = "all"
    allow_outside: bool = False
    obtain: str | None = None
    """Where to get the files. With it, absent files stop a run (exit 3); without it they are a mistake (exit 2)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the format's reader."""

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        names = [*PAIR_FORMATS, *LABEL_FORMATS, *GENERATED]
        if value not in names:
            raise_problems([((), f"`{value}` is not one of {', '.join(names)}{nearest(value, names)}")])
        return value

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        rated = self.format in LABEL_FORMATS
        if self.layout != "plain" and self.format != "triplets":
            found.append((("layout",), f"is for `format: triplets`, not `{self.format}`"))
        if self.part != "All" and self.format != "sriqa":
            found.append((("part",), f"is for `format: sriqa`, not `{self.format}`"))
        if self.split != "all" and not rated:
            found.append((("split",), f"is for rated images; `{self.format}` has a published split"))
        if self.reference_list and self.format in ("triplets", "sriqa"):
            found.append((("reference_list",), f"is for rated images and `diffiqa`, not `{self.format}`"))
        if self.split != "all" and self.reference_list:
            found.append((("split",), "and `reference_list` are two ways to choose; keep one"))
        valid = LABEL_FORMATS[self.format].options if rated else ()
        found += [
            (("options", name), f"`{self.format}` has no option `{name}`{nearest(name, valid)}; it has {list(valid)}")
            for name in self.options
            if name not in valid
        ]
        return found


class GeneratedSource(Section):
    """Pictures made for the purpose (`thurl.iqa.afine.generated`): textures, or crops of photographs, distorted."""

    source_tag: ClassVar[str] = "<generated>"

    format: Literal["textures", "distorted_photos"]
    references: Literal["perfect", "imperfect"]
    """Clean references, or distorted ones that a test image may beat."""
    dataset: str | None = None
    contents: int = Field(200, ge=2)
    triplets: int = Field(3000, ge=1)
    size: int = Field(64, ge=16, le=512)
    kinds: Annotated[tuple[Literal["blur", "noise", "jpeg"], ...], Field(strict=False)] = ("blur", "noise")
    split: Literal["train", "validation", "held_out"] = "train"
    """No content is in two of them. A folder of photographs is split 3:1:1, by place in the sorted names."""
    photos: str | None = None
    """Folder of photographs instead of those that come inside installed packages."""
    scale: float = Field(2.0, ge=1)
    """By which crops of photographs are reduced."""
    stages: _Stages = ("naturalness", "fidelity", "adapter")
    type: str | None = None
    seed: int = 0
    folder: str | None = None
    """Where the files are written; below `training.output_dir` when left out."""

    def problems(self) -> list[Problem]:
        if self.photos and self.format == "textures":
            return [(("photos",), "is for `format: distorted_photos`")]
        return []


GENERATED = ("textures", "distorted_photos")


def _source_tag(value: Any) -> str:
    kind = value.get("format") if isinstance(value, dict) else getattr(value, "format", None)
    return "<generated>" if kind in GENERATED else "<pairs>"


AFineSource = Annotated[
    Annotated[PairSource, Tag("<pairs>")] | Annotated[GeneratedSource, Tag("<generated>")],
    Discriminator(_source_tag),
]


class AFineDataSection(Section):
    """Training and validation sets; sets of different origin are joined without balancing, as officially."""

    train: Annotated[tuple[AFineSource, ...], Field(strict=False)]
    validation: Annotated[tuple[AFineSource, ...], Field(strict=False)] = ()
    """The checkpoint of a stage is chosen by its mean accuracy on these (`training.metric_for_best_model`)."""
    augment: bool = True
    keep_mib: int = Field(0, ge=0)
    """Decoded training pictures to keep in the memory of each process, in MiB; for small sets."""

    def problems(self) -> list[Problem]:
        return [] if self.train else [(("train",), "is empty: name at least one data set")]


class StageSection(Section):
    """`transformers.TrainingArguments` of one stage, laid over those of `training`."""

    training: TrainingFields = Field(default_factory=dict)


class AdapterStageSection(StageSection):
    """The same for stage `adapter`."""

    cached: bool = False
    """Score each training image once, as it is, instead of in every step and turned: the tower is frozen."""


class RestartSection(Section):
    """Cosine with restarts (`thurl.training.restarts`), the same for each stage."""

    periods: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, min_length=1)] = (10_000,) * 4
    restart_weights: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False)] = (1.0, 0.5, 0.5, 0.5)
    eta_min: float = Field(1e-8, ge=0)

    def problems(self) -> list[Problem]:
        if len(self.periods) != len(self.restart_weights):
            text = f"has {len(self.restart_weights)} values for {len(self.periods)} periods; one for each is needed"
            return [(("restart_weights",), text)]
        return []


class AFineCalibrationSection(Section):
    """Start of the naturalness map, found after stage `naturalness` (`thurl.iqa.afine.calibration`)."""

    kind: Literal["opinions", "moments", "none"] = "opinions"
    """Fit to the opinions of a data set, mean and standard deviation of the scores, or leave the map as it is."""
    dataset: str | None = None
    """Rated training set with the opinions (officially PIPAL); the only one when left out."""
    max_images: int = Field(20_000, ge=3)


class AFineEvaluationSection(Section):
    """Test sets, judged before training and after each stage, in batches of `training.per_device_eval_batch_size`."""

    sources: Annotated[tuple[AFineSource, ...], Field(strict=False)] = ()
    before: bool = True
    intervals: int = Field(1000, ge=0)
    """Resamples of the 95 % intervals; 0: none."""
    seed: int = 0


class AFineControlSection(Section):
    """Sanity check: the same stages on labels turned round by a coin, which must learn nothing."""

    shuffle_labels: bool = False
    seed: int = 0


class AFineReportSection(Section):
    """Files written at the end of a run."""

    results: str | None = None
    html: str | None = None
