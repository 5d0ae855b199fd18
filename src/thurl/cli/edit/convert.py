"""`thurl edit convert`: checkpoints of the official code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thurl.cli.edit.options import Debug, NewFolder
from thurl.errors import UsageError
from thurl.messages import nearest


__all__ = ["convert"]


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="File of the official code: a classifier or a hypernetwork.")],
    output: NewFolder,
    kind: Annotated[str, typer.Option("--kind", help="vit or hypernetwork.")] = "vit",
    heads: Annotated[
        int | None,
        typer.Option("--heads", min=1, help="Attention heads; default 12, 6 of a hypernetwork."),
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="The model a hypernetwork was trained for.")] = None,
    debug: Debug = False,
) -> None:
    """Turn a checkpoint of the official code into a folder; nothing in it is executed."""
    if kind not in ("vit", "hypernetwork"):
        raise UsageError(f"--kind {kind!r}: must be vit or hypernetwork{nearest(kind, ('vit', 'hypernetwork'))}")
    if (kind == "hypernetwork") != (base is not None):
        raise UsageError("--base: a hypernetwork needs the model it was trained for, a classifier takes none")
    if kind == "vit":
        from thurl.editing.official import save_official_vit

        save_official_vit(checkpoint, output, heads or 12)
    else:
        from thurl.editing.classifier_files import load_classifier
        from thurl.editing.official_hypernetwork import convert_hypernetwork

        classifier = load_classifier(str(base)).classifier
        labels = [unit.label for unit in classifier.units]
        convert_hypernetwork(checkpoint, output, heads=heads or 6, base_fingerprint=classifier.fingerprint(),
                             base_model=base, units=labels)  # fmt: skip
    typer.echo(f"written to {output}")
