"""The report of an edit on the terminal."""

from __future__ import annotations

from typing import Any

import typer

from thurl.cli.output import table
from thurl.messages import printable


__all__ = ["show_edit"]


def show_edit(document: dict[str, Any]) -> None:
    """Pictures before and after, neurons by unit, what else changed."""
    rows = [
        [
            printable(one["file"]),
            one["label"],
            f"{one['before']['class']} {one['before']['probability']:.3f}",
            f"{one['after']['class']} {one['after']['probability']:.3f}",
        ]
        for one in document["pictures"]
    ]
    table(["picture", "right", "before", "after"], rows)
    if document["already_right"]:
        typer.echo("already right: nothing to edit, the change is zero")
    else:
        table(
            ["unit", "neurons", "of", "relative change", "which"],
            [
                [one["unit"], len(one["neurons"]), one["of"], one["relative_change"],
                 ", ".join(map(str, one["neurons"][:8])) + (", ..." if len(one["neurons"]) > 8 else "")]
                for one in document["units"]
            ],
        )  # fmt: skip
        typer.echo(
            f"{document['steps']} steps, loss {document['loss'][0]:.4g} to {document['loss'][1]:.4g}, density "
            f"{document['density']:.4g} (sparsity {document['sparsity']:.4g})"
        )
    if locality := document.get("locality"):
        for one in locality["changed"][:20]:
            typer.echo(f"changed: {printable(one['file'])}: {one['before']} to {one['after']}")
        typer.echo(
            f"locality {locality['rate']:.4f}: {len(locality['changed'])} of {locality['pictures']} predictions "
            "changed"
        )
    if "output" in document:
        typer.echo(f"written to {printable(document['output'])}", err=True)
