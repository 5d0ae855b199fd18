"""Options that several of the commands have, and what stands behind them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thurl.errors import DataError, UsageError
from thurl.messages import nearest


if TYPE_CHECKING:
    from thurl.editing.classifier_files import LoadedClassifier
    from thurl.editing.units import Unit

__all__ = [
    "Classes",
    "Debug",
    "DeltaFile",
    "Device",
    "Force",
    "Json",
    "Layers",
    "MaxSteps",
    "Model",
    "NewFolder",
    "OfficialLayout",
    "Overwrite",
    "Rate",
    "SkipCorrupt",
    "StopLoss",
    "Template",
    "Units",
    "check_units",
    "layers_of",
    "names_of",
    "open_classifier",
    "units_of",
]

Classes = Annotated[
    Path | None, typer.Option("--classes", help="Text file with the name of one class per line; for CLIP zero-shot.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]
DeltaFile = Annotated[Path, typer.Argument(help="File of an edit, .safetensors.", metavar="EDIT")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda; default: the first GPU.")]
Force = Annotated[bool, typer.Option("--force", help="Also on another base model than it was made for.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Layers = Annotated[str | None, typer.Option("--layers", help="From 0, as 7,8,9; default: up to 3/4.")]
MaxSteps = Annotated[int, typer.Option("--max-steps", help="Steps at most.")]
Model = Annotated[
    str, typer.Option("--model", "-m", help="Folder of a ViT, DeiT, DINOv2, CLIP or timm classifier; or the Hub's.")
]
NewFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder for the model.")]
OfficialLayout = Annotated[
    bool, typer.Option("--official-layout", help="Folders are named <class number>_<anything>.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")]
Rate = Annotated[float, typer.Option("--rate", help="Learning rate.")]
SkipCorrupt = Annotated[bool, typer.Option("--skip-corrupt", help="Leave out pictures that do not open.")]
StopLoss = Annotated[float, typer.Option("--stop-loss", help="Cross-entropy in nats at which an edit ends.")]
Template = Annotated[
    str | None, typer.Option("--prompt-template", help="Of CLIP zero-shot; default 'a photo of a {}.'.")
]
Units = Annotated[str, typer.Option("--units", help="ffn or attention (output projections).")]

KINDS = ("ffn", "attention")


def names_of(path: Path | None) -> list[str]:
    """Names of classes from a text file, one per line; none without a file."""
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--classes {path}: cannot be read as text: {error}") from None
    return [line.strip() for line in lines if line.strip()]


def open_classifier(model: str, classes: Path | None, template: str | None) -> LoadedClassifier:
    """A classifier with its preprocessing and the names of its classes."""
    from thurl.editing.classifier_files import load_classifier

    return load_classifier(model, names_of(classes), template)


def layers_of(text: str | None) -> list[int] | None:
    """Numbers of layers from `--layers`; None where it is left out."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f"--layers {text!r}: must be numbers of layers from 0 with commas, such as 7,8,9")
    return [int(part) for part in parts]


def check_units(units: str) -> list[str]:
    """What is wrong with `--units`."""
    return [] if units in KINDS else [f"--units {units!r}: must be ffn or attention{nearest(units, KINDS)}"]


def units_of(loaded: LoadedClassifier, layers: list[int] | None, units: str) -> list[Unit]:
    """What `--layers` and `--units` mean for a model."""
    from thurl.editing.units import default_layers, resolve_attention_outputs, resolve_ffn

    model = loaded.classifier.model
    resolve = resolve_ffn if units == "ffn" else resolve_attention_outputs
    return resolve(model, default_layers(model) if layers is None else layers)
