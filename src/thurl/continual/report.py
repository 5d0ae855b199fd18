"""One HTML page about a sequence: how it was found, how hard it is beside other ways to build one, what is in it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from thurl.continual.metrics import DEFINITIONS
from thurl.continual.sequence_file import contamination
from thurl.training.page import STYLE, figure, number, plot_text, section, text_table, write_page


__all__ = ["builder_rows", "write_report"]

_METRICS = ("aa", "aaa", "ala", "afm", "ar", "ar_ratio")


def write_report(
    path: str | os.PathLike[str], document: Mapping[str, Any], replayed: Mapping[str, Any] | None = None
) -> None:
    """Write the page.

    Args:
        path: `.html` file.
        document: from `thurl.continual.sequence_file.read_sequence`.
        replayed: from `thurl.continual.replay.replay`.
    """
    found, search = document["found"], document["search"]
    names = list(found["accuracies"])
    sections = [
        section("Beside other ways to build a sequence", _comparison(document)),
        section("Accuracy after each task", _matrices(found["accuracies"], "validation split, seed of the search")),
    ]
    if replayed is not None:
        sections.append(section("Trained again with fresh seeds", _replayed(replayed)))
    if found.get("steps"):
        sections.append(section("What the search looked at", _trees(found["steps"])))
    sections.append(section("The tasks", _tasks(document)))
    mean = {key: _mean(found, key) for key in ("aa", "afm")}
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
        summary=f"{len(document['tasks'])} tasks of {len(document['tasks'][0])} classes out of {document['classes']}, "
        f"{document['mode']} mode, for {', '.join(names)}; {search['simulations']} simulations per task, "
        f"{search['depth']} tasks ahead.",
        facts=facts,
        sections=sections,
        notes=[
            "Numbers of the search are selected, hence too extreme: only a replay with fresh seeds on the test split "
            "says how hard the sequence is.",
            *(f"{name.upper()}: {text}." for name, text in DEFINITIONS.items()),
            f"Pool {document['pool_hash']}, encoder {document['encoder']}, seed {document['seed']}.",
        ],
    )


def builder_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """Heading and a row per builder: means over the learners in the search; random sequences are one row."""
    groups: dict[str, list[Mapping[str, Any]]] = {"search": [document["found"]]}
    for record in document["baselines"]:
        name = record["builder"]
        groups.setdefault("random" if name.startswith("random ") else name, []).append(record)
    rows = [["builder", *(name.upper() for name in _METRICS), "trainings", "seconds of training"]]
    for name, records in groups.items():
        label = name if len(records) == 1 else f"{name}, mean of {len(records)}"
        values = [float(np.mean([_mean(record, key) for record in records])) for key in _METRICS]
        cost = [float(np.mean([record[key] for record in records])) for key in ("trainings", "training_seconds")]
        rows.append([label, *(number(value) for value in values), number(cost[0], 0), number(cost[1], 1)])
    return rows


def _mean(record: Mapping[str, Any], key: str) -> float:
    values = [metrics[key] for metrics in record["metrics"].values()]
    return float(np.mean([math.nan if value is None else value for value in values]))


def _comparison(document: Mapping[str, Any]) -> str:
    note = "" if document["baselines"] else "<p class='caption'>The baselines were left out of this search.</p>"
    return text_table(builder_rows(document), total=False) + note


def _replayed(replayed: Mapping[str, Any]) -> str:
    rows = [["learner", *(name.upper() for name in _METRICS)]]
    for name, entry in replayed["learners"].items():
        cells = [
            number(entry["mean"][key]) + ("" if entry["std"][key] is None else f" ± {number(entry['std'][key])}")
            for key in _METRICS
        ]
        rows.append([name, *cells])
    matrices = {
        name: np.mean([_square(run["accuracies"]) for run in entry["runs"]], axis=0)
        for name, entry in replayed["learners"].items()
    }
    caption = f"test split, mean of {len(replayed['seeds'])} seeds"
    return text_table(rows, total=False) + _matrices(matrices, caption)


def _square(rows: Sequence[Sequence[float]]) -> np.ndarray[Any, Any]:
    matrix = np.full((len(rows), len(rows)), math.nan)
    for step, row in enumerate(rows):
        matrix[step, : step + 1] = [math.nan if value is None else value for value in row[: step + 1]]
    return matrix


def _drawing(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawing)
    return drawing


def _matrices(matrices: Mapping[str, Any], where: str) -> str:
    import matplotlib

    columns = min(4, len(matrices))
    lines = math.ceil(len(matrices) / columns)
    with matplotlib.rc_context(STYLE):
        drawing = _drawing(2.3 * columns + 0.8, 2.3 * lines)
        panels = drawing.subplots(lines, columns, squeeze=False).flat
        for axes, (name, rows) in zip(panels, matrices.items(), strict=False):
            square = _square(rows)
            shown = axes.imshow(square, vmin=0, vmax=1, cmap="viridis")
            axes.set_title(plot_text(name))
            axes.grid(False)
            axes.set_xticks(range(len(square)), [str(i + 1) for i in range(len(square))])
            axes.set_yticks(range(len(square)), [str(i + 1) for i in range(len(square))])
            for (step, task), value in np.ndenumerate(square):
                if not math.isnan(value) and len(square) <= 6:
                    axes.text(task, step, f"{value:.2f}", ha="center", va="center", fontsize=6.5,
                              color="white" if value < 0.6 else "black")  # fmt: skip
        for axes in list(drawing.axes)[len(matrices) :]:
            axes.set_visible(False)
        drawing.supxlabel("task", fontsize=9)
        drawing.supylabel("tasks learned", fontsize=9)
        drawing.colorbar(shown, ax=list(drawing.axes)[: len(matrices)], label="accuracy")
        alt = "; ".join(f"{name}: last row {_last(rows)}" for name, rows in matrices.items())
        return figure(drawing, alt, f"Row: after so many tasks; column: accuracy on that task; {where}.")


def _last(rows: Any) -> str:
    return ", ".join(number(value, 2) for value in _square(rows)[-1])


def _trees(steps: Sequence[Mapping[str, Any]]) -> str:
    import matplotlib

    columns = min(5, len(steps))
    lines = math.ceil(len(steps) / columns)
    with matplotlib.rc_context(STYLE):
        drawing = _drawing(2.0 * columns + 0.8, 2.2 * lines)
        panels = list(drawing.subplots(lines, columns, squeeze=False).flat)
        values = [node["value"] for step in steps for node in step["nodes"]]
        shown = None
        for number_, (axes, step) in enumerate(zip(panels, steps, strict=False)):
            axes.set_title(plot_text(f"task {number_ + 1}"))
            axes.axis("off")
            places = _places(step["nodes"])
            for path, (x, y) in places.items():
                if path:
                    chosen = path[0] == step["committed"] and len(path) == 1
                    above = places[path[:-1]]
                    axes.plot([above[0], x], [above[1], y], zorder=1, linewidth=2 if chosen else 0.8,
                              color="#D55E00" if chosen else "#b8c0c8")  # fmt: skip
            nodes = step["nodes"]
            xy = np.array([places[tuple(node["path"])] for node in nodes])
            shown = axes.scatter(
                xy[:, 0], xy[:, 1], zorder=2, cmap="viridis", vmin=min(values), vmax=max(values),
                s=[12 + 10 * node["visits"] for node in nodes], c=[node["value"] for node in nodes],
            )  # fmt: skip
        for axes in panels[len(steps) :]:
            axes.set_visible(False)
        drawing.colorbar(shown, ax=panels, label="value")
        rows = [["task", "candidates", "children", "simulations", "visits of the children", "committed"]]
        for number_, step in enumerate(steps):
            children = {node["path"][0]: node["visits"] for node in step["nodes"] if len(node["path"]) == 1}
            visits = " ".join(str(children.get(child, 0)) for child in range(step["children"]))
            rows.append([str(number_ + 1), *(str(step[key]) for key in ("candidates", "children", "simulations")),
                         visits, str(step["committed"] + 1)])  # fmt: skip
        caption = "Size: visits; colour: mean return; orange: the task that was committed to."
        return figure(drawing, "search tree of each task", caption) + text_table(rows, total=False)


def _places(nodes: Sequence[Mapping[str, Any]]) -> dict[tuple[int, ...], tuple[float, float]]:
    """Where to draw each node: leaves side by side, others above the middle of what is below them."""
    paths = sorted(tuple(node["path"]) for node in nodes)
    below: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for path in paths:
        below.setdefault(path[:-1], []).append(path)
    places: dict[tuple[int, ...], tuple[float, float]] = {}

    def place(path: tuple[int, ...], first: int) -> int:
        if path not in below:
            places[path] = (float(first), -float(len(path)))
            return first + 1
        following = first
        for child in below[path]:
            following = place(child, following)
        middle = float(np.mean([places[child][0] for child in below[path]]))
        places[path] = (middle, -float(len(path)))
        return following

    place((), 0)
    return places


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
