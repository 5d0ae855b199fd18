"""Options that several of the commands have, and what stands behind them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from thurl.cli.devices import usable_device
from thurl.cli.picture_options import say_bad
from thurl.cli.progress import progress
from thurl.errors import UsageError


if TYPE_CHECKING:
    from thurl.forensics.exif.features import FeatureTable, FeatureTower
    from thurl.forensics.exif.inputs import Pictures

__all__ = [
    "DetectorFile",
    "SeveralNumbers",
    "detector_path",
    "open_tower",
    "table_of",
]

DetectorFile = Annotated[
    Path | None,
    typer.Option("--detector", "-d", help="Detector file; default: detector.safetensors beside the model."),
]

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
