"""What a restoration run leaves for a person: a results file, a table on the console and a one-page report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from thurl.recipe.run_record import costs, logged_losses, logged_points, print_table, say_where, write_run_results
from thurl.training.evaluation import EvaluationResults
from thurl.training.picture_page import PictureRow, write_picture_page
from thurl.training.timing import phase_rows


if TYPE_CHECKING:
    from thurl.recipe.face_restoration_run import Study

__all__ = ["RestorationRun", "run_record", "table", "verdict", "write_report"]


HEADINGS = {"psnr": "PSNR (dB)", "ssim": "SSIM"}


@dataclass(frozen=True)
class RestorationRun:
    """What one training run left behind: the trainer's log, and evaluations before and after it."""

    log: list[dict[str, Any]]
    before: EvaluationResults | None
    after: EvaluationResults | None
    seconds: dict[str, float]
    timing: dict[str, Any] | None = None
    pictures: Sequence[PictureRow] = ()


def write_report(
    recipe: Any,
    seed: int,
    study: Study,
    main: RestorationRun,
    control: RestorationRun | None,
    recipe_path: str,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Write what the recipe's `report` section asks for and print the table; only the main process does.

    Returns:
        the record of this run, see `run_record`.
    """
    record = run_record(seed, main, control)
    if not PartialState().is_main_process:
        return record
    section = recipe.report
    if section.results:
        write_run_results(section.results, recipe, record, recipe_path, overrides)
    rows = table(record)
    if main.after is not None:
        main.after.write_items(Path(recipe.training["output_dir"]) / "test.jsonl")
    if section.html and main.after is not None:
        _write_html(recipe, study, main, control, rows, record)
    if rows:
        print_table("Against the clean pictures", rows, bold_last=True)
    say_where(section.html if main.after else None, section.results, recipe.training["output_dir"])
    return record


def run_record(seed: int, main: RestorationRun, control: RestorationRun | None) -> dict[str, Any]:
    """One record of a results file.

    `<metric>`: mean over the test pictures of `degraded`, each clean-up, `untrained`, `model` and `control`, null
    where not asked for; `verdict` (see there), `pictures`, `strengths`, first and last logged loss, and seconds.
    """
    record: dict[str, Any] = {"seed": seed}
    after = main.after
    if after is not None:
        names = [name for name in after.metrics if "_" not in name]
        for metric in names:
            others = {
                name.removeprefix(f"{metric}_"): value
                for name, value in after.metrics.items()
                if name.startswith(f"{metric}_")
            }
            record[metric] = {
                **others,
                "untrained": main.before.metrics[metric] if main.before else None,
                "model": after.metrics[metric],
                "control": control.after.metrics[metric] if control and control.after else None,
            }
        record["verdict"] = verdict(record, names)
        record["pictures"] = after.settings["pictures"]
        record["strengths"] = dict(after.settings["strengths"])
    return {
        **record,
        **logged_losses(main.log),
        **costs(main.seconds, main.timing, control.seconds if control else None),
    }


def verdict(record: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, bool]:
    """Truth values: does the model beat the degraded input and every clean-up in every metric, and fails the control?

    The control fails where it is worse than the degraded input in every metric.
    """
    others = [name for name in record[metrics[0]] if name not in ("untrained", "model", "control")]
    found = {
        "model_beats_all": all(record[metric]["model"] > record[metric][name] for metric in metrics for name in others)
    }
    if record[metrics[0]]["control"] is not None:
        found["control_fails"] = all(record[metric]["control"] < record[metric]["degraded"] for metric in metrics)
    return found


def table(record: Mapping[str, Any]) -> list[list[str]]:
    """Headings, and one row for each way to treat the pictures, the model last; nothing without evaluation."""
    metrics = [name for name in HEADINGS if name in record]
    if not metrics:
        return []
    names = [name for name in record[metrics[0]] if record[metrics[0]][name] is not None]
    names = [name for name in names if name != "model"] + ["model"]
    digits = {"psnr": 2, "ssim": 4}
    rows = [[name, *(f"{record[metric][name]:.{digits[metric]}f}" for metric in metrics)] for name in names]
    return [["pictures", *(HEADINGS[metric] for metric in metrics)], *rows]


def _write_html(
    recipe: Any,
    study: Study,
    main: RestorationRun,
    control: RestorationRun | None,
    rows: Sequence[Sequence[str]],
    record: Mapping[str, Any],
) -> None:
    pairs = study.test or study.validation
    curves = {
        "Loss": {
            name: logged_points(run.log, "loss")
            for name, run in (("run", main), ("unrelated targets", control))
            if run
        },
        "PSNR on validation pictures": {"run": logged_points(main.log, "eval_psnr")},
    }
    notes = [
        f"Test: {len(pairs)} squares of {pairs.size} pixels from {len(pairs.names)} pictures that were not trained "
        "on, degraded once by the rule of training.",
        "Clean-ups have the strength that is best on the validation pictures; the test pictures had no part in it.",
        "PSNR and SSIM reward the mean of all pictures that fit the input. They say little about how real it looks.",
    ]
    if control:
        notes.append("Control: the same run with squares of other items as targets; it must not learn to restore.")
    write_picture_page(
        Path(recipe.report.html),
        title="Blind restoration",
        summary=f"{recipe.method}: {len(study.train.names)} training pictures, squares of {study.train.size} pixels.",
        facts=[(row[0], f"{row[1]} dB" if len(row) < 3 else f"{row[1]} dB, {row[2]}") for row in rows[1:]],
        table=rows,
        curves={name: lines for name, lines in curves.items() if any(steps for steps, _ in lines.values())},
        pictures=list(main.pictures)[: recipe.report.examples],
        notes=notes,
        timing=phase_rows(main.timing["seconds"], main.timing["steps"]) if main.timing else (),
    )
