"""`thurl exif ...`: from photographs to a detector of generated faces, and what it says about pictures."""

from __future__ import annotations

import typer

from thurl.cli.exif import data, detectors, measures, verdicts
from thurl.cli.exif.options import SeveralNumbers


__all__ = ["register"]

exif = typer.Typer(
    name="exif",
    help="Generated faces, found by what camera settings leave in pixels (arXiv 2501.02207, 2507.22824).",
    no_args_is_help=True,
)

exif.command("scan")(data.scan)
exif.command("import")(data.import_labels)
exif.command("convert")(data.convert)
exif.command("fit")(detectors.fit)
exif.command("calibrate", cls=SeveralNumbers)(detectors.calibrate)
exif.command("detect")(verdicts.detect)
exif.command("explain")(verdicts.explain)
exif.command("evaluate")(measures.evaluate)
exif.command("robustness")(measures.robustness)


def register(app: typer.Typer) -> None:
    """Add the commands of this area to `app`."""
    app.add_typer(exif, name="exif")
