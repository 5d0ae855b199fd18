"""Options of commands that read pictures with a trained model, and what stands behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thurl.messages import printable


if TYPE_CHECKING:
    from thurl.forensics.exif.inputs import Pictures

__all__ = [
    "PICTURES",
    "AllowOutside",
    "BatchSize",
    "Boxes",
    "Debug",
    "Device",
    "Images",
    "Json",
    "Model",
    "Overwrite",
    "Recursive",
    "Source",
    "Workers",
    "say_bad",
]

PICTURES = "Files, folders, patterns, .csv or .jsonl lists."

AllowOutside = Annotated[
    bool, typer.Option("--allow-outside", help="Accept paths in lists that lead out of their folder.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Pictures encoded together.")]
Boxes = Annotated[
    Path | None, typer.Option("--boxes", help="List with face boxes: image, left, top, right, bottom (.csv, .jsonl).")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: the first GPU.")]
Images = Annotated[
    Path | None, typer.Option("--images", "-i", help="Folder the paths of lists start from; default: the list's own.")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Model = Annotated[str, typer.Option("--model", "-m", help="Folder of the trained model, or its name on the Hub.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Also pictures in subfolders.")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Threads that decode pictures.")]

_SHOWN = 10


@dataclass(frozen=True)
class Source:
    """How the pictures of a command are found; see `thurl.forensics.exif.inputs.find_pictures`."""

    recursive: bool = False
    images: Path | None = None
    boxes: Path | None = None
    allow_outside: bool = False

    def find(self, inputs: Sequence[str | Path]) -> Pictures:
        """The pictures; says how many are without a face box where boxes were given."""
        from thurl.forensics.exif.inputs import find_pictures

        found = find_pictures(
            inputs,
            recursive=self.recursive,
            images=self.images,
            boxes=self.boxes,
            allow_outside=self.allow_outside,
        )
        without = sum(box is None for box in found.boxes)
        if self.boxes is not None and without:
            typer.echo(
                f"warning: {without} of {len(found)} pictures have no box in {self.boxes} and are used whole", err=True
            )
        return found


def say_bad(errors: Sequence[str]) -> None:
    """Name the pictures that could not be used: ten of them, and how many in all."""
    bad = [error for error in errors if error]
    for error in bad[:_SHOWN]:
        typer.echo(f"warning: {printable(error)}", err=True)
    if len(bad) > _SHOWN:
        typer.echo(
            f"warning: and {len(bad) - _SHOWN} more; {len(bad)} of {len(errors)} pictures are not used", err=True
        )
