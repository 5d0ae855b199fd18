"""`thurl edit benchmark`: editors compared on groups of failures, of a manifest or found in a folder of classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thurl.cli.devices import usable_device
from thurl.cli.edit.manifest import Builder, classes_of_folders
from thurl.cli.edit.masks import learned_mask
from thurl.cli.edit.options import (
    Classes,
    Debug,
    Device,
    Json,
    Layers,
    MaxSteps,
    Model,
    OfficialLayout,
    Rate,
    SkipCorrupt,
    StopLoss,
    Template,
    Units,
    check_units,
    layers_of,
    open_classifier,
    units_of,
)
from thurl.cli.output import echo_json, table
from thurl.cli.progress import progress
from thurl.errors import UsageError


if TYPE_CHECKING:
    import torch

    from thurl.editing.classifier_files import LoadedClassifier

__all__ = ["benchmark"]


def benchmark(
    pictures: Annotated[
        Path, typer.Argument(help="Folder of <class>/<picture>; with --manifest, where its paths start.")
    ],
    model: Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="New folder for manifest, edits, averages, plots and page.")
    ],
    from_manifest: Annotated[
        Path | None, typer.Option("--manifest", help="Of `thurl edit manifest`, in place of a search for failures.")
    ] = None,
    editor: Annotated[
        list[str] | None,
        typer.Option(
            "--editor",
            help="grad, random, learned, hybrid, mean (masks), full, l1, l2 (fine-tuning), lora, neurons (T-Patcher); "
            "again for more. grad and random.",
        ),
    ] = None,
    density: Annotated[
        list[float] | None, typer.Option("--density", help="Of masks; again for more. 0.05, 0.1, 0.25.")
    ] = None,
    strength: Annotated[
        list[float] | None, typer.Option("--strength", help="Of l1 and l2; again for more. 0.001, 0.01, 0.1.")
    ] = None,
    rank: Annotated[list[int] | None, typer.Option("--rank", help="Of lora; again for more. 4.")] = None,
    hypernetwork: Annotated[Path | None, typer.Option("--hypernetwork", help="For learned, hybrid and mean.")] = None,
    validation: Annotated[
        Path | None, typer.Option("--validation", help="Folder of <class>/<picture> for accuracy and calibration.")
    ] = None,
    layer_search: Annotated[
        int, typer.Option("--layer-search", min=0, help="Fine-tune every window of layers, so many of each group.")
    ] = 0,
    layer_width: Annotated[int, typer.Option("--layer-width", min=1, help="Layers of a window.")] = 3,
    layers: Layers = None,
    units: Units = "ffn",
    official_layout: OfficialLayout = False,
    official_metrics: Annotated[bool, typer.Option("--official-metrics", help="Also show the released GR.")] = False,
    edits: Annotated[int, typer.Option("--edits", min=1, help="Pictures edited of each group at most.")] = 5,
    smallest: Annotated[int | None, typer.Option("--smallest", min=1, help="Failures a group needs, 8.")] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Margin of a right picture that should stay, 0.05.")
    ] = None,
    rate: Rate = 2e-5,
    low_rank_rate: Annotated[float | None, typer.Option("--lora-rate", help="Of lora; four times --rate.")] = None,
    neuron_rate: Annotated[float, typer.Option("--neuron-rate", help="Of neurons, with Adam.")] = 0.01,
    max_steps: MaxSteps = 100,
    stop_loss: StopLoss = 0.01,
    classes: Classes = None,
    template: Template = None,
    skip_corrupt: SkipCorrupt = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of random masks, others for each picture.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pictures at a time.")] = 64,
    device: Device = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Edit failing pictures one at a time, each from the base model, and see what else changes."""
    problems = check_units(units)
    building = {"--smallest": smallest, "--threshold": threshold, "--official-layout": official_layout or None,
                "--skip-corrupt": skip_corrupt or None}  # fmt: skip
    if from_manifest is not None and (given := [name for name, value in building.items() if value is not None]):
        problems.append(f"{', '.join(given)}: is for a search of failures; a manifest names them. Leave it out")
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        problems.append(f"--output {output}: there is something already; choose another folder")
    chosen = layers_of(layers)
    from thurl.editing.comparison import LEARNED, Comparison
    from thurl.editing.edit import EditSettings

    try:
        settings = EditSettings(rate=rate, max_steps=max_steps, stop_loss=stop_loss)
        plan = Comparison(
            tuple(editor or ("grad", "random")), settings, tuple(density or (0.05, 0.1, 0.25)),
            tuple(strength or (0.001, 0.01, 0.1)), tuple(rank or (4,)), low_rank_rate, neuron_rate, seed,
        )  # fmt: skip
        if plan.needs_hypernetwork != (hypernetwork is not None):
            problems.append(f"--hypernetwork goes with the editors {', '.join(LEARNED)}, and only with them")
    except UsageError as error:
        problems += error.problems
    if problems:
        raise UsageError(problems)

    from thurl.editing.benchmark_report import write_benchmark
    from thurl.editing.evaluate import Evaluator
    from thurl.editing.layer_search import search_layers
    from thurl.editing.manifest import load_benchmark, read_manifest, write_manifest
    from thurl.editing.methods import FineTuning

    loaded = open_classifier(model, classes, template)
    where = usable_device(device)
    classifier = loaded.classifier.to(where).with_units(units_of(loaded, chosen, units))
    learned = None if hypernetwork is None else learned_mask(hypernetwork, classifier, where, False)
    if from_manifest is None:
        builder = Builder(official_layout, None, smallest or 8, 0.05 if threshold is None else threshold,
                          skip_corrupt=skip_corrupt, batch_size=batch_size)  # fmt: skip
        made = builder.build(loaded, model, pictures, where)
    else:
        made = read_manifest(from_manifest)
    failures, stay = load_benchmark(made, classifier, pictures, loaded.read)
    checked = None if validation is None else _labelled(loaded, validation, where)
    evaluator = Evaluator(classifier, failures, {"sensitive": stay}, checked, batch_size)
    runs = plan.runs(learned)
    rows = {}
    with progress("edited with", len(runs)) as advance:
        for key, run in runs.items():
            rows[key] = run(evaluator, edits)
            advance()
    windows = []
    if layer_search:
        windows = search_layers(classifier, failures, stay, FineTuning(settings, plan.together), edits=layer_search,
                                width=layer_width, batch_size=batch_size)  # fmt: skip
    write_manifest(output / "manifest.json", made)
    facts = [("groups", str(len(failures))), ("pictures to keep", str(len(stay))), ("model", model)]
    summary = write_benchmark(output, rows, locality="LR_sensitive", official=official_metrics, facts=facts,
                              layers=windows)  # fmt: skip
    if as_json:
        echo_json({"output": str(output), "base": made.base, "groups": len(failures), **summary})
        return
    _show(summary, official_metrics)
    typer.echo(f"{len(failures)} groups, {len(stay)} pictures to keep; written to {output}", err=True)


def _labelled(loaded: LoadedClassifier, folder: Path, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures and classes of a folder of classes."""
    import torch

    from thurl.editing.edit_inputs import read_pictures
    from thurl.editing.groups import labelled_folder

    found = labelled_folder(folder, classes_of_folders(loaded))
    pixels = read_pictures([folder / one.file for one in found], loaded.preprocessing)
    values = loaded.preprocessing.scaled(torch.stack(pixels)).to(device)
    return values, torch.tensor([one.true for one in found])


def _show(summary: dict[str, Any], official: bool) -> None:
    shown = ["SR", "GR", *(["GR_official"] if official else []), "LR_sensitive"]
    shown += [name for name in ("accuracy_drop", "ECE_rise", "steps") if name in summary["methods"][0]]
    lines = [[one["method"], one["setting"], *(one[name]["mean"] for name in shown)] for one in summary["methods"]]
    table(["editor", "setting", *shown], lines)
    if "layers" in summary:
        rates = ["SR", "GR", "LR_unrelated"]
        windows = [
            [one["window"], "yes" if one["on_front"] else "", *(one[name]["mean"] for name in rates)]
            for one in summary["layers"]
        ]
        table(["layers", "on the front", *rates], windows)
