"""The sections a recipe is made of. Each is frozen, refuses unknown keys and is valid by construction.

`training` is not here: its fields are the installed trainer's own (see `thurl.recipe.fields`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from thurl.data.labels import LABEL_FORMATS
from thurl.messages import nearest
from thurl.recipe.fields import Problem, check_fields


__all__ = [
    "ControlSection",
    "DataSection",
    "DegradedPhotosSource",
    "EvaluationSection",
    "GRPOFields",
    "HubSection",
    "LabelsSource",
    "MethodRecipe",
    "ModelSection",
    "PromptSection",
    "ReportSection",
    "RewardSection",
    "RolloutsSection",
    "SFTFields",
    "SamplerSection",
    "Section",
    "Source",
    "TinyModel",
    "TrainingFields",
    "WarmStartSection",
    "format_tag",
    "raise_problems",
    "start_problems",
    "tuple_of",
]


def raise_problems(problems: list[Problem]) -> None:
    """Hand several problems to pydantic as one error, which `thurl.recipe.validate` takes apart again."""
    if problems:
        text = "; ".join(f"{'.'.join(map(str, path))}: {message}" if path else message for path, message in problems)
        raise PydanticCustomError("recipe_problems", "{text}", {"text": text, "problems": problems})


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, nothing is converted silently, objects cannot be changed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=(), validate_default=False
    )

    def problems(self) -> list[Problem]:
        """Combinations of fields that make no sense, as `(path inside the section, message)`."""
        return []

    def unused(self) -> dict[str, str]:
        """Fields that the section's other values leave without a use, each with the message for whoever gives it.

        `thurl show` leaves them out (`thurl.recipe.validate.resolved`), so that what it prints is a recipe again.
        """
        return {}

    @model_validator(mode="after")
    def _combinations(self) -> Section:
        unused = self.unused()
        # In the order of the fields. `null` where nothing is the default says nothing.
        given = [
            name
            for name, field in type(self).model_fields.items()
            if name in unused and name in self.model_fields_set and not (getattr(self, name) is field.default is None)
        ]
        raise_problems([*self.problems(), *(((name,), unused[name]) for name in given)])
        return self


class MethodRecipe(Section):
    """Base of the methods' recipes: a section that is judged as a whole, besides each of its sections alone."""

    @classmethod
    def cross_problems(cls, sections: Mapping[str, Any], processes: int | None = None) -> list[Problem]:
        """Impossible combinations across sections, as `(path in the recipe, message)`.

        Args:
            sections: those that are valid alone (the others are missing here), and `training` as it is.
            processes: of the launch, None for that of this one.
        """
        return []

    @model_validator(mode="after")
    def _across_sections(self) -> MethodRecipe:
        raise_problems(self.cross_problems({name: getattr(self, name) for name in type(self).model_fields}))
        return self


# YAML has lists only; the recipe holds tuples because sections are frozen.
def tuple_of(item: Any) -> Any:
    return Annotated[tuple[item, ...], Field(strict=False)]


def format_tag(value: Any) -> str:
    """Tag of the one of several kinds of sources that a mapping or section is by its `format`, as `<folder>`."""
    kind = value.get("format") if isinstance(value, Mapping) else getattr(value, "format", None)
    return f"<{kind}>"


def start_problems(model: Any) -> list[Problem]:
    """Problems of a model section with `name_or_path` and `tiny`, one of which is given, and perhaps a `revision`."""
    found: list[Problem] = []
    if (model.name_or_path is None) == (model.tiny is None):
        have = "both" if model.tiny else "neither"
        found.append((("name_or_path",), f"give either `name_or_path` or `tiny`; the recipe has {have}"))
    if getattr(model, "revision", None) and model.tiny:
        found.append((("revision",), "a `tiny` model is built on the spot and has no revision"))
    return found


class TinyModel(Section):
    """A randomly initialised Qwen2.5-VL of under a million parameters, see `thurl.rl.tiny.build_tiny_qwen2_5_vl`."""

    seed: int | None = None
    """Of the weights; `training.seed` when left out."""
    hidden: int = Field(64, ge=16, le=1024)
    layers: int = Field(2, ge=1, le=16)
    heads: int = Field(2, ge=1)
    kv_heads: int | None = Field(None, ge=1)
    intermediate: int | None = Field(None, ge=1)
    vision_hidden: int = Field(64, ge=16, le=1024)
    vision_depth: int = Field(2, ge=1, le=16)
    vision_heads: int = Field(2, ge=1)
    vision_intermediate: int | None = Field(None, ge=1)
    patch_size: int = Field(14, ge=2)
    min_pixels: int = Field(56 * 56, ge=1)
    max_pixels: int = Field(112 * 112, ge=1)
    tie_embeddings: bool = False

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        for name, width, heads, multiple in (
            ("hidden", self.hidden, self.heads, 16),
            ("vision_hidden", self.vision_hidden, self.vision_heads, 4),
        ):
            if width % (heads * multiple):
                found.append(((name,), f"is {width} with {heads} heads; take a multiple of {heads * multiple}"))
        return found


class ModelSection(Section):
    """The vision-language model: a folder or Hub name, or a tiny one built on the spot."""

    name_or_path: str | None = Field(None, min_length=1)
    tiny: TinyModel | None = None
    revision: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    attn_implementation: (
        Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None
    ) = None
    freeze: tuple_of(Literal["vision", "language"]) = ()  # type: ignore[valid-type]
    min_pixels: int | None = Field(None, ge=1)
    max_pixels: int | None = Field(None, ge=1)
    prefix_sharing: Literal["auto", "on", "off"] = "off"
    """Compute each prompt once for all its completions in the update (`thurl.rl.shared_prefix`)."""

    def problems(self) -> list[Problem]:
        found = start_problems(self)
        if set(self.freeze) == {"vision", "language"}:
            found.append((("freeze",), "freezing vision and language leaves nothing to train; keep one"))
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            found.append((("min_pixels",), f"{self.min_pixels} is above `max_pixels` ({self.max_pixels})"))
        if self.prefix_sharing == "on" and self.attn_implementation not in (None, "sdpa"):
            found.append(
                (
                    ("prefix_sharing",),
                    f"`on` needs `attn_implementation: sdpa`, the recipe has `{self.attn_implementation}`, which "
                    "knows no packed rows; `auto` falls back to the plain layout",
                )
            )
        return found


class LabelsSource(Section):
    """One rated image set: a label file and a folder of pictures, read by `thurl.data.sources.load_source`."""

    source_tag: ClassVar[str] = "<labels>"

    format: str
    labels: str = Field(min_length=1)
    images: str | None = None
    dataset: str | None = None
    split: Literal["train", "validation", "test", "all"] | None = None
    references: str | tuple_of(str) | None = None  # type: ignore[valid-type]
    max_images: int | None = Field(None, ge=1)
    normalise: bool = False
    check_images: Literal["all", "none"] = "all"
    seed: int = 0
    """Of the split, where none is published, and of the draw of `max_images`."""
    allow_outside: bool = False
    obtain: str | None = None
    """Where to get the files. With it, absent files stop a run (exit 3); without it they are a mistake (exit 2)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the format's reader, for example `columns` of `csv`."""

    def problems(self) -> list[Problem]:
        valid = LABEL_FORMATS[self.format].options
        return [
            (("options", name), f"`{self.format}` has no option `{name}`{nearest(name, valid)}; it has {list(valid)}")
            for name in self.options
            if name not in valid
        ]

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        names = [*LABEL_FORMATS, "degraded_photos"]
        if value not in names:
            raise_problems([((), f"`{value}` is not one of {', '.join(names)}{nearest(value, names)}")])
        return value

    def load_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `thurl.data.sources.load_source`."""
        return {name: getattr(self, name) for name in type(self).model_fields if name != "obtain"}


class DegradedPhotosSource(Section):
    """Generated images: crops of photographs, degraded (`thurl.rl.degraded_photos.write_degraded_photos`)."""

    source_tag: ClassVar[str] = "<degraded_photos>"

    format: Literal["degraded_photos"]
    split: Literal["train", "validation", "held_out"]
    group: str | None = None
    repeats: int = Field(20, ge=1)
    scale: Literal["five", "hundred"] = "five"
    dataset: str | None = None
    size: int = Field(56, ge=28)
    crop: Annotated[tuple[int, int], Field(strict=False)] = (128, 256)
    vary: bool = False
    seed: int = 0
    photos: str | None = None
    """Folder of photographs to degrade instead of the bundled ones."""
    skip_unusable: bool = False
    """Take the next photograph where one is too flat or dark, instead of an error."""
    folder: str | None = None
    """Where the PNG files and the CSV are written; below `training.output_dir` when left out."""

    def write_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `write_degraded_photos` other than `photos`, which holds opened pictures there."""
        names = ("split", "group", "repeats", "scale", "dataset", "size", "crop", "vary", "seed", "skip_unusable")
        return {name: getattr(self, name) for name in names}


def _source_tag(value: Any) -> str:
    kind = value.get("format") if isinstance(value, Mapping) else getattr(value, "format", None)
    return "<degraded_photos>" if kind == "degraded_photos" else "<labels>"


Source = Annotated[
    Annotated[LabelsSource, Tag("<labels>")] | Annotated[DegradedPhotosSource, Tag("<degraded_photos>")],
    Discriminator(_source_tag),
]


class PromptSection(Section):
    """What the model is asked. Released checkpoints expect the preset's exact strings (`thurl.rl.prompts`)."""

    preset: Literal["thurl", "official"] = "thurl"
    think: bool = True
    question: str | None = Field(None, min_length=1)
    think_suffix: str | None = Field(None, min_length=1)
    direct_suffix: str | None = Field(None, min_length=1)
    vision_id: bool | None = None
    system: str | None = None


class DataSection(Section):
    """Training and validation images. Datasets with different rating scales may be mixed without rescaling."""

    train: tuple_of(Source)  # type: ignore[valid-type]
    validation: tuple_of(Source) = ()  # type: ignore[valid-type]
    on_corrupt: Literal["error", "skip"] = "error"
    prompt: PromptSection = PromptSection()

    def problems(self) -> list[Problem]:
        return [] if self.train else [(("train",), "is empty: name at least one image set")]


class RewardSection(Section):
    """Options of `thurl.rl.thurstone_fidelity_rewards` and of the format reward (arXiv 2505.14460, equations 3 to 5).

    `kind: threshold` is the regression baseline of Q-Insight: 1 when the score is less than `threshold` away from the
    MOS (which must be on the scale of the answer), 0 otherwise.
    """

    kind: Literal["thurstone", "threshold"] = "thurstone"
    mode: Literal["default", "official"] = "default"
    comparison: Literal["mean", "scores"] = "mean"
    variance: Literal["sample", "fixed", "floored"] = "sample"
    variance_value: float | None = Field(None, gt=0)
    targets: Literal["hard", "soft"] = "hard"
    tie_margin: float = Field(0.0, ge=0)
    out_of_range: Literal["official", "clip", "invalid"] | None = None
    """`invalid` when left out, `official` with `mode: official`."""
    score_range: Annotated[tuple[float, float], Field(strict=False)] = (1.0, 5.0)
    scope: Literal["global", "device"] = "global"
    failed: Literal["minimum", "none"] = "minimum"
    parse_mode: Literal["strict", "official"] | None = None
    """`strict` when left out, `official` with `mode: official`."""
    format_mode: Literal["official", "strict"] = "official"
    accuracy_weight: float = Field(1.0, ge=0)
    format_weight: float = Field(1.0, ge=0)
    eps: float = Field(1e-6, gt=0)
    threshold: float | None = Field(None, gt=0)

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        if (self.variance == "sample") != (self.variance_value is None):
            found.append(
                (
                    ("variance_value",),
                    "belongs to `variance: fixed` or `floored`; the recipe has `variance: "
                    f"{self.variance}` and `variance_value: {self.variance_value}`",
                )
            )
        if self.targets == "soft" and self.tie_margin:
            found.append((("tie_margin",), "is for `targets: hard`; soft targets have no ties"))
        if (self.kind == "threshold") != (self.threshold is not None):
            found.append((("threshold",), f"is needed by `kind: threshold` and only by it (`kind` is `{self.kind}`)"))
        if not self.score_range[0] < self.score_range[1]:
            found.append((("score_range",), f"is {list(self.score_range)}; the first number must be the smaller one"))
        if not self.accuracy_weight:
            found.append((("accuracy_weight",), "is 0: nothing would teach the model to rate"))
        return found

    def unused(self) -> dict[str, str]:
        """What compares images, with `kind: threshold`."""
        if self.kind != "threshold":
            return {}
        names = ("mode", "comparison", "variance", "targets", "tie_margin", "scope")
        return dict.fromkeys(names, "compares images, which `kind: threshold` does not do; remove it")

    def rank_options(self) -> dict[str, Any]:
        """Keyword arguments of `thurl.rl.rewards.RankRewardOptions`."""
        names = (
            *("mode", "comparison", "variance", "targets", "tie_margin", "out_of_range", "score_range", "scope"),
            *("failed", "eps"),
        )
        options = {name: getattr(self, name) for name in names}
        if self.variance_value is not None:
            options["variance_value"] = self.variance_value
        return options


class SamplerSection(Section):
    """Dataset-pure blocks of images (`thurl.rl.DatasetBlockSampler`)."""

    block_size: int = Field(8, ge=2)
    weights: Literal["uniform", "proportional"] | dict[str, Annotated[float, Field(gt=0)]] = "proportional"
    """Which dataset the next block comes from: by its blocks left, uniformly (official code), or as given."""
    remainder: Literal["carry", "fill"] = "carry"


class RolloutsSection(Section):
    """What completions may contain, and how vLLM gets new weights (`thurl.rl.rollouts.RolloutOptions`)."""

    engine_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Of vLLM inside the training process; `auto`: what the trainer computes in."""
    adapter_sync: Literal["auto", "merged", "adapter"] = "auto"
    """With `adapter`: hand vLLM the merged model or the adapter alone."""
    stop: tuple_of(Annotated[str, Field(min_length=1)]) = ()  # type: ignore[valid-type]
    """Strings that end a completion and stay in it; needs vLLM."""
    answer_format: Literal["free", "strict"] = "free"
    """`strict`: vLLM draws only completions that parse."""


class WarmStartSection(Section):
    """Supervised stages before reinforcement learning, without any information on scores (`thurl.rl.warm_start`)."""

    seed: int | None = None
    """`training.seed` when left out."""
    pretext_steps: int = Field(600, ge=0)
    pretext_batch: int = Field(64, ge=1)
    pretext_lr: float = Field(2e-3, gt=0)
    format_steps: int = Field(500, ge=0)
    format_batch: int = Field(48, ge=1)
    format_lr: float = Field(2e-3, gt=0)
    score_weight: float = Field(0.3, gt=0)
    train_vision: bool = True
    weight_decay: float = Field(0.01, ge=0)

    def stage_options(self) -> dict[str, Any]:
        """Keyword arguments of `thurl.rl.warm_start.WarmStartOptions`."""
        return self.model_dump(exclude={"seed"})


class EvaluationSection(Section):
    """SRCC and PLCC on a fixed list of images during and after training."""

    sources: tuple_of(Source) = ()  # type: ignore[valid-type]
    """Test sets; the validation images are evaluated during training either way."""
    every_steps: int | None = Field(None, ge=1)
    max_images: int | None = Field(None, ge=1)
    mode: Literal["think", "direct", "expected"] = "think"
    n_samples: int = Field(1, ge=1)
    batch_size: int = Field(8, ge=1)
    max_new_tokens: int = Field(256, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_k: int = Field(0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = 0
    before: bool = True
    after: bool = True
    grouping: Literal["global", "per_reference"] = "global"

    def problems(self) -> list[Problem]:
        if self.n_samples > 1 and (self.temperature == 0 or self.mode == "expected"):
            return [(("n_samples",), f"{self.n_samples} samples of a deterministic answer are all equal; set it to 1")]
        return []


class ControlSection(Section):
    """Sanity check: the same run with labels that carry no information."""

    shuffle_mos: bool = False
    seed: int = 0


class HubSection(Section):
    """What the model card says. Pushing itself is `training.push_to_hub` and `training.hub_model_id`."""

    license: str | None = None
    tags: tuple_of(str) = ()  # type: ignore[valid-type]
    datasets: tuple_of(str) = ()  # type: ignore[valid-type]
    base_model: str | None = None
    """Name on the Hub, where the run starts from a folder."""


class ReportSection(Section):
    """Files written at the end of a run."""

    results: str | None = None
    html: str | None = None
    examples: int = Field(3, ge=0, le=20)


def _known_fields(schema: str) -> Any:
    def check(values: dict[str, Any]) -> dict[str, Any]:
        raise_problems(check_fields(values, schema))
        return values

    return AfterValidator(check)


GRPOFields = Annotated[dict[str, Any], _known_fields("grpo_config")]
"""`training:` of a GRPO recipe: verbatim `trl.GRPOConfig` fields."""

SFTFields = Annotated[dict[str, Any], _known_fields("sft_config")]
"""`training:` of supervised fine-tuning: verbatim `trl.SFTConfig` fields."""

TrainingFields = Annotated[dict[str, Any], _known_fields("training_arguments")]
"""`training:` of every other recipe: verbatim `transformers.TrainingArguments` fields."""
