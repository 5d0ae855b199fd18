"""`thurl edit export | revert | merge`: what is done with the file of an edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thurl.cli.edit.options import (
    Classes,
    Debug,
    DeltaFile,
    Force,
    Json,
    Model,
    NewFolder,
    Overwrite,
    Template,
    open_classifier,
)
from thurl.cli.output import check_new, echo_json
from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.messages import printable


__all__ = ["export", "merge", "revert"]


def export(
    delta: DeltaFile,
    model: Model,
    output: NewFolder,
    classes: Classes = None,
    template: Template = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the edited model as a plain checkpoint, which transformers or timm load without thurl."""
    from thurl.editing.classifier_files import save_classifier
    from thurl.editing.delta import apply_delta
    from thurl.editing.delta_files import load_delta

    change = load_delta(delta)
    loaded = open_classifier(model, classes, template)
    apply_delta(loaded.classifier.model, change, force)
    save_classifier(loaded, output)
    found = loaded.classifier.fingerprint()
    if as_json:
        echo_json({"output": str(output), "base": change.base, "fingerprint": found})
        return
    typer.echo(f"written to {output}: {change.parameters} weights changed, fingerprint {found[:12]}")


def revert(
    delta: DeltaFile,
    model: Model,
    output: NewFolder,
    classes: Classes = None,
    template: Template = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Take an edit out of an edited checkpoint, bit by bit; later edits of the same neurons first."""
    from thurl.editing.classifier_files import save_classifier
    from thurl.editing.delta import revert_delta
    from thurl.editing.delta_files import load_delta

    change = load_delta(delta)
    loaded = open_classifier(model, classes, template)
    revert_delta(loaded.classifier.model, change)
    save_classifier(loaded, output)
    whole = loaded.classifier.fingerprint() == change.base
    if as_json:
        echo_json({"output": str(output), "base": change.base, "is_base": whole})
        return
    what = "the base model, bit by bit" if whole else "without this edit; it is not the base model: others are in it"
    typer.echo(f"written to {output}: {what}")


def merge(
    deltas: Annotated[list[Path], typer.Argument(help="Two or more edits of one base model.", metavar="EDIT...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File of the merged edit to write, .safetensors.")],
    overlap: Annotated[str, typer.Option("--overlap", help="Edits of the same neurons: refuse, or sum.")] = "refuse",
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make one edit of several, and say where they change the same neurons."""
    if len(deltas) < 2:
        raise UsageError(f"{len(deltas)} edit; give two or more to merge")
    check_new("--output", output, overwrite)
    from thurl.editing.delta_files import load_delta, save_delta
    from thurl.editing.merge import merge_deltas, overlaps

    loaded, problems = [], []
    for path in deltas:
        try:
            loaded.append(load_delta(path))
        except (DataError, MissingRequirementError) as error:
            problems.append(error)
    if problems:
        raise type(problems[0])("\n".join(map(str, problems)))
    conflicts = overlaps(loaded)
    if conflicts:
        for index, path in enumerate(deltas):
            typer.echo(f"edit {index}: {printable(str(path))}", err=True)
    merged = merge_deltas(loaded, overlap)
    save_delta(output, merged)
    if as_json:
        found = [
            {"unit": one.unit, "edits": [str(deltas[one.first]), str(deltas[one.second])],
             "neurons": list(one.neurons), "cosine": one.cosine}
            for one in conflicts
        ]  # fmt: skip
        echo_json({"output": str(output), "density": merged.density, "conflicts": found})
        return
    for conflict in conflicts:
        typer.echo(f"added up: {conflict}")
    typer.echo(f"written to {output}: {len(deltas)} edits, density {merged.density:.4g}, {len(conflicts)} conflicts")
