"""`thurl edit benchmark`: groups of failures out of a folder of classes, and editors compared on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thurl.cli.devices import usable_device
from thurl.cli.output import echo_json, table
from thurl.cli.progress import progress
from thurl.errors import DataError, UsageError
from thurl.messages import nearest


if TYPE_CHECKING:
    from thurl.editing.classifier_files import LoadedClassifier

__all__ = ["benchmark"]

EDITORS = ("grad", "random", "learned", "hybrid", "full")


def benchmark(
    pictures: Annotated[Path, typer.Argument(help="Folder of <class>/<picture>.")],
    model: Annotated[str, typer.Option("--model", "-m", help="The base model, as for `run`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for manifest, edits, averages and page.")],
    editor: Annotated[
        list[str] | None, typer.Option("--editor", help=f"Of {', '.join(EDITORS)}; again for more. grad and random.")
    ] = None,
    density: Annotated[
        list[float] | None, typer.Option("--density", help="Share of neurons; again for more: 0.05, 0.1, 0.25.")
    ] = None,
    hypernetwork: Annotated[Path | None, typer.Option("--hypernetwork", help="For learned and hybrid.")] = None,
    official_layout: Annotated[
        bool, typer.Option("--official-layout", help="Folders are named <class number>_<anything>.")
    ] = False,
    official_metrics: Annotated[bool, typer.Option("--official-metrics", help="Also show the released GR.")] = False,
    edits: Annotated[int, typer.Option("--edits", min=1, help="Pictures edited of each group at most.")] = 5,
    smallest: Annotated[int, typer.Option("--smallest", min=1, help="Failures a group needs.")] = 8,
    threshold: Annotated[float, typer.Option("--threshold", help="Margin of a picture that should stay.")] = 0.05,
    rate: Annotated[float, typer.Option("--rate", help="Learning rate.")] = 2e-5,
    max_steps: Annotated[int, typer.Option("--max-steps", help="Steps at most.")] = 100,
    classes: Annotated[Path | None, typer.Option("--classes", help="Names of the classes, one per line.")] = None,
    template: Annotated[str | None, typer.Option("--prompt-template", help="Of CLIP zero-shot.")] = None,
    skip_corrupt: Annotated[bool, typer.Option("--skip-corrupt", help="Leave out pictures that do not open.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of random masks and intervals.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pictures at a time.")] = 64,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda; default: the first GPU.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Find groups of failures of the model, edit their pictures one at a time, and see what else changes."""
    editors, densities = editor or ["grad", "random"], density or [0.05, 0.1, 0.25]
    _check(editors, hypernetwork, output)
    from thurl.cli.edit import names_of, source_of
    from thurl.editing.edit import EditSettings

    settings = EditSettings(rate=rate, max_steps=max_steps)

    from thurl.editing.benchmark_report import write_benchmark
    from thurl.editing.classifier_files import load_classifier
    from thurl.editing.evaluate import Evaluator
    from thurl.editing.groups import failure_groups, labelled_folder, official_folder, predict, sensitive
    from thurl.editing.manifest import Manifest, load_groups, load_pictures, write_manifest
    from thurl.editing.methods import EditMethod, FineTuning, MaskedEditing

    loaded = load_classifier(model, names_of(classes), template)
    where = usable_device(device)
    classifier = loaded.classifier.to(where)
    methods: dict[tuple[str, str], EditMethod] = {}
    for name in editors:
        if name == "full":
            methods[name, "all"] = FineTuning(settings)
            continue
        source = source_of(name, hypernetwork, None, seed, loaded, classifier, where, batch_size, False)
        for share in densities:
            methods[name, f"{share:g}"] = MaskedEditing(source, share, settings)
    labelled = (
        official_folder(pictures, classifier.classes)
        if official_layout
        else labelled_folder(pictures, _numbers(loaded))
    )

    def read(image: Any) -> Any:
        return loaded.preprocessing.scaled(loaded.preprocessing(image)[None])[0]

    corrupt = "skip" if skip_corrupt else "error"
    predicted = predict(classifier, labelled, pictures, read, batch_size=batch_size, on_corrupt=corrupt)
    made = {"model": model, "smallest": smallest, "threshold": threshold}
    groups = tuple(failure_groups(predicted, smallest))
    manifest = Manifest(classifier.fingerprint(), groups, tuple(sensitive(predicted, threshold=threshold)), made)
    write_manifest(output / "manifest.json", manifest)
    stay = load_pictures(manifest.locality, pictures, read).to(where)
    failures = load_groups(manifest, pictures, read)
    if where != "cpu":
        from dataclasses import replace

        failures = [replace(group, pixel_values=group.pixel_values.to(where)) for group in failures]
    evaluator = Evaluator(classifier, failures, {"sensitive": stay}, batch_size=batch_size)
    rows = {}
    with progress("edited with", len(methods)) as advance:
        for key, method in methods.items():
            rows[key] = evaluator.run(method, edits)
            advance()
    facts = [("groups", str(len(groups))), ("pictures to keep", str(len(stay))), ("model", model)]
    summary = write_benchmark(output, rows, locality="LR_sensitive", official=official_metrics, facts=facts)
    if as_json:
        echo_json({"output": str(output), "base": manifest.base, "groups": len(groups), **summary})
        return
    shown = ["SR", "GR", *(["GR_official"] if official_metrics else []), "LR_sensitive", "steps"]
    lines = [[one["method"], one["setting"], *(one[name]["mean"] for name in shown)] for one in summary["methods"]]
    table(["editor", "density", *shown], lines)
    typer.echo(f"{len(groups)} groups, {len(stay)} pictures to keep; written to {output}", err=True)


def _check(editors: list[str], hypernetwork: Path | None, output: Path) -> None:
    problems = [
        f"--editor {name!r}: must be one of {', '.join(EDITORS)}{nearest(name, EDITORS)}"
        for name in editors
        if name not in EDITORS
    ]
    if bool({"learned", "hybrid"} & set(editors)) != (hypernetwork is not None):
        problems.append("--hypernetwork goes with the editors learned and hybrid, and only with them")
    if len(set(editors)) < len(editors):
        problems.append("--editor: name each once")
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        problems.append(f"--output {output}: there is something already; choose another folder")
    if problems:
        raise UsageError(problems)


def _numbers(loaded: LoadedClassifier) -> dict[str, int]:
    """Class of a folder's name: the name of the class, or its number."""
    numbers = {str(index): index for index in range(loaded.classifier.classes)}
    if len(set(loaded.names)) < len(loaded.names):
        raise DataError("several classes of the model have one name; use --official-layout or --classes")
    return {**numbers, **{name: index for index, name in enumerate(loaded.names)}}
