"""Sections of the DeepFake recipe: model and losses, where its faces come from, how they are tested."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from thurl.forensics.crop import CROP_SCALE
from thurl.forensics.deepfake.regions import REGIONS
from thurl.forensics.perturbations import PERTURBATIONS
from thurl.messages import nearest
from thurl.recipe.fields import Problem
from thurl.recipe.method_sections import TaskWeightsSection
from thurl.recipe.sections import Section, format_tag


__all__ = [
    "PARTS",
    "DeepFakeDataSection",
    "DeepFakeEvaluationSection",
    "DeepFakeLossSection",
    "DeepFakeModelSection",
    "DeepFakeTransformSection",
    "DeepFakeWeightsSection",
    "DrawnFacesSource",
    "FacesManifestSource",
    "TinyJointModel",
]

PARTS = ("train", "outer", "val", "test")
"""Splits of a manifest, named as in DeepfakeBench; `outer` is for the outer batches of a bi-level step."""

_Triple = Annotated[tuple[float, float, float], Field(strict=False)]
_Names = Annotated[tuple[str, ...], Field(strict=False)]


class TinyJointModel(Section):
    """Two transformers of some ten thousand weights for pictures of a few dozen pixels
    (`thurl.forensics.deepfake.tiny`)."""

    patch_size: int = Field(8, ge=1)
    hidden: int = Field(32, ge=4)
    layers: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    positions: float = Field(1.0, gt=0)
    """Factor of CLIP's start for the positions of the patches; few steps on few patches learn better with more."""

    def problems(self) -> list[Problem]:
        if self.hidden % self.heads:
            return [(("hidden",), f"is {self.hidden}; take a multiple of `heads` ({self.heads})")]
        return []


class DeepFakeModelSection(Section):
    """The joint embedding and its first weights; CLIP ViT-B/32 unless it is `tiny` or a folder says otherwise."""

    start: Literal["clip", "folder", "random"] = "random"
    """`clip`: transformers' folder of a CLIP model; `folder`: of a trained or converted model of this method."""
    path: str | None = Field(None, min_length=1)
    tiny: TinyJointModel | None = None
    graph: str = Field("ffpp", min_length=1)
    """Label graph: `ffpp`, `ffsc`, or a YAML file."""
    normalize: bool = False
    """Bring the features of both towers to length 1."""
    scale: float = Field(0.1, gt=0)
    """Of the product of features."""
    learn_scale: bool = False

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        if self.start != "random" and self.path is None:
            found.append((("path",), f"is needed by `start: {self.start}`: the folder to start from"))
        if self.start == "random" and self.path is not None:
            found.append((("path",), "is not used by `start: random`; set another `start`, or remove it"))
        if self.start != "random" and self.tiny is not None:
            found.append((("tiny",), f"builds a model of its own, and `start: {self.start}` loads one; remove one"))
        return found

    def unused(self) -> dict[str, str]:
        """What a model of this method brings along."""
        if self.start != "folder":
            return {}
        names = ("normalize", "scale", "learn_scale")
        return dict.fromkeys(names, "is the model's own in `start: folder`; remove it")


class DeepFakeLossSection(Section):
    """Losses per task (`thurl.forensics.deepfake.losses`): fidelity, and shares of two others."""

    fidelity_eps: float = Field(0.0, ge=0)
    """Inside the roots; 1e-8 officially."""
    cross_entropy: float = Field(0.0, ge=0, le=1)
    likelihood: float = Field(0.0, ge=0, le=1)

    def problems(self) -> list[Problem]:
        if self.cross_entropy + self.likelihood > 1:
            message = f"and `cross_entropy` add up to {self.cross_entropy + self.likelihood:g}; they are shares of 1"
            return [(("likelihood",), message)]
        return []


class DeepFakeTransformSection(Section):
    """Pictures to the model's input (`thurl.forensics.processing.FaceImageProcessor`); CLIP's mean and std."""

    size: int = Field(224, ge=8)
    image_mean: _Triple = (0.48145466, 0.4578275, 0.40821073)
    image_std: _Triple = (0.26862954, 0.26130258, 0.27577711)
    resample: Literal["bilinear", "bicubic"] = "bicubic"
    crop_scale: float = Field(CROP_SCALE, gt=0)
    """Side of the crop around a face box; pictures without one are used whole."""

    def problems(self) -> list[Problem]:
        return [] if min(self.image_std) > 0 else [(("image_std",), "must be above 0 in every channel")]


class FacesManifestSource(Section):
    """Faces with labels, one per line (`thurl.forensics.deepfake.manifest`)."""

    source_tag: ClassVar[str] = "<manifest>"

    format: Literal["manifest"]
    manifest: str = Field(min_length=1)
    images: str | None = None
    """Folder the paths are relative to; the manifest's own when left out."""
    allow_outside: bool = False
    split: str | None = None
    """Only rows of this `split`; all when left out."""
    obtain: str | None = None
    """Where to get the files. With it, absent files stop a run (exit 3); without it they are a mistake (exit 2)."""


class DrawnFacesSource(Section):
    """Drawn faces and forgeries made of them, written as files (`thurl.forensics.deepfake.drawn_faces`)."""

    source_tag: ClassVar[str] = "<drawn>"

    format: Literal["drawn"]
    dataset: str = Field("drawn", min_length=1)
    """Name of the set; people of two sets are other people."""
    people: dict[str, Annotated[int, Field(ge=1)]]
    """Split to how many people."""
    videos: int = Field(1, ge=1)
    frames: int = Field(2, ge=1)
    seed: int | None = Field(None, ge=0)
    """`training.seed` when left out; others draw other people."""
    size: int = Field(48, ge=32)
    regions: _Names = ("eye", "mouth", "nose")
    """What the forgeries replace, one in each."""
    copies: int = Field(1, ge=1)
    """Forged videos per real one."""

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        for place, name in enumerate(self.regions):
            if name not in REGIONS:
                found.append((("regions", place), f"{name!r} is none of {', '.join(REGIONS)}{nearest(name, REGIONS)}"))
        for name in self.people:
            if name not in PARTS:
                found.append((("people", name), f"is none of {', '.join(PARTS)}{nearest(name, PARTS)}"))
        return found


_Source = Annotated[
    Annotated[FacesManifestSource, Tag("<manifest>")] | Annotated[DrawnFacesSource, Tag("<drawn>")],
    Discriminator(format_tag),
]
_Sources = Annotated[tuple[_Source, ...], Field(strict=False, min_length=1)]


class DeepFakeDataSection(Section):
    """Faces to train and to choose a checkpoint on."""

    sources: _Sources
    """Rows of the split `train` are trained on, of `val` validated on, of `outer` serve the bi-level step; `test` is
    left alone."""
    parts: dict[str, float] | None = None
    """Shares of `train`, `val` and perhaps the others in people, instead of the splits of the manifests."""
    outer_share: float = Field(0.1, gt=0, lt=1)
    """Of the people of `train` who are kept for the bi-level step where there is no `outer`."""
    frames: int | None = Field(None, ge=1)
    """Of each video, evenly spaced; all when left out."""
    matched: bool = False
    """A real face comes in the same batch as the forgeries of it (`FaceItem.source_key`)."""
    augmentation: float = Field(0.3, ge=0, le=1)
    """Chance of one of five spoilings per training picture."""
    split_seed: int = 0

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        for name, share in (self.parts or {}).items():
            if name not in PARTS:
                found.append((("parts", name), f"is none of {', '.join(PARTS)}{nearest(name, PARTS)}"))
            elif not share > 0:
                found.append((("parts", name), f"is {share}, but must be above 0"))
        if self.parts is not None:
            if lacking := [name for name in ("train", "val") if name not in self.parts]:
                found.append((("parts",), f"lacks {', '.join(lacking)}"))
            elif abs(sum(self.parts.values()) - 1) > 1e-6:
                found.append((("parts",), f"adds up to {sum(self.parts.values()):g}, but must add up to 1"))
        return found


class DeepFakeWeightsSection(TaskWeightsSection):
    """Learned task weights of this method; the outer loss is that of real and fake."""

    tasks: ClassVar[tuple[str, ...]] = ("binary", "global", "local")

    primary: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = ("binary",)
    lr: float = Field(1e-3, gt=0)
    fd_eps: float = Field(1e-6, ge=0)
    outer: Literal["held_out", "train"] = "held_out"
    """Which faces the outer batches show: those of people of their own, or what is trained on (official)."""


class DeepFakeEvaluationSection(Section):
    """Test sets, told apart by `dataset`."""

    sources: _Sources
    frames: int | None = Field(None, ge=1)
    """Of each video, evenly spaced; all when left out."""
    resamples: int = Field(1000, ge=0)
    """Of the bootstrap intervals, over whole videos."""
    perturbations: _Names = ()
    """Evaluate again with every picture changed so (`thurl.forensics.perturbations`)."""
    before: bool = False
    """Evaluate the model before training, too."""

    def problems(self) -> list[Problem]:
        return [
            (("perturbations", place), f"{name!r} is none of {', '.join(PERTURBATIONS)}{nearest(name, PERTURBATIONS)}")
            for place, name in enumerate(self.perturbations)
            if name not in PERTURBATIONS
        ]
