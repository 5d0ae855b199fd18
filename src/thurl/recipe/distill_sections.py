"""Sections of the recipe for rate-utility dataset distillation, beside its evaluation (`distill_judging`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from thurl.distillation.controller import RateControl
from thurl.distillation.geometry import DECODERS
from thurl.errors import UsageError
from thurl.messages import nearest
from thurl.recipe.fields import Problem
from thurl.recipe.sections import Section


__all__ = [
    "CodecSection",
    "DistillDataSection",
    "DistillSource",
    "FitSection",
    "LambdaStage",
    "PostQuantisationSection",
    "QuantisationSection",
    "RateSection",
    "UtilitySection",
    "WarmUpSection",
]

_Widths = Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(strict=False, min_length=1, max_length=8)]
_PerChannel = Annotated[tuple[float, ...], Field(strict=False)]
_Steps = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=1)]

WITHOUT_FOLDER = ("digits",)


class CodecSection(Section):
    """Latents, decoders and how many samples share one (`thurl.distillation.geometry.CodecConfig`)."""

    samples_per_class: int = Field(20, ge=1)
    shared: bool = False
    """Samples of several classes share a decoder; at low rates most bits of separate ones are networks."""
    slice_size: int = Field(1000, ge=1)
    """Most samples that share a decoder. In the paper's settings all samples of a class do, and no others."""
    context: Literal[8, 16, 24, 32] = 8
    depth: int = Field(2, ge=1, le=16)
    """Hidden layers of the entropy network."""
    decoder: str | None = None
    """Widths of the synthesis by the name of the official code."""
    widths: _Widths | None = None
    """Widths of one's own."""

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        if (self.decoder is None) == (self.widths is None):
            have = "both" if self.decoder else "neither"
            found.append((("decoder",), f"give either `decoder` or `widths`; the recipe has {have}"))
        if self.decoder is not None and self.decoder not in DECODERS:
            names = ", ".join(DECODERS)
            found.append((("decoder",), f"`{self.decoder}` is not one of {names}{nearest(self.decoder, DECODERS)}"))
        return found

    def synthesis_widths(self) -> tuple[int, ...]:
        """Widths of the 1x1 convolutions."""
        return DECODERS[self.decoder] if self.decoder is not None else tuple(self.widths or ())


class DistillSource(Section):
    """Pictures by class, with a training and a test part.

    `folder`: class folders of pictures, or `train/` and `test/` (or `val/`) with class folders in each. `cifar10`,
    `cifar100`: the binary version. `mnist`, `fashion_mnist`: idx files. `photo_patches`: each photograph of a folder
    is a class, train and test patches come from separate regions. `imagenet`: `train/` and `val/` with a folder per
    class, of which `subset` names ten. `digits`: 8 x 8, inside scikit-learn.
    """

    format: Literal["digits", "folder", "cifar10", "cifar100", "mnist", "fashion_mnist", "photo_patches", "imagenet"]
    folder: str | None = Field(None, min_length=1)
    channels: Literal[1, 3] = 3
    """`folder`, `photo_patches`: grey or colour."""
    subset: Literal["nette", "woof", "fruit", "yellow", "meow", "squawk"] | None = None
    index_file: str | None = Field(None, min_length=1)
    """`imagenet`: which class folder has which number, where the folders do not say (`thurl.distillation.sources`)."""
    patch: int = Field(32, ge=2)
    """`photo_patches`: side in the photograph, in pixels, averaged to `data.size`."""
    max_classes: int | None = Field(None, ge=2)
    """`photo_patches`: photographs, drawn by `data.seed`; all when left out."""
    obtain: str | None = None
    """Where to get the files. With it, an absent folder stops a run (exit 3); without it, it is a mistake (exit 2)."""

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        if (self.folder is None) != (self.format in WITHOUT_FOLDER):
            message = "is not used by" if self.folder else "is needed by"
            found.append((("folder",), f"{message} `format: {self.format}`"))
        if self.format == "imagenet" and self.subset is None:
            found.append((("subset",), "is needed by `format: imagenet`"))
        return found

    def unused(self) -> dict[str, str]:
        """What belongs to other formats."""
        owners = {
            "channels": ("folder", "photo_patches"),
            "subset": ("imagenet",),
            "index_file": ("imagenet",),
            "patch": ("photo_patches",),
            "max_classes": ("photo_patches",),
        }
        return {
            name: f"is for `format: {'` or `'.join(formats)}`; remove it"
            for name, formats in owners.items()
            if self.format not in formats
        }


class DistillDataSection(Section):
    """Real pictures. The held-out part of the training pictures makes every choice; the test part makes none."""

    source: DistillSource
    size: int | None = Field(None, ge=4, le=4096)
    """Side in pixels; left out: as the pictures are, which must then be of one size, and 16 for `photo_patches`."""
    held_out: float = Field(0.2, gt=0, lt=1)
    """Share of the training pictures of each class that only chooses."""
    train_per_class: int | None = Field(None, ge=2)
    test_per_class: int | None = Field(None, ge=1)
    mean: _PerChannel | None = None
    std: _PerChannel | None = None
    """Per channel, of the normalisation; those of the training pictures when left out."""
    seed: int = 0
    """Of the parts and draws."""

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        if (self.mean is None) != (self.std is None):
            found.append((("mean",), "belongs to `std`: give both or neither"))
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) not in (1, 3):
                found.append(((name,), f"has {len(values)} values; one per channel, 1 or 3, is needed"))
        if self.std is not None and min(self.std, default=1) <= 0:
            found.append((("std",), "must be above 0"))
        if self.size is not None and self.source.format == "digits":
            found.append((("size",), "is not used by `format: digits`, which are 8 x 8; remove it"))
        return found


class WarmUpSection(Section):
    """The codec is fitted to random real pictures first (`thurl.distillation.warm_up`)."""

    iterations: int = Field(400, ge=1)
    """Of each candidate, and again of each one that is kept."""
    candidates: int = Field(5, ge=1)
    keep: int = Field(2, ge=1)
    rate_weight: float = Field(1e-3, gt=0)
    """Weight of bits per pixel beside the mean squared error; 1 / beta of the official code."""
    learning_rate: float = Field(1e-2, gt=0)

    def problems(self) -> list[Problem]:
        if self.keep > self.candidates:
            return [(("keep",), f"is {self.keep}, but there are {self.candidates} `candidates`")]
        return []


class FitSection(Section):
    """The warm-up goes on to the bits of the target, or of the joint run: what the joint run must beat."""

    max_steps: int = Field(240, ge=1)
    learning_rate: float = Field(2e-3, gt=0)


class UtilitySection(Section):
    """What a distilled set is good for: `dm` distribution matching, `gm` gradients, `tm` trajectories."""

    kind: Literal["dm", "gm", "tm"] = "dm"
    batch_real: int = Field(256, ge=1)
    """Real pictures per class and step (`dm`, `gm`)."""
    augment: bool = True
    """DSA on real and synthetic pictures alike."""
    depth: int = Field(3, ge=1, le=6)
    width: int = Field(128, ge=1)
    """Of the ConvNet that matches, and that `evaluation` trains unless it says otherwise."""
    inner_steps: int = Field(10, ge=1)
    """`gm`: passes of a network over the synthetic set between two comparisons."""
    outer_steps: int = Field(50, ge=1)
    """`gm`: comparisons before a new network is drawn."""
    experts: str | None = Field(None, min_length=1)
    """`tm`: folder of trajectories (`thurl.distillation.experts`)."""
    syn_steps: int = Field(40, ge=1)
    syn_batch: int | None = Field(80, ge=1)
    expert_epochs: int = Field(2, ge=1)
    max_start_epoch: int = Field(20, ge=1)
    teacher_lr: float = Field(1e-2, gt=0)
    """`tm`: first value of the student's learned step size."""
    teacher_lr_lr: float = Field(1e-5, ge=0)
    """`tm`: its own step size."""

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        if (self.kind == "tm") != (self.experts is not None):
            message = "is needed by" if self.kind == "tm" else "is not used by"
            found.append((("experts",), f"{message} `kind: {self.kind}`"))
        return found

    def unused(self) -> dict[str, str]:
        """What belongs to other kinds."""
        own = {"gm": ("inner_steps", "outer_steps")}
        own["tm"] = ("syn_steps", "syn_batch", "expert_epochs", "max_start_epoch", "teacher_lr", "teacher_lr_lr")
        return {
            name: f"is for `kind: {kind}`; remove it"
            for kind, names in own.items()
            for name in names
            if kind != self.kind
        }


class LambdaStage(Section):
    """A part of the joint run with one lambda."""

    steps: int = Field(ge=1)
    value: float = Field(gt=0)
    """Weight of the utility beside the sum of bits per pixel over the decoders."""


class RateSection(Section):
    """How many bits: a size (`bits_per_class`), for which lambda is found, or lambda itself in stages."""

    bits_per_class: float | None = Field(None, gt=0)
    """Of the whole file: latents, networks, labels, header."""
    lambdas: Annotated[tuple[LambdaStage, ...], Field(strict=False)] = ()
    margin: float = Field(0.02, ge=0, le=0.5)
    """The controller aims this share below the size."""
    update_every: int = Field(5, ge=1)
    """Steps between two updates of lambda, each of which decodes the set once."""
    proportional: float = Field(8.0, ge=0)
    integral: float = Field(2.0, gt=0)
    largest_change: float = Field(0.7, gt=0)
    ramp: float = Field(0.5, ge=0, le=1)
    start: float | None = Field(None, gt=0)
    """First lambda of the controller; where the gradients of rate and utility are alike when left out."""
    smallest: float = Field(1e-6, gt=0)
    largest: float = Field(1e6, gt=0)

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        if (self.bits_per_class is None) != bool(self.lambdas):
            have = "both" if self.lambdas else "neither"
            found.append((("bits_per_class",), f"give either `bits_per_class` or `lambdas`; the recipe has {have}"))
        try:
            self.control(1.0)
        except UsageError as error:
            found += [((), line) for line in error.problems]
        return found

    def control(self, target: float) -> RateControl:
        """The controller for `target` bits of all latents together."""
        names = ("margin", "proportional", "integral", "largest_change", "smallest", "largest", "ramp")
        return RateControl(target, **{name: getattr(self, name) for name in names})


class QuantisationSection(Section):
    """Stand-in for rounding while the joint run trains; at its end rounding itself, so that train is test."""

    sigma: float = Field(0.25, ge=0)
    """Standard deviation of the Gaussian noise, in steps of the latents."""
    temperature: float = Field(0.3, gt=0)
    """Of the soft rounding."""
    hard_share: float = Field(0.1, ge=0, le=1)
    """Last share of the steps, with rounded latents and pictures of 8 bits, gradients passed straight through."""
    latents_at_once: int | None = Field(None, ge=1)
    """Memory for time: decode parts of about so many latents, and once more for the gradients."""


class PostQuantisationSection(Section):
    """Networks to integers: the largest mean squared error of the pictures that the steps may cause."""

    max_mse: _Steps = (5e-7, 5e-6, 5e-5)
    """Tried in turn; the first whose file is within the size is taken, without a size the first."""
