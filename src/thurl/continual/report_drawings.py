"""Drawings of a sequence, each into any part of a figure: one page shows them one by one, one picture together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from thurl.training.page import COLOURS, STYLE, plot_text


__all__ = [
    "METRICS",
    "draw_bars",
    "draw_matrices",
    "draw_trees",
    "drawing",
    "groups_of",
    "lines_of",
    "mean_of",
    "square",
]

METRICS = ("aa", "aaa", "ala", "afm", "ar", "ar_ratio")


@contextmanager
def drawing(width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure of `width` x `height` inches, in the style of the pages while inside."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        found = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(found)
        yield found


def lines_of(count: int, columns: int) -> tuple[int, int]:
    """Lines and columns of `count` panels, at most `columns` side by side."""
    columns = max(1, min(columns, count))
    return math.ceil(count / columns), columns


def square(rows: Sequence[Sequence[float]]) -> np.ndarray[Any, Any]:
    """An accuracy matrix with NaN for what was not yet learned, float64 [T, T]."""
    matrix = np.full((len(rows), len(rows)), math.nan)
    for step, row in enumerate(rows):
        matrix[step, : step + 1] = [math.nan if value is None else value for value in row[: step + 1]]
    return matrix


def draw_matrices(part: Any, matrices: Mapping[str, Any]) -> None:
    """The accuracy matrix of each learner.

    Args:
        part: figure or subfigure.
        matrices: learner to rows.
    """
    lines, columns = lines_of(len(matrices), 4)
    panels = list(part.subplots(lines, columns, squeeze=False).flat)
    for axes, (name, rows) in zip(panels, matrices.items(), strict=False):
        values = square(rows)
        shown = axes.imshow(values, vmin=0, vmax=1, cmap="viridis")
        axes.set_title(plot_text(name))
        axes.grid(False)
        axes.set_xticks(range(len(values)), [str(i + 1) for i in range(len(values))])
        axes.set_yticks(range(len(values)), [str(i + 1) for i in range(len(values))])
        for (step, task), value in np.ndenumerate(values):
            if not math.isnan(value) and len(values) <= 6:
                axes.text(task, step, f"{value:.2f}", ha="center", va="center", fontsize=6.5,
                          color="white" if value < 0.6 else "black")  # fmt: skip
    for axes in panels[len(matrices) :]:
        axes.set_visible(False)
    part.supxlabel("task", fontsize=9)
    part.supylabel("tasks learned", fontsize=9)
    part.colorbar(shown, ax=panels[: len(matrices)], label="accuracy")


def draw_trees(part: Any, steps: Sequence[Mapping[str, Any]]) -> None:
    """The search tree of each task.

    Args:
        part: figure or subfigure.
        steps: of a sequence file, at least one.
    """
    lines, columns = lines_of(len(steps), 5)
    panels = list(part.subplots(lines, columns, squeeze=False).flat)
    values = [node["value"] for step in steps for node in step["nodes"]]
    for number, (axes, step) in enumerate(zip(panels, steps, strict=False)):
        axes.set_title(plot_text(f"task {number + 1}"))
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
    part.colorbar(shown, ax=panels, label="value")


def draw_bars(part: Any, document: Mapping[str, Any]) -> None:
    """AA after the last task on the sequences of all builders: a bar is the mean over learners, a dot one of them.

    Args:
        part: figure or subfigure.
        document: sequence file.
    """
    found = groups_of(document)
    learners = list(document["found"]["metrics"])
    axes = part.subplots()
    axes.grid(axis="x", visible=False)
    for place, records in enumerate(found.values()):
        each = {name: _mean([record["metrics"][name]["aa"] for record in records]) for name in learners}
        mean = float(np.mean(list(each.values())))
        if math.isfinite(mean):
            axes.bar(place, mean, width=0.62, color=COLOURS[1] if place == 0 else "#c6d3de", zorder=2)
            axes.text(place, 0.02, f"{mean:.2f}", ha="center", fontsize=9, color="white" if place == 0 else "black")
        for number, (name, value) in enumerate(each.items()):
            beside = place - 0.2 + 0.4 * (number + 0.5) / len(learners)
            label = plot_text(name) if place == 0 else None
            axes.scatter(beside, value, s=18, zorder=3, color=COLOURS[(number + 2) % len(COLOURS)], label=label)
    axes.set_xticks(range(len(found)), [plot_text(name).replace(" of ", " of\n") for name in found])
    axes.set_ylim(0, 1.08)
    axes.set_ylabel("AA")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def groups_of(document: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Records of the search and of each baseline, by builder; random sequences are one group."""
    groups: dict[str, list[Mapping[str, Any]]] = {"search": [document["found"]]}
    for record in document["baselines"]:
        name = record["builder"]
        groups.setdefault("random" if name.startswith("random ") else name, []).append(record)
    return groups


def mean_of(record: Mapping[str, Any], key: str) -> float:
    """A metric, mean over the learners; NaN where one is undefined."""
    return _mean([metrics[key] for metrics in record["metrics"].values()])


def _mean(values: Sequence[float | None]) -> float:
    return float(np.mean([math.nan if value is None else value for value in values]))


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
