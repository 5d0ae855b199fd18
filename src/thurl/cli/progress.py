"""Progress on standard error: a bar on a terminal, a line per tenth otherwise."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer


__all__ = ["progress"]


@contextmanager
def progress(verb: str, total: int | None) -> Iterator[Any]:
    """Yields a function that reports one more item done, or so many in all; a bar on a terminal, else a few lines.

    Where the total is known only on the way, it is None here and the function's second argument.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(verb, total=total)

            def advance(done: int | None = None, of: int | None = None) -> None:
                whole = {} if of is None else {"total": of}
                bar.update(task, **({"advance": 1} if done is None else {"completed": done}), **whole)

            yield advance
        return
    state = {"done": 0, "next": 0.1}

    def tell(done: int | None = None, of: int | None = None) -> None:
        whole = total if of is None else of
        state["done"] = state["done"] + 1 if done is None else done
        if whole and state["done"] / whole >= state["next"]:
            typer.echo(f"{verb} {int(state['done'])} of {whole}", err=True)
            state["next"] = math.floor(state["done"] / whole * 10 + 1) / 10

    yield tell
