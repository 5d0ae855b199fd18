"""The `thurl` command. Every heavy import happens inside the command that needs it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from thurl.errors import ThurlError
from thurl.hub.secrets import hide_secrets, without_secrets
from thurl.version import __version__


__all__ = ["app", "main"]


class _Group(TyperGroup):
    """Ends with the exit code of a `ThurlError` and its messages; the traceback only with `--debug`."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ThurlError as error:
            # Commands have a --debug of their own, which this context does not see.
            if ctx.params.get("debug") or "--debug" in sys.argv:
                typer.echo(without_secrets("".join(traceback.format_exception(error))), err=True, nl=False)
            for line in getattr(error, "problems", [str(error)]):
                typer.echo(f"error: {without_secrets(line)}", err=True)
            raise typer.Exit(error.exit_code) from None


app = typer.Typer(
    cls=_Group,
    name="thurl",
    help="Train, score and evaluate vision-language models that rank image quality.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"thurl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _register_commands() -> None:
    from thurl.cli.recipes import register

    register(app)
    # Areas that may be absent from a stripped-down installation; each registers its own commands.
    areas = (
        "afine",
        "afine_eval",
        "cldyb",
        "coto",
        "deepfake",
        "distill",
        "edit",
        "exif",
        "faces",
        "plan",
        "push",
        "quality",
        "restoration",
    )
    for module in (f"thurl.cli.{area}" for area in areas):
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module).register(app)


def main() -> None:
    """Entry point of the `thurl` command."""
    hide_secrets()
    app()


_register_commands()
