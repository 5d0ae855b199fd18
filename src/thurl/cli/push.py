"""`thurl push`: what a run made, onto the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thurl.cli.output import echo_json
from thurl.messages import printable


__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command of this module to `app`."""
    app.command("push")(push)


def push(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Output folder of a run, a checkpoint, or a saved model, adapter, data set or sequence.",
            metavar="RUN_FOLDER",
        ),
    ],
    to: Annotated[str, typer.Option("--to", help="user/name; made if it is not there.")],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Who may see a new repository; default: the account's setting."),
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch; made if need be.")] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", help="Name on the Hub of the model that an adapter belongs to.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Push a model, adapter, distilled data set or sequence with its card to the Hugging Face Hub, in one commit.

    Checkpoints, logs, reports and prepared data stay here. Exit code 4 where the Hub or the way to it failed.
    """
    from thurl.hub.push import Destination, push_folder

    pushed = push_folder(folder, Destination(to, private, revision, base_model))
    if as_json:
        echo_json(
            {"url": pushed.url, "name": pushed.name, "type": pushed.repo_type, "commit": pushed.commit}
            | {"files": list(pushed.files)}
        )
        return
    typer.echo(f"{len(pushed.files)} files pushed to {printable(pushed.url)}")
