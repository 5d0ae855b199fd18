"""Sections of the EXIF recipes, beside those of their pictures (`thurl.recipe.exif_sources`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from thurl.forensics.crop import CROP_SCALE
from thurl.forensics.exif.calibration import DEFAULT_RATES
from thurl.forensics.exif.manifest import PARTS
from thurl.forensics.exif.manipulations import MANIPULATIONS, OFFICIAL_WEIGHTS, PHOTOGRAPH
from thurl.forensics.exif.tasks import TASKS
from thurl.messages import nearest
from thurl.recipe.exif_sources import GeneratedSource, LabelledSource, PhotographsSource
from thurl.recipe.fields import Problem
from thurl.recipe.method_sections import TaskWeightsSection
from thurl.recipe.sections import Section


__all__ = [
    "BilevelSection",
    "BladesModelSection",
    "DetectorSection",
    "FaceDataSection",
    "FaceEvaluationSection",
    "FaceModelSection",
    "ShuffledSettingsSection",
    "TinyFaceModel",
    "TinyTextTower",
    "TransformSection",
    "parts_of",
]

_Sizes = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)]
_Triple = Annotated[tuple[float, float, float], Field(strict=False)]
_Rates = Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(strict=False, min_length=1)]
_NEEDED_PARTS = "train", "validation", "calibration"


class TinyFaceModel(Section):
    """A ResNet of a hundred thousand parameters for pictures of 64 pixels and less (`thurl.forensics.exif.tiny`)."""

    depths: _Sizes = (1, 1, 1, 1)
    hidden_sizes: _Sizes = (16, 24, 32, 64)
    stem_channels: int = Field(16, ge=1)
    feature_size: int = Field(32, ge=2)
    norm: Literal["batch", "group"] = "batch"
    """`group`: rows do not depend on each other, so several processes train what one does."""

    def problems(self) -> list[Problem]:
        if len(self.depths) != len(self.hidden_sizes) or not self.depths:
            message = f"has {len(self.hidden_sizes)} stages, `depths` has {len(self.depths)}; give as many, at least 1"
            return [(("hidden_sizes",), message)]
        return []


class TinyTextTower(Section):
    """A transformer for the fifty prompts."""

    hidden: int = Field(32, ge=4)
    layers: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)

    def problems(self) -> list[Problem]:
        if self.hidden % self.heads:
            return [(("hidden",), f"is {self.hidden}; take a multiple of `heads` ({self.heads})")]
        return []


class FaceModelSection(Section):
    """The face encoder and its first weights; ResNet-50 unless it is `tiny`."""

    start: Literal["folder", "imagenet", "random"] = "random"
    """`folder`: of another encoder, such as a converted EXIF-as-Language checkpoint; `imagenet`: torchvision's."""
    path: str | None = Field(None, min_length=1)
    """The folder, or the ImageNet file; torchvision's cache when that is left out."""
    tiny: TinyFaceModel | None = None
    rank_scale: float = Field(math.sqrt(2) / 2, gt=0)
    """c of `p = (1 + erf((s_i - s_j) / c)) / 2`."""

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        if self.start == "folder" and self.path is None:
            found.append((("path",), "is needed by `start: folder`: the folder of the encoder to start from"))
        if self.start == "random" and self.path is not None:
            found.append((("path",), "is not used by `start: random`; set another `start`, or remove it"))
        if self.tiny is not None and self.start == "imagenet":
            found.append((("start",), "`imagenet` weights are those of a ResNet-50, which `tiny` is not"))
        return found


class BladesModelSection(FaceModelSection):
    """The same with the prompts' side."""

    text_path: str | None = Field(None, min_length=1)
    """Safetensors file with CLIP RN50's text tower under CLIP's names; a random start when left out."""
    tiny_text: TinyTextTower | None = None
    """The text tower of a `tiny` model."""
    regions: Literal[2, 3] = 3
    """Of the fine face task: mouth, eye and, with 3, nose."""
    focal_gamma: float = Field(2.0, ge=0)

    def problems(self) -> list[Problem]:
        found = super().problems()
        if (self.tiny is None) != (self.tiny_text is None):
            found.append((("tiny_text",), "belongs to `tiny`: give both or neither"))
        if self.tiny_text is not None and self.text_path is not None:
            found.append((("text_path",), "does not fit a tiny text tower; remove one of the two"))
        return found


class TransformSection(Section):
    """Pictures to the encoder's input (`thurl.forensics.processing.FaceImageProcessor`); CLIP's mean and std."""

    size: int = Field(224, ge=8)
    image_mean: _Triple = (0.48145466, 0.4578275, 0.40821073)
    image_std: _Triple = (0.26862954, 0.26130258, 0.27577711)
    antialias: bool = False
    """The official environment shrinks without; keep it for released weights."""
    crop_scale: float = Field(CROP_SCALE, gt=0)
    upright: bool = False

    def problems(self) -> list[Problem]:
        return [] if min(self.image_std) > 0 else [(("image_std",), "must be above 0 in every channel")]


class FaceDataSection(Section):
    """Labelled photographs, the parts they are split into, and the edits made while training."""

    source: LabelledSource
    landmarks: Literal["manifest", "average"] = "manifest"
    """`average`: those of an average face where the manifest has none, for pictures that are crops around a face."""
    parts: dict[str, float] | None = None
    """Shares of `train`, `validation`, `calibration`, and `outer` where a bi-level step draws from it; no group of the
    manifest is in two."""
    split_seed: int = 0
    manipulations: dict[str, Annotated[float, Field(ge=0)]] = dict(OFFICIAL_WEIGHTS)
    match_resampling: bool = True

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        known = (PHOTOGRAPH, *MANIPULATIONS)
        for name in self.manipulations:
            if name not in known:
                found.append((("manipulations", name), f"is none of {', '.join(known)}{nearest(name, known)}"))
        if not sum(self.manipulations.values()):
            found.append((("manipulations",), "has no weight above 0"))
        for name, share in (self.parts or {}).items():
            if name not in PARTS:
                found.append((("parts", name), f"is none of {', '.join(PARTS)}{nearest(name, PARTS)}"))
            elif not share > 0:
                found.append((("parts", name), f"is {share}, but must be above 0"))
        if self.parts is not None:
            lacking = [name for name in _NEEDED_PARTS if name not in self.parts]
            if lacking:
                found.append((("parts",), f"lacks {', '.join(lacking)}"))
            elif abs(sum(self.parts.values()) - 1) > 1e-6:
                found.append((("parts",), f"adds up to {sum(self.parts.values()):g}, but must add up to 1"))
        return found


class BilevelSection(TaskWeightsSection):
    """Learned task weights of BLADES."""

    tasks: ClassVar[tuple[str, ...]] = TASKS

    primary: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = ("coarse_face",)
    outer: Literal["held_out", "train"] = "held_out"
    """Which photographs the outer batches come from: a part of their own, or those that are trained on (official)."""


class DetectorSection(Section):
    """The one-class detector: a Gaussian mixture over features, and thresholds from other photographs."""

    components: int | None = Field(None, ge=1)
    """12 for the one-class paper, 10 for BLADES when left out."""
    covariance: Literal["full", "tied", "diag"] = "full"
    pca: int | None = Field(None, ge=1)
    fallback: Literal["tied", "diag", "pca", "refuse"] = "tied"
    """What to do with too few photographs for full covariances."""
    unit_length: bool | None = None
    """Whether features are brought to length 1; as in the method's paper when left out."""
    seed: int = 2024
    rates: _Rates = DEFAULT_RATES
    """False-alarm rates with a threshold in the file."""
    photographs: PhotographsSource | None = None
    """Photographs to fit and calibrate on; the parts `train` and `calibration` when left out."""
    max_photographs: int = Field(25_000, ge=2)
    """At most so many are fitted to, the first in their order."""
    calibration_share: float = Field(0.2, gt=0, lt=1)
    """Part of `photographs` that is kept for calibration."""
    batch_size: int = Field(64, ge=1)

    def unused(self) -> dict[str, str]:
        """`calibration_share` without `photographs`."""
        if self.photographs is not None:
            return {}
        return {"calibration_share": "is for `photographs`; without them `data.parts` says it"}


class FaceEvaluationSection(Section):
    """Held-out photographs, and generated faces by generator. Both tails are reported."""

    photographs: PhotographsSource
    """With camera settings (manifest or simulated) the pretext tasks are evaluated on them, too."""
    generated: dict[str, GeneratedSource] = Field(default_factory=dict)
    rate: float | None = Field(None, gt=0, lt=1)
    """False-alarm rate of the decisions; the smallest of `detector.rates` when left out."""
    limit: int = Field(5000, ge=1)
    """Faces per generator at most, and as many photographs drawn for each."""
    match: bool = True
    seed: int = 0
    before: bool = True
    """Evaluate the model before training, too, with a detector of its own."""


class ShuffledSettingsSection(Section):
    """Sanity check: the same run with the camera settings of other photographs, which must not learn them.

    It is judged after its last step, not at the checkpoint that the validation part would choose.
    """

    shuffle_settings: bool = False
    seed: int = 0


def parts_of(data: Any, bilevel: Any) -> Mapping[str, float]:
    """The parts of a recipe: its own, or the default ones, `outer` only where a bi-level step draws from it."""
    if data.parts is not None:
        return data.parts
    if bilevel is not None and bilevel.outer == "held_out":
        return PARTS
    return {"train": 0.8, "validation": 0.1, "calibration": 0.1}
