"""One HTML page, or one picture, about a sequence: how it was found, how hard it is beside other ways to build one,
what is in it."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from thurl.continual.metrics import DEFINITIONS
from thurl.continual.report_drawings import (
    METRICS,
    draw_bars,
    draw_matrices,
    draw_trees,
    drawing,
    groups_of,
    lines_of,
    mean_of,
    square,
)
from thurl.continual.sequence_file import contamination
from thurl.training.page import escape, figure, number, plot_text, section, text_table, write_page
from thurl.training.results import write_atomically


__all__ = ["builder_rows", "write_picture", "write_report"]

Table = tuple[str, Sequence[Sequence[str]], str]
"""Heading, rows of text with headings first, caption."""


def write_report(
    path: str | os.PathLike[str],
    document: Mapping[str, Any],
    replayed: Mapping[str, Any] | None = None,
    tables: Sequence[Table] = (),
) -> None:
    """Write the page.

    Args:
        path: `.html` file.
        document: from `thurl.continual.sequence_file.read_sequence`.
        replayed: from `thurl.continual.replay.replay`.
        tables: shown after the replay.
    """
    found = document["found"]
    sections = [
        section("Beside other ways to build a sequence", _comparison(document)),
        section("Accuracy after each task", _matrices(found["accuracies"], "validation split, seed of the search")),
    ]
    if replayed is not None:
        sections.append(section("Trained again with fresh seeds", _replayed(replayed)))
    for heading, rows, caption in tables:
        words = f"<p class='caption'>{escape(caption)}</p>"
        sections.append(section(heading, text_table(rows, total=False) + words))
    if found.get("steps"):
        sections.append(section("What the search looked at", _trees(found["steps"])))
    sections.append(section("The tasks", _tasks(document)))
    mean = {key: mean_of(found, key) for key in ("aa", "afm")}
    facts = [
        ("AA in the search", number(mean["aa"])),
        ("AFM in the search", number(mean["afm"])),
        ("trainings", str(found["trainings"])),
        ("seconds", number(found["wall_seconds"], 1)),
    ]
    if replayed is not None:
        again = [entry["mean"]["aa"] for entry in replayed["learners"].values()]
        facts.insert(1, ("AA trained again", number(float(np.mean(again)))))
    write_page(
        path,
        title="CLDyB sequence",
        summary=_summary(document),
        facts=facts,
        sections=sections,
        notes=[
            "Numbers of the search are selected, hence too extreme: only a replay with fresh seeds on the test split "
            "says how hard the sequence is.",
            *_saving(found),
            *(f"{name.upper()}: {text}." for name, text in DEFINITIONS.items()),
            f"Pool {document['pool_hash']}, encoder {document['encoder']}, seed {document['seed']}.",
        ],
    )


def builder_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """Heading and a row per builder: means over the learners in the search; random sequences are one row."""
    rows = [["builder", *(name.upper() for name in METRICS), "trainings", "seconds of training"]]
    for name, records in groups_of(document).items():
        label = name if len(records) == 1 else f"{name}, mean of {len(records)}"
        values = [float(np.mean([mean_of(record, key) for record in records])) for key in METRICS]
        cost = [float(np.mean([record[key] for record in records])) for key in ("trainings", "training_seconds")]
        rows.append([label, *(number(value) for value in values), number(cost[0], 0), number(cost[1], 1)])
    return rows


def _summary(document: Mapping[str, Any]) -> str:
    search = document["search"]
    return (
        f"{len(document['tasks'])} tasks of {len(document['tasks'][0])} classes out of {document['classes']}, "
        f"{document['mode']} mode, for {', '.join(document['found']['accuracies'])}; {search['simulations']} "
        f"simulations per task, {search['depth']} tasks ahead."
    )


def _saving(found: Mapping[str, Any]) -> list[str]:
    walked = sum(step.get("path_trainings", 0) for step in found.get("steps") or ())
    if not walked:
        return []
    return [
        f"{found['trainings']} trainings instead of the {walked} of all paths that were tried: what was learned on a "
        "beginning of a sequence is kept."
    ]


def _comparison(document: Mapping[str, Any]) -> str:
    note = "" if document["baselines"] else "<p class='caption'>The baselines were left out of this search.</p>"
    return text_table(builder_rows(document), total=False) + note + _bars(document)


def _replayed(replayed: Mapping[str, Any]) -> str:
    rows = [["learner", *(name.upper() for name in METRICS)]]
    for name, entry in replayed["learners"].items():
        cells = [
            number(entry["mean"][key]) + ("" if entry["std"][key] is None else f" ± {number(entry['std'][key])}")
            for key in METRICS
        ]
        rows.append([name, *cells])
    matrices = {
        name: np.mean([square(run["accuracies"]) for run in entry["runs"]], axis=0)
        for name, entry in replayed["learners"].items()
    }
    caption = f"test split, mean of {len(replayed['seeds'])} seeds"
    return text_table(rows, total=False) + _matrices(matrices, caption)


def write_picture(path: str | os.PathLike[str], document: Mapping[str, Any]) -> None:
    """Write trees, accuracies after each task and the comparison with other builders as one PNG.

    Args:
        path: `.png` file.
        document: from `thurl.continual.sequence_file.read_sequence`.
    """
    found = document["found"]
    trees, _ = lines_of(len(found.get("steps") or ()), 5)
    matrices, _ = lines_of(len(found["accuracies"]), 4)
    heights = [2.4 * trees, 2.5 * matrices, 3.0]
    with drawing(11, sum(heights) + 0.8) as whole:
        parts = whole.subfigures(3, 1, height_ratios=[max(height, 0.01) for height in heights])
        whole.suptitle(plot_text(_summary(document)), fontsize=10, x=0.01, ha="left", wrap=True)
        if found.get("steps"):
            draw_trees(parts[0], found["steps"])
        draw_matrices(parts[1], found["accuracies"])
        draw_bars(parts[2], document)
        buffer = io.BytesIO()
        whole.savefig(buffer, format="png", dpi=150)
    write_atomically(path, buffer.getvalue())


def _matrices(matrices: Mapping[str, Any], where: str) -> str:
    lines, columns = lines_of(len(matrices), 4)
    with drawing(2.3 * columns + 0.8, 2.3 * lines) as whole:
        draw_matrices(whole, matrices)
        alt = "; ".join(f"{name}: last row {_last(rows)}" for name, rows in matrices.items())
        return figure(whole, alt, f"Row: after so many tasks; column: accuracy on that task; {where}.")


def _last(rows: Any) -> str:
    return ", ".join(number(value, 2) for value in square(rows)[-1])


def _bars(document: Mapping[str, Any]) -> str:
    with drawing(8.6, 3.2) as whole:
        draw_bars(whole, document)
        alt = "; ".join(f"{row[0]}: AA {row[1]}" for row in builder_rows(document)[1:])
        return figure(
            whole, alt, "AA on the validation split: a bar is the mean over the learners, a dot one of them."
        )


def _trees(steps: Sequence[Mapping[str, Any]]) -> str:
    lines, columns = lines_of(len(steps), 5)
    with drawing(2.0 * columns + 0.8, 2.2 * lines) as whole:
        draw_trees(whole, steps)
        rows = [["task", "candidates", "children", "simulations", "visits of the children", "committed"]]
        for place, step in enumerate(steps):
            children = {node["path"][0]: node["visits"] for node in step["nodes"] if len(node["path"]) == 1}
            visits = " ".join(str(children.get(child, 0)) for child in range(step["children"]))
            rows.append([str(place + 1), *(str(step[key]) for key in ("candidates", "children", "simulations")),
                         visits, str(step["committed"] + 1)])  # fmt: skip
        caption = "Size: visits; colour: mean return; orange: the task that was committed to."
        return figure(whole, "search tree of each task", caption) + text_table(rows, total=False)


def _tasks(document: Mapping[str, Any]) -> str:
    known = contamination(document)
    kinds = [kind for kind in _KNOWN if kind == "knn" or any(kind in values for values in known.values())]
    rows = [["task", "class", *(_KNOWN[kind] for kind in kinds)]]
    for position, task in enumerate(document["tasks"]):
        for uid in task:
            values = known.get(uid, {})
            cells = [number(values[kind]) if kind in values else "not measured" for kind in kinds]
            rows.append([str(position + 1), uid, *cells])
    caption = (
        "Share of the validation pictures of the class that their nearest training pictures in the whole pool name "
        "rightly, by the frozen encoder: a class that is known well and still hard is hard to keep, not to see."
    )
    if "zero_shot" in kinds:
        caption += " By its name: share whose nearest text, among the names of all classes of the pool, is theirs."
    return text_table(rows, total=False) + f"<p class='caption'>{caption}</p>"


_KNOWN = {"knn": "nearest neighbours know it", "zero_shot": "known by its name"}
