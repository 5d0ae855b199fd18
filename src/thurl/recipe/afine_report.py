"""What an A-FINE run leaves for a person: a results file and a table on the console."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from thurl.iqa.afine.evaluation import SCORES
from thurl.training.results import plain, write_results


if TYPE_CHECKING:
    from thurl.recipe.afine import AFineRecipe
    from thurl.recipe.afine_data import AFineStudy
    from thurl.recipe.afine_run import AFineRun

__all__ = ["accuracies", "run_record", "write_report"]

logger = logging.getLogger(__name__)


def write_report(
    recipe: AFineRecipe,
    study: AFineStudy,
    main: AFineRun,
    control: AFineRun | None,
    recipe_path: str,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the results file and print the table; only the main process does.

    Returns:
        the record of this run, see `run_record`.
    """
    record = run_record(recipe, main, control)
    if not PartialState().is_main_process:
        return record
    if recipe.report.results:
        last = list(main.stages.values())[-1]
        write_results(
            recipe.report.results,
            recipe=recipe_path,
            overrides=list(overrides),
            runs=[record],
            tests=plain(last["tests"]),
            train={part.name: len(part.triplets) for part in study.train},
        )
        logger.info("Results: %s", recipe.report.results)
    _print_table(record)
    logger.info("Model: %s", recipe.training["output_dir"])
    return record


def run_record(recipe: AFineRecipe, main: AFineRun, control: AFineRun | None) -> dict[str, Any]:
    """One record of a results file.

    `before`, `after_<stage>` and `control_<stage>` hold accuracy by test set and quantity, `<stage>` its steps,
    seconds and last loss, `calibration` the start of the naturalness map.
    """
    record: dict[str, Any] = {"seed": int(recipe.training.get("seed", 42))}
    if main.before is not None:
        record["before"] = accuracies(main.before)
    for stage, entry in main.stages.items():
        record[f"after_{stage}"] = accuracies(entry["tests"])
        record[stage] = {name: entry[name] for name in ("steps", "seconds", "loss")}
        if "calibration" in entry:
            record["calibration"] = entry["calibration"]
    if control is not None:
        for stage, entry in control.stages.items():
            record[f"control_{stage}"] = accuracies(entry["tests"])
        record["seconds_control"] = control.seconds
    record["seconds"] = main.seconds
    return plain(record)


def accuracies(tests: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Pairwise accuracy by test set and quantity, of the results of `evaluate_tests`."""
    return {
        name: {quantity: entry["accuracy"][quantity]["all"] for quantity in SCORES} for name, entry in tests.items()
    }


def _print_table(record: Mapping[str, Any]) -> None:
    columns = [name for name in record if name == "before" or name.startswith(("after_", "control_"))]
    if not any(record[name] for name in columns):
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Pairs ordered as people order them, each image scored once")
    table.add_column("test set")
    table.add_column("score")
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    sets = next(record[name] for name in columns if record[name])
    for test in sets:
        for quantity in SCORES:
            cells = [record[name].get(test, {}).get(quantity) for name in columns]
            table.add_row(test, quantity, *("" if cell is None else f"{cell:.3f}" for cell in cells))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print()
    console.print(table)
