"""`thurl afine-eval`: how well an A-FINE model agrees with people, on a data set in one of the released layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from thurl.cli.devices import usable_device
from thurl.cli.output import check_new, echo_json, number, table
from thurl.cli.progress import progress


__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command of this module to `app`."""
    app.command("afine-eval")(evaluate)


def evaluate(
    data: Annotated[
        list[str],
        typer.Argument(help="Files or folders of labels, together one set; for sriqa the root.", metavar="LABELS..."),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="Folder or Hub name of the model, afine.pth, or a folder of the stages' files."
        ),
    ],
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
    type: Annotated[str | None, typer.Option("--type", help="Of all triplets, where the file does not say.")] = None,
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
    scenes: Annotated[Path | None, typer.Option("--scenes", help="CSV of the results of each scene.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files that are written.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Share of pairs that an A-FINE model orders as people do, per type, with intervals; lower scores are better.

    Each image is scored once. An exact tie of two scores is wrong unless people tie, too.
    """
    from thurl.iqa.afine import load_afine
    from thurl.iqa.afine.evaluation import evaluate_tests, joined, predictor, scene_rows
    from thurl.iqa.afine.sources import load_pairs
    from thurl.iqa.afine.triplet_pictures import ComparisonPictures

    for option, path in (("--scores", scores), ("--scenes", scenes)):
        if path is not None:
            check_new(option, path, overwrite)
    parts = ("All", "Reg", "Gen") if part == "each" else (part,)
    tests = [
        load_pairs(
            format,
            labels,
            images=images,
            references=references,
            dataset=name if format == "sriqa" else None if len(data) == 1 else "all",
            layout=layout,
            type=type,
            split=split,
            reference_list=reference_list,
            part=name if format == "sriqa" else "All",
            seed=seed,
            check_images="none" if name in parts[1:] else "all",
        )
        for name in (parts if format == "sriqa" else parts[:1])
        for labels in data
    ]
    tests = joined(tests)
    judge = load_afine(model, device=usable_device(device))
    dataset = ComparisonPictures(pair for test in tests for pair in test.pairs())
    with progress("scored", len(dataset)) as advance:
        found = predictor(judge, batch_size=batch_size, progress=lambda n: [advance() for _ in range(n)])(dataset)
    results = evaluate_tests(tests, dataset.rows, found, delta=delta, intervals=intervals, seed=seed)
    if scores is not None:
        names = ("naturalness_dis_raw", "naturalness_dis", "fidelity_raw", "fidelity", "adapter_weight", "afine")
        columns = {name: found[name].tolist() for name in (*names, "afine_scaled")}
        rows = [
            {"image": image, "reference": reference, **{name: column[row] for name, column in columns.items()}}
            for row, (reference, image) in enumerate(dataset.pairs)
        ]
        _write_csv(scores, rows)
    if scenes is not None:
        _write_csv(scenes, [row for test in tests for row in scene_rows(test, dataset.rows, found, delta=delta)])
    if as_json:
        settings = {"model": model, "format": format, "labels": data, "delta": delta, "images": len(dataset)}
        echo_json({"settings": settings, "tests": results})
    else:
        _print(results)
    typer.echo(f"{len(dataset)} images scored once each; lower is better in every score", err=True)


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    import csv
    import io

    from thurl.training.results import write_atomically

    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        # An undefined number is an empty cell.
        writer.writerow({name: "" if value != value else value for name, value in row.items()})
    write_atomically(path, text.getvalue())


def _print(results: dict[str, Any]) -> None:
    for name, entry in results.items():
        accuracy = entry["accuracy"]
        first = next(iter(accuracy.values()))
        typer.echo(f"{name}: {entry['pairs']} pairs of {entry['scenes']} scenes")
        rows = [
            [key.replace("_", " "), *(number(accuracy[q][key]) for q in accuracy)]
            for key in first
            if key not in ("correct", "interval")
        ]
        if "interval" in first:
            bounds = (accuracy[q]["interval"] for q in accuracy)
            rows.append(["95 % interval", *(f"{number(low)} to {number(high)}" for low, high in bounds)])
        if "correlation" in entry:
            for metric, words in (("srcc", "SRCC"), ("plcc", "PLCC"), ("plcc_logistic", "PLCC after a logistic")):
                cells = (number(entry["correlation"][q][metric]) for q in accuracy)
                rows.append([f"{words}, mean of scenes", *cells])
        table(["accuracy", *accuracy], rows)
