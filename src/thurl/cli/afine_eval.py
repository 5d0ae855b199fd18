"""`thurl afine-eval`: how well an A-FINE model agrees with people, on a data set in one of the released layouts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from thurl.cli.progress import progress


__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command of this module to `app`."""
    app.command("afine-eval")(evaluate)


def evaluate(
    data: Annotated[str, typer.Argument(help="File or folder of the labels; for sriqa the root.", metavar="LABELS")],
    model: Annotated[str, typer.Option("--model", "-m", help="Folder or Hub name of an A-FINE model.")],
    format: Annotated[
        str,
        typer.Option(
            "--format", "-f", help="triplets, diffiqa, sriqa, or rated images: kadid, tid2013, by_reference."
        ),
    ] = "triplets",
    images: Annotated[Path | None, typer.Option("--images", help="Folder of the pictures.")] = None,
    references: Annotated[
        Path | None, typer.Option("--references", help="Folder of the references of rated images.")
    ] = None,
    layout: Annotated[str, typer.Option("--layout", help="Of triplets: plain or diffiqa.")] = "plain",
    type: Annotated[str, typer.Option("--type", help="Of all triplets, where the file does not say.")] = "",
    part: Annotated[str, typer.Option("--part", help="Of sriqa: All, Reg, Gen, or each for all three.")] = "each",
    split: Annotated[
        str, typer.Option("--split", help="Of rated images, 7:1:2: train, validation, test, all.")
    ] = "all",
    reference_list: Annotated[
        Path | None, typer.Option("--reference-list", help="File with one reference per line, instead of --split.")
    ] = None,
    delta: Annotated[float, typer.Option("--delta", min=0, help="Scores as close as this are a tie.")] = 0.0,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images at a time.")] = 16,
    intervals: Annotated[int, typer.Option("--intervals", min=0, help="Resamples; 0: no intervals.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Of split, drawn pairs and resampling.")] = 0,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: the first GPU.")] = None,
    scores: Annotated[Path | None, typer.Option("--scores", help="CSV of the scores of each image.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Share of pairs that an A-FINE model orders as people do, per type, with intervals; lower scores are better.

    Each image is scored once. An exact tie of two scores is wrong unless people tie, too.
    """
    import torch

    from thurl.iqa.afine.evaluation import evaluate_tests, predictor
    from thurl.iqa.afine.triplet_pictures import ComparisonPictures
    from thurl.iqa.afine.sources import load_pairs
    from thurl.iqa.afine.stages import AFineStageModel

    parts = ("All", "Reg", "Gen") if part == "each" else (part,)
    tests = []
    for name in parts if format == "sriqa" else parts[:1]:
        tests.append(
            load_pairs(
                format,
                data,
                images=images,
                references=references,
                dataset=name if format == "sriqa" else None,
                layout=layout,
                type=type,
                split=split,
                reference_list=reference_list,
                part=name if format == "sriqa" else "All",
                seed=seed,
                check_images="all" if not tests else "none",
            )
        )
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    judge = _load(AFineStageModel, model).to(place)
    dataset = ComparisonPictures(pair for test in tests for pair in test.pairs())
    with progress("scored", len(dataset)) as advance:
        found = predictor(judge, batch_size=batch_size, progress=lambda n: [advance() for _ in range(n)])(dataset)
    table = evaluate_tests(tests, dataset.rows, found, delta=delta, intervals=intervals, seed=seed)
    if scores is not None:
        _write_scores(scores, dataset.pairs, found)
    if as_json:
        from thurl.training.results import plain

        settings = {"model": model, "format": format, "labels": data, "delta": delta, "images": len(dataset)}
        typer.echo(json.dumps({"settings": settings, "tests": plain(table)}, allow_nan=False))
    else:
        _print(table)
    typer.echo(f"{len(dataset)} images scored once each; lower is better in every score", err=True)


def _load(kind: Any, model: str) -> Any:
    from thurl.errors import MissingRequirementError

    try:
        return kind.from_pretrained(model)
    except OSError as error:
        message = str(error).splitlines()[0]
        raise MissingRequirementError(f"--model {model}: {message}; give the folder of an A-FINE model") from error


def _write_scores(path: Path, pairs: list[tuple[str, str]], found: dict[str, Any]) -> None:
    import csv
    import io

    from thurl.training.results import write_atomically

    names = ("naturalness_dis_raw", "naturalness_dis", "fidelity_raw", "fidelity", "adapter_weight", "afine")
    names += ("afine_scaled",)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "reference", *names])
    for row, (reference, image) in enumerate(pairs):
        writer.writerow([image, reference, *(f"{float(found[name][row]):.9g}" for name in names)])
    write_atomically(path, text.getvalue())


def _print(table: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120)
    for name, entry in table.items():
        shown = Table(title=f"{name}: {entry['pairs']} pairs of {entry['scenes']} scenes", title_justify="left")
        shown.add_column("accuracy")
        quantities = list(entry["accuracy"])
        for quantity in quantities:
            shown.add_column(quantity, justify="right")
        first = entry["accuracy"][quantities[0]]
        for row in [key for key in first if key not in ("correct", "interval")]:
            shown.add_row(row.replace("_", " "), *(_number(entry["accuracy"][q][row]) for q in quantities))
        if "interval" in first:
            cells = (entry["accuracy"][q]["interval"] for q in quantities)
            shown.add_row("95 % interval", *(f"{_number(low)} to {_number(high)}" for low, high in cells))
        for metric, words in (("srcc", "SRCC"), ("plcc", "PLCC"), ("plcc_logistic", "PLCC, logistic")):
            if "correlation" in entry:
                cells = (_number(entry["correlation"][q][metric]) for q in quantities)
                shown.add_row(f"{words}, mean of scenes", *cells)
        console.print(shown)


def _number(value: float) -> str:
    return f"{value:.3f}" if value == value else "undefined"
