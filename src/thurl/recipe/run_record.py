"""What every recipe's report has: the results file (docs/run_report.md), the cost of a run in its record, the table on
the terminal, the closing lines."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from thurl.hub.secrets import texts_without_secrets
from thurl.training.results import plain, write_results


__all__ = [
    "costs",
    "learned_trajectory",
    "logged_losses",
    "logged_points",
    "print_table",
    "say_where",
    "write_run_results",
]

logger = logging.getLogger(__name__)


def write_run_results(
    path: str, recipe: Any, record: Mapping[str, Any], recipe_path: str, overrides: Sequence[str] = (), **more: Any
) -> dict[str, Any]:
    """Write the results file of a run: the keys that every method has, and `more` of its own.

    Args:
        path: `.json` file.
        recipe: the validated recipe; written as `method` and `settings`, what file and overrides said, which is a
            recipe again; secrets are hidden in it and in `overrides`.
        record: with `seed` and `seconds`.
        recipe_path, overrides: what was started.
        more: further entries of the method, JSON values.

    Returns:
        what was written.

    Raises:
        DataError: a record that breaks the rules of `thurl.training.results`.
    """
    return write_results(
        path,
        recipe=recipe_path,
        overrides=list(overrides),
        runs=[record],
        method=recipe.method,
        settings=texts_without_secrets(recipe.model_dump(mode="json", exclude_unset=True)),
        **plain(more),
    )


def costs(
    seconds: Mapping[str, float], timing: Mapping[str, Any] | None, control_seconds: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """`seconds`, `seconds_by_phase` and, where known, `seconds_per_step` and `seconds_control` of a record.

    Args:
        seconds: of each phase of the run, and `total`.
        timing: the trainer's, with `seconds_per_step` by phase of an optimizer step.
        control_seconds: of each phase of the control.
    """
    found: dict[str, Any] = {
        "seconds": seconds.get("total"),
        "seconds_by_phase": {name: value for name, value in seconds.items() if name != "total"},
    }
    if timing:
        found["seconds_per_step"] = timing["seconds_per_step"]
    if control_seconds is not None:
        found["seconds_control"] = sum(control_seconds.values())
    return found


def logged_losses(log: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """`loss_first` and `loss_last` of a trainer's log; None where nothing was logged."""
    losses = [entry["loss"] for entry in log if "loss" in entry]
    return {"loss_first": losses[0] if losses else None, "loss_last": losses[-1] if losses else None}


def learned_trajectory(log: Sequence[Mapping[str, Any]], loss: str) -> list[dict[str, float]]:
    """Step, learned weights and validation loss at each log entry that has one of them.

    Args:
        log: a trainer's.
        loss: name of the validation loss in it.
    """
    kept = []
    for entry in log:
        values = {name: entry[name] for name in entry if name.startswith("weights/") or name == loss}
        if values:
            kept.append({"step": entry["step"], **values})
    return kept


def logged_points(log: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one name in a trainer's log."""
    pairs = [(entry["step"], entry[key]) for entry in log if key in entry]
    return [step for step, _ in pairs], [value for _, value in pairs]


def print_table(title: str, rows: Sequence[Sequence[str]], *, bold_last: bool = False, total: bool = False) -> None:
    """Show rows of text on the terminal, the first as headings; cells are shown as they are, without markup.

    Args:
        bold_last: the last row stands out.
        total: a line is drawn above it, and it stands out.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for place, heading in enumerate(rows[0]):
        drawn.add_column(heading, justify="right" if place else "left")
    for row in rows[1:]:
        last = row is rows[-1]
        if total and last:
            drawn.add_section()
        drawn.add_row(*map(Text, row), style="bold" if last and (bold_last or total) else None)
    Console(width=None if sys.stdout.isatty() else 110).print(drawn)


def say_where(report: str | None, results: str | None, output: str, *, output_is: str = "Model") -> None:
    """Log where the page, the results file and the model are; what was not written is left out."""
    for name, path in (("Report", report), ("Results", results), (output_is, output)):
        if path:
            logger.info("%s: %s", name, path)
