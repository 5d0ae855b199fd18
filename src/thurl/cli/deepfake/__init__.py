"""`thurl deepfake ...`: faces with labels, forgeries made of them, and what a trained model says about pictures."""

from __future__ import annotations

import typer

from thurl.cli.deepfake import crop, data, measures, verdicts


__all__ = ["register"]

deepfake = typer.Typer(
    name="deepfake",
    help="Forged faces, and what was altered in them (arXiv 2408.16305).",
    no_args_is_help=True,
)

deepfake.command("import")(data.import_faces)
deepfake.command("crop")(crop.crop)
deepfake.command("expand")(data.expand)
deepfake.command("convert")(data.convert)
deepfake.command("predict")(verdicts.predict)
deepfake.command("evaluate")(measures.evaluate)


def register(app: typer.Typer) -> None:
    """Add the commands of this area to `app`."""
    app.add_typer(deepfake, name="deepfake")
