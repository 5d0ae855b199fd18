"""`thurl edit ...`: a vision transformer is made right on a few failing pictures, reversibly."""

from __future__ import annotations

import typer

from thurl.cli.edit import benchmark, convert, deltas, manifest, run


__all__ = ["register"]

edit = typer.Typer(
    name="edit",
    help="Edit image classifiers: a failing picture and its right label in, a small reversible change out "
    "(arXiv 2411.01948).",
    no_args_is_help=True,
)

edit.command("run")(run.run)
edit.command("export")(deltas.export)
edit.command("revert")(deltas.revert)
edit.command("merge")(deltas.merge)
edit.command("convert")(convert.convert)
edit.command("manifest")(manifest.manifest)
edit.command("benchmark")(benchmark.benchmark)


def register(app: typer.Typer) -> None:
    """Add the commands of this area to `app`."""
    app.add_typer(edit)
