"""What a benchmark of editors leaves: every edit as CSV, averages as JSON, and a page with the fronts."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from thurl.editing.evaluate import EditRow, averages
from thurl.editing.layer_search import LayerResult
from thurl.editing.metrics import MacroAverage, front_area, pareto_front
from thurl.training.page import (
    COLOURS,
    MARKERS,
    STYLE,
    figure,
    number,
    plot_png,
    plot_text,
    section,
    text_table,
    write_page,
)
from thurl.training.results import plain, write_atomically


__all__ = ["draw_fronts", "write_benchmark"]

Points = Mapping[str, Sequence[tuple[str, float, float]]]
"""Method -> its settings as (label, LR, GR)."""


def write_benchmark(
    folder: str | os.PathLike[str],
    rows: Mapping[tuple[str, str], Sequence[EditRow]],
    *,
    locality: str,
    official: bool = False,
    facts: Sequence[tuple[str, str]] = (),
    layers: Sequence[LayerResult] = (),
) -> dict[str, Any]:
    """Write `edits.csv`, `summary.json`, `fronts.png` and `report.html`, each in one step.

    Args:
        rows: (method, setting) -> its edits; a method with several settings has a front.
        locality: which rate is the locality of the fronts, such as `LR_sensitive`.
        official: also show the released GR.
        facts: headline values of the page.
        layers: of `search_layers`; as `layers` in the summary, with `layers.png` and a part of the page.

    Returns:
        what `summary.json` holds: the averages and the area under each front.
    """
    place = Path(folder)
    found = {key: averages(edits) for key, edits in rows.items()}
    points: dict[str, list[tuple[str, float, float]]] = {}
    for (method, setting), values in found.items():
        points.setdefault(method, []).append((setting, values[locality].mean, values["GR"].mean))
    areas = {
        method: front_area([(across, up) for _, across, up in ones])
        for method, ones in points.items()
        if len(ones) > 1
    }
    summary: dict[str, Any] = {
        "locality": locality,
        "methods": [
            {"method": method, "setting": setting, **{name: asdict(value) for name, value in values.items()}}
            for (method, setting), values in found.items()
        ],
        "front_area": areas,
    }
    if layers:
        summary["layers"] = [
            {"window": one.name, "on_front": one.on_front}
            | {name: asdict(value) for name, value in one.averages.items()}
            for one in layers
        ]
    names = list(dict.fromkeys(name for values in found.values() for name in values))
    write_atomically(place / "edits.csv", _csv(rows, names))
    write_atomically(place / "summary.json", json.dumps(plain(summary), indent=1, allow_nan=False) + "\n")
    shown = ["SR", "GR", *(["GR_official"] if official else []), *(name for name in names if name.startswith("LR_"))]
    shown += [name for name in ("accuracy_drop", "ECE_rise", "steps") if name in names]
    lines = [["method", "setting", *shown]]
    lines += [[method, setting, *_cells(values, shown)] for (method, setting), values in found.items()]
    drawing = draw_fronts(points, locality)
    write_atomically(place / "fronts.png", plot_png(drawing))
    sections = [
        section(
            "Generalisation and locality",
            figure(drawing, "GR against LR", "Up and right is better; lines join fronts."),
        ),
        section("Averages over groups", text_table(lines, total=False)),
    ]
    if layers:
        sections.append(_layers_part(place, layers))
    write_page(
        place / "report.html",
        title="Editing benchmark",
        summary=f"{len(rows)} settings, {sum(map(len, rows.values()))} edits, each from the base model.",
        facts=facts,
        sections=sections,
        notes=[
            "Rates in percent, means over groups of means over edits, with 95 % bootstrap intervals over groups.",
            "GR is over the other pictures of a group; groups of one picture have none.",
        ],
    )
    return summary


def _layers_part(place: Path, layers: Sequence[LayerResult]) -> str:
    points: dict[str, list[tuple[str, float, float]]] = {}
    for one in layers:
        kind = one.name.partition(" ")[0]
        points.setdefault(kind, []).append((one.name, one.averages["LR_unrelated"].mean, one.averages["GR"].mean))
    drawing = draw_fronts(points, "LR_unrelated")
    write_atomically(place / "layers.png", plot_png(drawing))
    shown = ["SR", "GR", "LR_unrelated", "steps"]
    lines = [["window", "on the front", *shown]]
    lines += [[one.name, "yes" if one.on_front else "", *_cells(one.averages, shown)] for one in layers]
    return section(
        "Fine-tuning of each window of layers",
        figure(drawing, "GR against LR of each window", "A point is a window of layers.")
        + text_table(lines, total=False),
    )


def _csv(rows: Mapping[tuple[str, str], Sequence[EditRow]], names: Sequence[str]) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["method", "setting", "group", "edited", *names])
    for (method, setting), edits in rows.items():
        for row in edits:
            writer.writerow([method, setting, row.group, row.edited, *(row.numbers.get(name, "") for name in names)])
    return table.getvalue()


def _cells(values: Mapping[str, MacroAverage], shown: Sequence[str]) -> list[str]:
    return [
        f"{number(values[name].mean, 1)} ({number(values[name].low, 1)} to {number(values[name].high, 1)})"
        for name in shown
    ]


def draw_fronts(points: Points, locality: str) -> Any:
    """A matplotlib figure: locality against generalisation, a marker per setting, a line along each front."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        drawing = Figure(figsize=(7.2, 4.2), layout="constrained")
        FigureCanvasAgg(drawing)
        axes = drawing.subplots()
        for position, (method, ones) in enumerate(points.items()):
            front = [ones[index] for index in pareto_front([(across, up) for _, across, up in ones])]
            colour = COLOURS[position % len(COLOURS)]
            axes.plot([one[1] for one in front], [one[2] for one in front], color=colour, linewidth=1.4)
            axes.plot(
                [one[1] for one in ones], [one[2] for one in ones], linestyle="none", color=colour, markersize=5,
                marker=MARKERS[position % len(MARKERS)], label=plot_text(method),
            )  # fmt: skip
        axes.set_xlabel(plot_text(f"{locality}, %"))
        axes.set_ylabel("GR, %")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawing
