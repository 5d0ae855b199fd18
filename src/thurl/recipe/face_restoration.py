"""Blind restoration of faces, or of photographs, as a recipe: a U-Net on pictures degraded on the fly.

A baseline of ours, not the method of a paper; the degradations are those of GFP-GAN (arXiv 2101.04061).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from thurl.recipe.fields import Problem, field_value, method_problems, usable_fields
from thurl.recipe.sections import HubSection, MethodRecipe, ReportSection, Section, TrainingFields
from thurl.restoration.cleanup import CLEANUPS
from thurl.restoration.degradation import DegradationConfig, degradation_problems


__all__ = [
    "BundledPhotosSource",
    "DegradationSection",
    "FaceRestorationRecipe",
    "FeatureLossSection",
    "FolderSource",
    "NetworkLossSection",
    "PixelLossSection",
    "RestorationDataSection",
    "RestorationEvaluationSection",
    "RestorationLossesSection",
    "RestorationModelSection",
    "UnrelatedTargetsSection",
]

_Pair = Annotated[tuple[float, float], Field(strict=False)]
_Names = Annotated[tuple[str, ...], Field(strict=False)]
_Whole = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)]


class RestorationModelSection(Section):
    """The network: `name_or_path` to go on from a trained one, else built anew (`RestorationConfig`)."""

    name_or_path: str | None = Field(None, min_length=1)
    hidden_sizes: _Whole = (48, 96, 192, 384)
    depths: _Whole = (2, 2, 4, 4)
    decoder_depths: _Whole | None = None
    patch_size: int = Field(1, ge=1, le=8)
    expansion: float = Field(1.0, gt=0, le=8)
    contrast_window: int | None = Field(None, ge=3)

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        levels = len(self.hidden_sizes)
        if not levels or len(self.depths) != levels:
            found.append(
                (("depths",), f"has {len(self.depths)} levels, `hidden_sizes` {levels}; one of each per level")
            )
        if self.contrast_window is not None and self.contrast_window % 2 == 0:
            found.append((("contrast_window",), f"is {self.contrast_window}, but must be odd"))
        if self.decoder_depths is not None and len(self.decoder_depths) != levels - 1:
            found.append((("decoder_depths",), f"has {len(self.decoder_depths)} levels; it must have {levels - 1}"))
        return found

    def unused(self) -> dict[str, str]:
        """The shape, where a trained network brings its own."""
        if self.name_or_path is None:
            return {}
        shape = [name for name in type(self).model_fields if name != "name_or_path"]
        return dict.fromkeys(shape, "is fixed by the model of `name_or_path`; remove it")

    def network_options(self) -> dict[str, Any]:
        """Keyword arguments of `RestorationConfig`."""
        return self.model_dump(exclude={"name_or_path"})


class FolderSource(Section):
    """Pictures of a folder and its subfolders."""

    source_tag: ClassVar[str] = "<folder>"

    format: Literal["folder"]
    folder: str = Field(min_length=1)
    obtain: str | None = None
    """Where to get the files. With it, an absent folder stops a run (exit 3); without it, it is a mistake (exit 2)."""


class BundledPhotosSource(Section):
    """Photographs that come with installed packages (`thurl.data.photos`)."""

    source_tag: ClassVar[str] = "<bundled_photos>"

    format: Literal["bundled_photos"]
    split: Literal["train", "validation", "held_out"]


def _source_tag(value: Any) -> str:
    kind = value.get("format") if isinstance(value, Mapping) else getattr(value, "format", None)
    return "<bundled_photos>" if kind == "bundled_photos" else "<folder>"


_Source = Annotated[
    Annotated[FolderSource, Tag("<folder>")] | Annotated[BundledPhotosSource, Tag("<bundled_photos>")],
    Discriminator(_source_tag),
]
_Sources = Annotated[tuple[_Source, ...], Field(strict=False)]


class RestorationDataSection(Section):
    """Clean pictures. Those for validation choose the strength of the clean-ups and are watched while training."""

    train: _Sources
    validation: _Sources
    size: int = Field(512, ge=8)
    """Side of the training squares in pixels."""
    crop: Literal["random", "whole"] = "whole"
    """A square of the picture, or the largest one in its middle, resized (aligned faces)."""
    zoom: _Pair = (1.0, 1.0)
    """With `crop: random`: range of the factor by which the picture is resized before."""
    flip: bool = True
    repeats: int = Field(1, ge=1)
    """Squares per picture and epoch."""
    seed: int | None = None
    """Of crops and degradations; `training.seed` when left out."""

    def problems(self) -> list[Problem]:
        found: list[Problem] = [((name,), "is empty: name at least one source") for name in ("train", "validation")
                                if not getattr(self, name)]  # fmt: skip
        if not 0 < self.zoom[0] <= self.zoom[1]:
            found.append((("zoom",), f"is {list(self.zoom)}, but must be two factors above 0, the smaller one first"))
        return found

    def unused(self) -> dict[str, str]:
        """`zoom` with whole pictures."""
        return {"zoom": "is for `crop: random`; remove it"} if self.crop == "whole" else {}


class DegradationSection(Section):
    """Ranges that degradations are drawn from (`thurl.restoration.DegradationConfig`)."""

    blur_sigma: _Pair = (0.1, 10.0)
    anisotropic: float = 0.5
    kernel_size: int = 41
    downsample: _Pair = (0.8, 8.0)
    downsample_methods: _Names = ("area", "bilinear", "bicubic")
    noise: _Pair = (0.0, 20.0)
    poisson: float = 0.0
    grey_noise: float = 0.0
    jpeg: Annotated[tuple[int, int], Field(strict=False)] = (60, 100)
    upsample_method: str = "bilinear"

    def problems(self) -> list[Problem]:
        return [((name,), text) for name, text in degradation_problems(self.model_dump())]

    def config(self) -> DegradationConfig:
        """As the library takes it."""
        return DegradationConfig(**self.model_dump())


class PixelLossSection(Section):
    """Term `pixel`."""

    kind: Literal["charbonnier", "l1"] = "charbonnier"
    weight: float = Field(1.0, gt=0)
    eps: float = Field(1e-3, gt=0)


class FeatureLossSection(Section):
    """Term `features`: distance of the features of a frozen network."""

    kind: Literal["torchvision", "clip", "afine"] = "torchvision"
    path: str | None = Field(None, min_length=1)
    """torchvision: a file with the weights; clip and afine: a folder of transformers, of `thurl.iqa.afine`."""
    network: str = "vgg19"
    """Name of the torchvision model."""
    layers: _Names = ("features.2", "features.7", "features.16", "features.25", "features.34")
    """torchvision: names of layers, those of GFP-GAN's perceptual loss by default; clip: numbers of blocks."""
    weight: float = Field(0.0, ge=0)

    def problems(self) -> list[Problem]:
        found = _needs_path(self)
        if self.kind == "clip" and not all(name.isdigit() for name in self.layers):
            found.append((("layers",), "must be numbers of CLIP's blocks from 1, as text, such as ['4', '8', '12']"))
        return found

    def unused(self) -> dict[str, str]:
        """What chooses features of torchvision's networks, and of CLIP's, with the others."""
        owners = {"network": ("torchvision",), "layers": ("torchvision", "clip")}
        return {
            name: f"is for `kind: {'` or `'.join(kinds)}`; remove it"
            for name, kinds in owners.items()
            if self.kind not in kinds
        }


class NetworkLossSection(Section):
    """A term with a frozen network of its own, loaded only with a weight above 0."""

    path: str | None = Field(None, min_length=1)
    weight: float = Field(0.0, ge=0)

    def problems(self) -> list[Problem]:
        return _needs_path(self)


def _needs_path(section: Any) -> list[Problem]:
    if section.weight and section.path is None:
        return [(("path",), f"is needed with a weight of {section.weight}; name the weights, or set the weight to 0")]
    return []


class RestorationLossesSection(Section):
    """Terms and their weights. A term of weight 0 is neither loaded nor computed."""

    pixel: PixelLossSection = PixelLossSection()
    features: FeatureLossSection = FeatureLossSection()
    identity: NetworkLossSection = NetworkLossSection()
    """1 - cosine of AdaFace embeddings; `path`: a folder of `thurl.iqa.face_restoration`. FFHQ-aligned faces only."""
    afine: NetworkLossSection = NetworkLossSection()
    """A-FINE against the target, 0 (good) to 1; `path`: a folder of `thurl.iqa.afine`."""
    naturalness: NetworkLossSection = NetworkLossSection()
    """The negative of a no-reference reward: A-FINE's naturalness, 0 (good) to 1; `path` as for `afine`."""

    def weights(self) -> dict[str, float]:
        """Weight of every term that is computed."""
        found = {name: getattr(self, name).weight for name in type(self).model_fields}
        return {name: weight for name, weight in found.items() if weight}


class RestorationEvaluationSection(Section):
    """PSNR and SSIM against the clean pictures: of the degraded ones, of clean-ups, and of the model."""

    sources: _Sources = ()
    """Test pictures; those of `data.validation` are for choosing."""
    size: int | None = Field(None, ge=8)
    """Side of the squares; `data.size` when left out."""
    repeats: int = Field(1, ge=1)
    seed: int = 0
    cleanups: _Names = ("bicubic", "gaussian", "median")
    """Of `thurl.restoration.cleanup.CLEANUPS`; each with the strength that is best on the validation pictures."""
    before: bool = True
    after: bool = True

    def problems(self) -> list[Problem]:
        return [
            (("cleanups", place), f"{name!r} is not one of {', '.join(CLEANUPS)}")
            for place, name in enumerate(self.cleanups)
            if name not in CLEANUPS
        ]


class UnrelatedTargetsSection(Section):
    """Sanity check: the same run with the square of another item as target, which must not learn to restore."""

    unrelated_targets: bool = False
    max_steps: int | None = Field(None, ge=1)
    """Of the control; those of the run when left out. Where it leads shows after few."""


class FaceRestorationRecipe(MethodRecipe):
    """`training` holds verbatim `transformers.TrainingArguments` fields."""

    training_schema: ClassVar[str] = "training_arguments"
    packages: ClassVar[tuple[str, ...]] = ()
    """Optional packages that every run needs; `thurl.data.photos` and the clean-up `nlm` name theirs themselves."""

    method: Literal["face_restoration"]
    model: RestorationModelSection = RestorationModelSection()
    data: RestorationDataSection
    degradation: DegradationSection = DegradationSection()
    losses: RestorationLossesSection = RestorationLossesSection()
    training: TrainingFields
    evaluation: RestorationEvaluationSection | None = None
    control: UnrelatedTargetsSection = UnrelatedTargetsSection()
    hub: HubSection = HubSection()
    report: ReportSection = ReportSection()

    @classmethod
    def cross_problems(cls, sections: Mapping[str, Any], processes: int | None = None) -> list[Problem]:
        """Impossible combinations across the sections that are valid alone (the others are missing here)."""
        found: list[Problem] = []
        losses, data, evaluation = (sections.get(name) for name in ("losses", "data", "evaluation"))
        if losses is not None and data is not None and losses.identity.weight and data.crop != "whole":
            message = "needs aligned faces (`data.crop: whole`): the places of eyes and mouth are those of FFHQ"
            found.append((("losses", "identity", "weight"), message))
        training = sections.get("training")
        if not isinstance(training, dict):
            return found
        found += [(("training", *path), text) for path, text in method_problems(training)]
        usable = usable_fields(training, cls.training_schema)
        if evaluation is None and str(field_value(usable, "eval_strategy", cls.training_schema)) != "no":
            message = "needs the section `evaluation`, which says how the validation pictures are judged"
            found.append((("training", "eval_strategy"), message))
        return found

    def missing_weights_and_data(self) -> list[str]:
        """Weights that are not here, each with the fix; cheap, and without heavy imports."""
        found = []
        if self.model.name_or_path is not None:
            folder = Path(self.model.name_or_path).expanduser()
            if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
                found.append(
                    f"model weights: {folder} is no folder with config.json and *.safetensors; point "
                    "`model.name_or_path` to one, or remove it to start anew"
                )
        for name, weight in self.losses.weights().items():
            section = getattr(self.losses, name)
            path = getattr(section, "path", None)
            if path is None or Path(path).expanduser().exists():
                continue
            found.append(
                f"weights of the loss `{name}` (weight {weight:g}): {path} does not exist; name another or "
                f"set `losses.{name}.weight=0`"
            )
        return found
