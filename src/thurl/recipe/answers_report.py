"""What a run on questions leaves for a person: a results file, a table on the console and a one-page report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from thurl.recipe.run_record import costs, logged_losses, logged_points, print_table, say_where, write_run_results
from thurl.training.answer_page import AnswerCard, write_answer_page
from thurl.training.timing import phase_rows


if TYPE_CHECKING:
    from thurl.recipe.answers_task import Evaluation, Task

__all__ = ["AnswersRun", "run_record", "table", "write_report"]


@dataclass(frozen=True)
class AnswersRun:
    """What one training run left behind: the trainer's log, evaluations while training, before and after it."""

    log: list[dict[str, Any]]
    watched: list[dict[str, float]]
    before: Evaluation | None
    after: Evaluation | None
    seconds: dict[str, float]
    timing: dict[str, Any] | None = None


def write_report(
    recipe: Any,
    seed: int,
    task: Task,
    main: AnswersRun,
    control: AnswersRun | None,
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
        write_run_results(section.results, recipe, record, recipe_path, overrides, watched=main.watched)
    rows = table(main, control)
    if section.html and main.after:
        _write_html(recipe, task, main, control, rows, record)
    if rows:
        print_table("Answers to questions never trained on", rows, total=True)
    say_where(section.html if main.after else None, section.results, recipe.training["output_dir"])
    return record


def run_record(seed: int, main: AnswersRun, control: AnswersRun | None) -> dict[str, Any]:
    """One record of a results file.

    `<metric>_before`, `_after`, `_control` of every metric of the evaluations (means over tasks; null where not asked
    for), `per_task` with the same of each task, `coto_p_last`, the last logged loss, and seconds.
    """
    moments = {"before": main.before, "after": main.after, "control": control.after if control else None}
    known = next((found for found in moments.values() if found is not None), None)
    record: dict[str, Any] = {"seed": seed}
    for metric in known.mean if known else ():
        if metric == "n":
            continue
        for moment, found in moments.items():
            record[f"{metric}_{moment}"] = found.mean[metric] if found else None
    if known is not None:
        record["n"] = known.mean["n"]
        record["per_task"] = {
            name: {
                f"{metric}_{moment}": found.tasks[name][metric]
                for moment, found in moments.items()
                if found is not None
                for metric in found.tasks[name]
                if metric != "n"
            }
            for name in known.tasks
        }
    return {
        **record,
        **logged_losses(main.log),
        **costs(main.seconds, main.timing, control.seconds if control else None),
    }


def table(main: AnswersRun, control: AnswersRun | None) -> list[list[str]]:
    """Headings, one row per task, and their mean last; nothing where nothing was evaluated after training."""
    if main.after is None:
        return []
    moments = [("before", main.before), ("after", main.after), ("control", control.after if control else None)]
    shown = [(name, found) for name, found in moments if found is not None]
    # Where every reply could be read, a column of zeros says nothing.
    metrics = [
        metric
        for metric in main.after.mean
        if metric != "n" and (metric != "unparsed" or any(found.mean[metric] for _, found in shown))
    ]
    columns = [(metric, moment, found) for metric in metrics for moment, found in shown]
    head = ["task", "n", *(f"{metric} {moment}" for metric, moment, _ in columns)]
    rows = [
        [name, f"{entry['n']:g}", *(f"{found.tasks[name][metric]:.3f}" for metric, _, found in columns)]
        for name, entry in main.after.tasks.items()
    ]
    mean = [f"{found.mean[metric]:.3f}" for metric, _, found in columns]
    return [head, *rows, ["mean of tasks", f"{main.after.mean['n']:g}", *mean]]


def _write_html(
    recipe: Any,
    task: Task,
    main: AnswersRun,
    control: AnswersRun | None,
    rows: Sequence[Sequence[str]],
    record: Mapping[str, Any],
) -> None:
    after, count = main.after, recipe.report.examples
    curves = {
        "Loss": _lines(main, control, lambda run: [(e["step"], e["loss"]) for e in run.log if "loss" in e]),
        "Reward": _lines(main, control, lambda run: [(e["step"], e["reward"]) for e in run.log if "reward" in e]),
        "Share of adapters on": {"run": logged_points(main.log, "coto/active_frac")},
        "Accuracy": _lines(main, control, lambda run: [(e["step"], e["accuracy"]) for e in run.watched]),
    }
    facts = [
        (f"{metric} {moment}".replace("_", " "), f"{record[f'{metric}_{moment}']:.3f}")
        for metric in after.mean
        for moment in ("before", "after", "control")
        if metric != "n" and record.get(f"{metric}_{moment}") is not None
    ]
    facts.append(("time", f"{record['seconds']:.0f} s"))
    training, coto = recipe.training, recipe.coto
    steps = main.log[-1].get("step") if main.log else 0
    notes = [
        "Without CoTo: the adapter is trained as usual." if coto is None else f"CoTo: {coto.words()}.",
        f"Training: {steps} steps, learning rate {training.get('learning_rate')}.",
    ]
    if recipe.model.tiny is not None:
        notes.append("The model is tiny and the tasks are made up: this shows that the method runs and learns.")
    if control:
        notes.append("Control: the same run with the answers of other questions; it must not learn to answer.")
    groups = {
        "Right": [example for example in after.examples if example["right"]],
        "Wrong": [example for example in after.examples if not example["right"] and example["read"] is not None],
        "No answer to be read": [example for example in after.examples if example["read"] is None],
    }
    write_answer_page(
        Path(recipe.report.html),
        title=f"Answers after training: {recipe.method}",
        summary=task.summary,
        facts=facts,
        table=rows,
        curves={name: lines for name, lines in curves.items() if any(points for points, _ in lines.values())},
        examples={
            name: [AnswerCard(e["task"], e["question"], e["reply"], e["answer"]) for e in group[:count]]
            for name, group in groups.items()
        },
        notes=notes,
        timing=phase_rows(main.timing["seconds"], main.timing["steps"]) if main.timing else (),
    )


def _lines(
    main: AnswersRun, control: AnswersRun | None, points: Callable[[AnswersRun], list[tuple[float, float]]]
) -> dict[str, tuple[list[float], list[float]]]:
    lines = {}
    for name, run in (("run", main), ("shuffled answers", control)):
        pairs = points(run) if run else []
        if pairs:
            lines[name] = ([step for step, _ in pairs], [value for _, value in pairs])
    return lines
