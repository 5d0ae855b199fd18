"""`thurl afine REF DIST` and `thurl afine convert`: A-FINE scores of picture files."""

from __future__ import annotations

import csv as csv_module
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from thurl.cli.devices import usable_device
from thurl.cli.output import check_new, echo_json, number, table
from thurl.cli.progress import progress
from thurl.errors import DataError, UsageError


if TYPE_CHECKING:
    from thurl.iqa.afine import AFineRow

__all__ = ["register"]

DIRECTION = "lower is better in every score"


class Match(StrEnum):
    """How the reference of a picture is found in a folder."""

    name = "name"
    prefix = "prefix"


class _Group(TyperGroup):
    """`thurl afine REF DIST` is short for `thurl afine score REF DIST`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        asks_for_help = bool(args) and args[0] in ctx.help_option_names
        if args and args[0] not in self.commands and not asks_for_help:
            args = ["score", *args]
        return super().parse_args(ctx, args)


afine = typer.Typer(
    cls=_Group,
    name="afine",
    help="A-FINE: how good a picture is against a reference that need not be perfect (arXiv 2503.11221). "
    "`thurl afine REF DIST` scores; a picture called like a command is written ./convert.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.add_typer(afine)


@afine.command("score")
def score(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="REF and DIST: a picture or folder of references, and one to judge. With --no-reference: "
            "pictures and folders to judge.",
            metavar="REF DIST",
        ),
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Folder of the model, afine.pth, or a folder of the stages' files.")
    ],
    no_reference: Annotated[
        bool, typer.Option("--no-reference", "--nr", help="Naturalness alone, without references.")
    ] = False,
    match: Annotated[
        Match, typer.Option("--match", help="References by the same name, or by how a picture's name begins.")
    ] = Match.name,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Also pictures in subfolders.")] = False,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write all components into this file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the CSV file if it is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per picture on standard output.")] = False,
    ignore_orientation: Annotated[
        bool, typer.Option("--ignore-orientation", help="Take pixels as the camera stored them, as the official code.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Pictures opened together.")] = 8,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: the first GPU.")] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the tower: float32, bfloat16 or float16.")] = "float32",
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Score pictures; lower is better in every score.

    Reports D_s in [0, 100] with D, fidelity F, naturalness N of both pictures and the weight lambda. Transparency is
    composited on white, 16 bits become 8, EXIF orientation is applied. Pictures that cannot be opened, have no
    reference or another size than it are reported and do not stop the run; exit code 1 when none got a score.
    """
    _check(paths, no_reference, csv, overwrite, dtype)
    from thurl.iqa.afine import pair_files

    ref, dis = (None, paths) if no_reference else (paths[0], paths[1:])
    pairs, unused = pair_files(ref, dis, recursive=recursive, match=match.value)

    import torch

    from thurl.iqa.afine import load_afine, score_pairs

    loaded = load_afine(model, device=usable_device(device), dtype=getattr(torch, dtype))
    _check_trained(loaded.config.untrained, no_reference)
    failed = doubtful = 0
    shown: list[AFineRow] = []
    with progress("scored", len(pairs)) as advance, _csv_file(csv) as write:
        for row in score_pairs(loaded, pairs, batch_size=batch_size, upright=not ignore_orientation):
            failed += not row.ok
            doubtful += row.past_turning_point
            write(row)
            if as_json:
                echo_json({**row.row(), "lower_better": True})
            elif csv is None:
                shown.append(row)
            if not row.ok:
                # What is wrong with a file names it already.
                where = "" if row.error.startswith(row.dis) else f"{row.dis}: "
                typer.echo(f"warning: {_printable(where + row.error)}", err=True)
            advance()
    if shown:
        _show(shown, no_reference)
    if unused:
        typer.echo(f"{len(unused)} references without a picture, such as {_printable(unused[0])}", err=True)
    if doubtful:
        typer.echo(
            f"{doubtful} pictures past the turning point of the adapter: both pictures are poor, D is not to be "
            "trusted there; compare the components",
            err=True,
        )
    parts = [f"{len(pairs) - failed} of {len(pairs)} pictures scored", DIRECTION]
    typer.echo("; ".join([*parts, *([f"written to {csv}"] if csv else [])]), err=True)
    if failed == len(pairs):
        raise DataError(f"none of the {failed} pictures got a score; the reasons stand above")


@afine.command("convert")
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="afine.pth, or a folder of the stages' files.")],
    output: Annotated[Path, typer.Argument(help="Folder for the model.")],
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Parts of later training stages may be missing: to go on training.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Turn a released checkpoint into a folder of this package, with a strict account of its keys.

    The text tower is left out, which halves the file. Nothing in the checkpoint is executed.
    """
    from thurl.iqa.afine import convert_checkpoint

    converted = convert_checkpoint(checkpoint, output, allow_missing=allow_missing)
    untrained = list(converted.model.config.untrained)
    if as_json:
        echo_json({"output": str(output), "numbers": converted.numbers, "untrained": untrained,
                   "ignored": converted.ignored})  # fmt: skip
        return
    for name, value in converted.numbers.items():
        typer.echo(f"{name}  {value:.6g}")
    typer.echo(f"{len(converted.ignored)} tensors that the method does not use left out", err=True)
    if untrained:
        typer.echo(f"not in the checkpoint, at their starting values: {', '.join(untrained)}", err=True)
    typer.echo(f"written to {output}", err=True)


def _check(paths: list[Path], no_reference: bool, csv: Path | None, overwrite: bool, dtype: str) -> None:
    problems = []
    if not no_reference and len(paths) != 2:
        problems.append(
            f"{len(paths)} paths: give REF and DIST, in this order, or --no-reference with the pictures to judge"
        )
    if dtype not in ("float32", "bfloat16", "float16"):
        problems.append(f"--dtype is {dtype!r}: choose one of float32, bfloat16, float16")
    if csv is not None:
        try:
            check_new("--csv", csv, overwrite)
        except UsageError as error:
            problems += error.problems
    if problems:
        raise UsageError(problems)


def _check_trained(untrained: list[str], no_reference: bool) -> None:
    from thurl.iqa.afine.metric import VARIANTS

    needed = VARIANTS["afine_nr" if no_reference else "afine"].parts
    if lacking := [part for part in untrained if part in needed]:
        raise DataError(
            f"the model's {', '.join(lacking)} were not in its checkpoint: scores would mean nothing. Convert the "
            "whole release, or train these parts"
        )


@contextmanager
def _csv_file(path: Path | None) -> Iterator[Any]:
    """A function that writes one row, at once, so that what an interrupted run has scored is there."""
    if path is None:
        yield lambda row: None
        return
    from thurl.iqa.afine.files import COLUMNS

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="", buffering=1) as file:
        writer = csv_module.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)

        def write(row: AFineRow) -> None:
            values = row.row()
            writer.writerow(["" if values[name] is None else values[name] for name in COLUMNS])

        yield write


def _show(rows: list[AFineRow], no_reference: bool) -> None:
    if no_reference:
        table(["naturalness", "picture"], [[row.naturalness_dis, _printable(row.dis)] for row in rows])
        return
    headings = ["D_s", "D", "fidelity", "naturalness", "of reference", "lambda", "", "picture"]
    table(
        headings,
        [
            [
                *(number(value) for value in (row.afine_scaled, row.afine, row.fidelity, row.naturalness_dis,
                                              row.naturalness_ref, row.adapter_weight)),
                "?" if row.past_turning_point else "",
                _printable(row.dis),
            ]
            for row in rows
        ],
    )  # fmt: skip


def _printable(text: str) -> str:
    from thurl.messages import printable

    return printable(text.encode("utf-8", "backslashreplace").decode())
