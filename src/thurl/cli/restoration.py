"""`thurl restore`: a trained model restores picture files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from thurl.cli.progress import progress
from thurl.errors import DataError
from thurl.messages import printable


__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command of this module to `app`."""
    app.command("restore")(restore)


def restore(
    inputs: Annotated[Path, typer.Argument(help="Picture file or folder.", metavar="IN")],
    out: Annotated[Path, typer.Argument(help="Folder for the restored pictures (PNG).", metavar="OUT")],
    model: Annotated[str, typer.Option("--model", "-m", help="Folder of a face_restoration run, or Hub name.")],
    size: Annotated[
        int | None,
        typer.Option("--size", min=0, help="Resize to such a square first; 0: keep the size. Default: as trained."),
    ] = None,
    scale: Annotated[float, typer.Option("--scale", help="Enlarge by this factor before restoring.")] = 1.0,
    tile: Annotated[int, typer.Option("--tile", min=1, help="Larger pictures are restored in such tiles.")] = 1024,
    overlap: Annotated[int, typer.Option("--overlap", min=0, help="Of the tiles, in pixels.")] = 64,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Tiles restored together.")] = 1,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Also pictures in subfolders.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write pictures that are there already anew.")
    ] = False,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: the first GPU.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per picture on standard output.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Restore pictures: blur, noise and JPEG artefacts are taken out as far as the model has learned it.

    Pictures that cannot be read are reported, do not stop the run, and make it end with exit code 1.
    """
    from thurl.rl.score_files import find_images

    paths = find_images([inputs], recursive=recursive)

    from thurl.restoration.restorer import Restorer, check_options, plan_outputs, restore_files

    options = {"size": size, "scale": scale, "tile": tile, "overlap": overlap, "batch_size": batch_size}
    check_options(**options)
    planned = plan_outputs(paths, inputs if inputs.is_dir() else None, out)
    restorer = Restorer.from_pretrained(model, device)
    done = skipped = failed = 0
    with progress("restored", len(planned)) as advance:
        for line in restore_files(restorer, planned, overwrite=overwrite, **options):
            done, skipped, failed = (
                done + (line.ok and not line.skipped),
                skipped + line.skipped,
                failed + (not line.ok),
            )
            if as_json:
                typer.echo(json.dumps(line.row(), ensure_ascii=True))
            if not line.ok:
                typer.echo(f"warning: {printable(line.image)}: {printable(line.error)}", err=True)
            advance()
    parts = [f"{done} of {len(planned)} pictures restored into {printable(str(out))}"]
    parts += [f"{skipped} were there already (--overwrite writes them anew)"] if skipped else []
    typer.echo("; ".join(parts), err=True)
    if failed:
        raise DataError(f"{failed} of {len(planned)} pictures could not be restored; the reasons stand above")
