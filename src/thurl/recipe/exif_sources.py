"""Where the pictures of an EXIF recipe come from: a manifest, a folder, or the simulated camera."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from thurl.recipe.sections import Section, format_tag


__all__ = [
    "FakesSource",
    "FolderSource",
    "GeneratedSource",
    "LabelledSource",
    "ManifestSource",
    "PhotographsSource",
    "SimulatedSource",
]


class ManifestSource(Section):
    """Photographs with their camera settings, one per line (`thurl.forensics.exif.manifest`)."""

    source_tag: ClassVar[str] = "<manifest>"

    format: Literal["manifest"]
    manifest: str = Field(min_length=1)
    images: str | None = None
    """Folder the paths are relative to; the manifest's own when left out."""
    allow_outside: bool = False
    obtain: str | None = None
    """Where to get the files. With it, absent files stop a run (exit 3); without it they are a mistake (exit 2)."""


class FolderSource(Section):
    """All pictures below a folder; no EXIF is read."""

    source_tag: ClassVar[str] = "<folder>"

    format: Literal["folder"]
    folder: str = Field(min_length=1)
    max_pictures: int | None = Field(None, ge=1)
    """The first ones in the order of their paths."""
    obtain: str | None = None


class SimulatedSource(Section):
    """Photographs of the simulated camera, written as files with EXIF and scanned (`thurl.forensics.exif.camera`)."""

    source_tag: ClassVar[str] = "<simulated>"

    format: Literal["simulated"]
    count: int = Field(ge=1)
    first: int = Field(0, ge=0)
    """Number of the first picture; other numbers are other pictures."""
    seed: int | None = Field(None, ge=0)
    """`training.seed` when left out."""
    size: int = Field(40, ge=8)
    missing: float = Field(0.05, ge=0, le=1)
    """Chance with which each tag of each picture is left out."""


class FakesSource(Section):
    """Fakes of the simulated camera, without EXIF."""

    source_tag: ClassVar[str] = "<simulated_fakes>"

    format: Literal["simulated_fakes"]
    kind: Literal["reborn", "smooth", "grid"]
    count: int = Field(ge=1)
    first: int = Field(0, ge=0)
    seed: int | None = Field(None, ge=0)
    """`training.seed` when left out."""
    size: int = Field(40, ge=8)


LabelledSource = Annotated[
    Annotated[ManifestSource, Tag("<manifest>")] | Annotated[SimulatedSource, Tag("<simulated>")],
    Discriminator(format_tag),
]
PhotographsSource = Annotated[
    Annotated[ManifestSource, Tag("<manifest>")]
    | Annotated[FolderSource, Tag("<folder>")]
    | Annotated[SimulatedSource, Tag("<simulated>")],
    Discriminator(format_tag),
]
GeneratedSource = Annotated[
    Annotated[FolderSource, Tag("<folder>")] | Annotated[FakesSource, Tag("<simulated_fakes>")],
    Discriminator(format_tag),
]
