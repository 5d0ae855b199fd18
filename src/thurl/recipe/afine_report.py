"""What an A-FINE run leaves for a person: a results file, a table on the console and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from thurl.iqa.afine.evaluation import SCORES
from thurl.recipe.run_record import print_table, say_where, write_run_results
from thurl.training.page import number, section, text_table, write_page
from thurl.training.results import plain


if TYPE_CHECKING:
    from thurl.recipe.afine import AFineRecipe
    from thurl.recipe.afine_data import AFineStudy
    from thurl.recipe.afine_run import AFineRun

__all__ = ["accuracies", "run_record", "write_report"]


def write_report(
    recipe: AFineRecipe,
    study: AFineStudy,
    main: AFineRun,
    control: AFineRun | None,
    recipe_path: str,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Write what the recipe's `report` section asks for and print the table; only the main process does.

    Returns:
        the record of this run, see `run_record`.
    """
    record = run_record(recipe, main, control)
    if not PartialState().is_main_process:
        return record
    if recipe.report.results:
        last = list(main.stages.values())[-1]
        write_run_results(
            recipe.report.results,
            recipe,
            record,
            recipe_path,
            overrides,
            tests=plain(last["tests"]),
            train={part.name: len(part.triplets) for part in study.train},
        )
    rows = _rows(record)
    if recipe.report.html:
        _write_html(recipe, study, record, rows)
    if len(rows) > 1:
        print_table("Pairs ordered as people order them, each image scored once", rows)
    say_where(recipe.report.html, recipe.report.results, recipe.training["output_dir"])
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


def _rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Headings, then a row per test set and score; a column per moment."""
    moments = [name for name in record if name == "before" or name.startswith(("after_", "control_"))]
    moments = [name for name in moments if record[name]]
    rows = [["test set and score", *(name.replace("_", " ") for name in moments)]]
    for test in record[moments[0]] if moments else ():
        for quantity in SCORES:
            values = [record[name].get(test, {}).get(quantity) for name in moments]
            cells = ["" if value is None else number(value) for value in values]
            rows.append([f"{test}, {quantity}", *cells])
    return rows


def _write_html(recipe: AFineRecipe, study: AFineStudy, record: Mapping[str, Any], rows: list[list[str]]) -> None:
    stages = [stage for stage in recipe.stages if stage in record]
    trained = [["stage", "steps", "last loss", "seconds"]]
    for stage in stages:
        entry = record[stage]
        loss = "" if entry["loss"] is None else number(entry["loss"], 4)
        trained.append([stage, str(entry["steps"]), loss, number(entry["seconds"], 0)])
    sections = [section("Training, stage after stage", text_table(trained, total=False))]
    if len(rows) > 1:
        sections.insert(0, section("Pairs ordered as people order them", text_table(rows, total=False) + _CAPTION))
    count = sum(len(part.triplets) for part in study.train)
    notes = ["Control: the same stages on labels turned round by a coin, which must learn nothing."]
    write_page(
        recipe.report.html or "",
        title="A-FINE: quality beside a reference that may be imperfect",
        summary=f"{count} triplets of {len(study.train)} data sets, trained in the stages {', '.join(stages)}.",
        facts=[(row[0], row[-1]) for row in _last_moment(rows)] + [("Time", f"{record['seconds']:.0f} s")],
        sections=sections,
        notes=notes if "seconds_control" in record else (),
    )


def _last_moment(rows: list[list[str]]) -> list[list[str]]:
    """The rows of the whole metric, up to the last column of the trained model."""
    if len(rows) < 2:
        return []
    last = max(place for place, name in enumerate(rows[0]) if not name.startswith("control"))
    return [row[: last + 1] for row in rows[1:] if row[0].endswith(", afine")]


_CAPTION = "<p class='caption'>Accuracy: share of pairs in the order of the opinions; 0.5 is chance.</p>"
