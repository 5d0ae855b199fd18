"""What an editing run leaves for a person: a results file, a table on the console and a one-page report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from thurl.recipe.run_record import costs, logged_losses, print_table, say_where, write_run_results
from thurl.training.page import draw_curves, figure, number, section, text_table, write_page
from thurl.training.results import plain
from thurl.training.timing import phase_rows


__all__ = ["edit_rows", "run_record", "write_report"]

_TERMS = ("bce", "pseudo_kl_unedited", "pseudo_kl_edited", "label_density", "soft_density")
_TITLE = "Edits of failing pictures"
_SHOWN = ("SR", "GR", "LR_sensitive", "LR_right", "accuracy_drop", "ECE_rise", "steps")


def write_report(
    recipe: Any,
    trainer: Any,
    edits: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
    recipe_path: str,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Write what the recipe's `report` section asks for and print the table; on the main process.

    Returns:
        the record of this run, see `run_record`.
    """
    record, report = run_record(trainer, edits, seconds), recipe.report
    if report.results:
        write_run_results(report.results, recipe, record, recipe_path, overrides)
    rows = edit_rows(edits)
    if report.html:
        _write_html(recipe, trainer, rows, record)
    if rows:
        print_table(_TITLE, rows)
    say_where(report.html, report.results, recipe.training["output_dir"], output_is="Hypernetwork")
    return record


def run_record(trainer: Any, edits: Sequence[Mapping[str, Any]], seconds: Mapping[str, float]) -> dict[str, Any]:
    """One record of a results file: first and last value of each term, `edits` of `edit_failures`, and costs."""
    log = trainer.state.log_history
    terms = {}
    for name in _TERMS:
        values = [entry[f"terms/{name}"] for entry in log if f"terms/{name}" in entry]
        if values:
            terms[name] = {"first": values[0], "last": values[-1]}
    record = {
        "seed": trainer.args.seed,
        "steps": trainer.state.global_step,
        "base": trainer.model.config.base_fingerprint,
        "terms": terms,
        "edits": [dict(row) for row in edits],
        **logged_losses(log),
        **costs(seconds, trainer.timing),
    }
    return plain(record)


def edit_rows(edits: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Headings and one row per editor and setting; nothing without edits."""
    if not edits:
        return []
    shown = [name for name in _SHOWN if any(name in row for row in edits)]
    rows = [["editor", "setting", "edits", *shown]]
    for row in edits:
        rows.append(
            [row["editor"], row["setting"], str(row["edits"]), *(number(row.get(name, math.nan), 1) for name in shown)]
        )
    return rows


def _write_html(recipe: Any, trainer: Any, rows: Sequence[Sequence[str]], record: Mapping[str, Any]) -> None:
    log = trainer.state.log_history
    panels = {
        "Binary cross-entropy": {"before the updates": _points(log, "bce")},
        "Pseudo-failures: KL to the clean prediction": {
            "unedited": _points(log, "pseudo_kl_unedited"),
            "searched update": _points(log, "pseudo_kl_edited"),
        },
        "Density": {"labels": _points(log, "label_density"), "predicted": _points(log, "soft_density")},
    }
    sections = [section(_TITLE, text_table(rows, total=False) + _CAPTION)] if rows else []
    if any(steps for lines in panels.values() for steps, _ in lines.values()):
        sections.append(section("Meta-training", figure(draw_curves(panels), "Curves over iterations", _CURVES)))
    training, config = trainer.args, trainer.model.config
    notes = [
        f"Meta-training: {record['steps']} iterations of {training.per_device_train_batch_size} pictures, learning "
        f"rate {training.learning_rate:g}, {recipe.meta.updates} updates on each batch.",
        f"Units: {', '.join(config.units)}; {config.neurons} neurons each.",
    ]
    if recipe.model.digits is not None:
        notes.append("The classifier is tiny and reads digits: this shows that the method runs, and no more.")
    timing = trainer.timing
    write_page(
        recipe.report.html,
        title="Where to edit a vision transformer",
        summary=f"A hypernetwork for {config.base_model}, fingerprint {str(config.base_fingerprint)[:12]}.",
        facts=[(name.replace("_", " "), f"{ends['last']:.3f}") for name, ends in record["terms"].items()],
        sections=sections,
        timing=phase_rows(timing["seconds"], timing["steps"]) if timing else (),
        notes=notes,
    )


def _points(log: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    pairs = [(entry["step"], entry[f"terms/{name}"]) for entry in log if f"terms/{name}" in entry]
    return [step for step, _ in pairs], [value for _, value in pairs]


_CAPTION = (
    "<p class='caption'>In percent, means over groups of edits of one picture each. SR: the picture is right. GR: the "
    "other failures of its group that are right. LR: unrelated pictures whose answer stays, sensitive ones with a "
    "small margin, right ones of a validation set. Settings of masks are densities.</p>"
)
_CURVES = "Thin: every entry; thick: running mean (curves of more than 25 points)."
