"""Options that several of the commands have, and what stands behind them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from thurl.cli.devices import usable_device
from thurl.cli.progress import progress
from thurl.errors import UsageError
from thurl.messages import printable


if TYPE_CHECKING:
    from thurl.forensics.exif.features import FeatureTable, FeatureTower
    from thurl.forensics.exif.inputs import Pictures

__all__ = [
    "PICTURES",
    "AllowOutside",
    "BatchSize",
    "Boxes",
    "Debug",
    "DetectorFile",
    "Device",
    "Images",
    "Json",
    "Model",
    "Overwrite",
    "Recursive",
    "SeveralNumbers",
    "Source",
    "Workers",
    "detector_path",
    "open_tower",
    "say_bad",
    "table_of",
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
DetectorFile = Annotated[
    Path | None,
    typer.Option("--detector", "-d", help="Detector file; default: detector.safetensors beside the model."),
]
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
_NUMBER = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


class SeveralNumbers(TyperCommand):
    """Lets `--fpr 0.01 0.05` mean `--fpr 0.01 --fpr 0.05`; a file whose name is a number needs `./` before it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spread: list[str] = []
        open_ended = False
        for word in args:
            if open_ended and spread[-1] != "--fpr" and _NUMBER.fullmatch(word):
                spread += ["--fpr", word]
                continue
            open_ended = word == "--fpr" or (open_ended and spread[-1] == "--fpr")
            spread.append(word)
        return super().parse_args(ctx, spread)


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


def detector_path(model: str, detector: Path | None) -> Path:
    """The detector file that was asked for, or the one beside the model.

    Raises:
        UsageError: neither.
    """
    if detector is not None:
        return detector
    beside = Path(model).expanduser() / "detector.safetensors"
    if not beside.is_file():
        raise UsageError(
            f"no detector: give --detector; {beside} would be the default and is not there. `thurl exif fit` makes one"
        )
    return beside


def open_tower(model: str, device: str | None, batch_size: int, workers: int) -> FeatureTower:
    """Encoder and image processor of a model."""
    from thurl.forensics.exif.loading import load_tower

    return load_tower(model, device=usable_device(device), batch_size=batch_size, workers=workers)


def table_of(tower: FeatureTower, pictures: Pictures, verb: str) -> FeatureTable:
    """Features with a progress bar; bad pictures are named on standard error."""
    from thurl.forensics.exif.features import extract_features

    with progress(verb, len(pictures)) as advance:
        found = extract_features(tower, pictures.paths, pictures.boxes, progress=advance)
    say_bad(found.errors)
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
