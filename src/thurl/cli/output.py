"""What commands print: JSON without NaN, tables that a pipe gets whole, files that are not written over by mistake."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from thurl.errors import UsageError


__all__ = ["check_new", "check_plot", "echo_json", "finish_document", "jsonable", "number", "table"]


def echo_json(document: Any) -> None:
    """One line of JSON on standard output; NaN and infinities become null: undefined, never a number."""
    typer.echo(json.dumps(jsonable(document), ensure_ascii=True, allow_nan=False))


def finish_document(document: dict[str, Any], output: Path | None, as_json: bool) -> None:
    """Write a result with command and environment to `output`, and print it with `as_json`."""
    if output is not None:
        from thurl.training.results import environment, write_atomically

        whole = jsonable({"command": sys.argv[1:], "environment": environment(), **document})
        write_atomically(output, json.dumps(whole, indent=2, ensure_ascii=True, allow_nan=False) + "\n")
        typer.echo(f"written to {output}", err=True)
    if as_json:
        echo_json(document)


def number(value: Any) -> str:
    """Four digits of a decimal number, "-" for an undefined one, other values as they are."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if math.isfinite(value) else "-"


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns on standard output, numbers to the right. Lines are never folded: programs read them, too."""
    cells = [[number(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(headings), *cells]) for i in range(len(headings))]
    right = [bool(rows) and not any(isinstance(row[i], str) for row in rows) for i in range(len(headings))]
    for line in [list(headings), *cells]:
        parts = [
            cell.rjust(width) if flag else cell.ljust(width)
            for cell, width, flag in zip(line, widths, right, strict=True)
        ]
        typer.echo("  ".join(parts).rstrip())


def check_new(option: str, path: Path, overwrite: bool) -> None:
    """Refuse to write over a file unless asked to.

    Raises:
        UsageError: the file is there, or a folder of its name.
    """
    if path.is_dir():
        raise UsageError(f"{option} {path}: this is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise UsageError(f"{option} {path}: there is such a file; choose another name, or --overwrite to replace it")


def check_plot(plot: Path | None) -> None:
    """Refuse an ending that is no picture.

    Raises:
        UsageError: another ending than .png, .svg or .pdf.
    """
    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--plot {plot}: the name must end in .png, .svg or .pdf")


def jsonable(value: Any) -> Any:
    """A copy for JSON: NaN and infinities become None."""
    if isinstance(value, dict):
        return {key: jsonable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
