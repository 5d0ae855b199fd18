"""One-page run report: a single HTML file with its figures inside, readable in any browser and on paper, no network.

Everything a model or a label file wrote is untrusted text: it is escaped, stripped of control characters, and the page
forbids scripts and outside resources.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thurl.training.page import (
    COLOURS,
    MARKERS,
    STYLE,
    Curves,
    card,
    draw_curves,
    escape,
    figure,
    gallery,
    number,
    plot_text,
    section,
    write_page,
)


if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.table import Table


__all__ = ["Judgement", "QualityRow", "quality_table", "write_quality_report"]


@dataclass(frozen=True)
class QualityRow:
    """One line of the results table. Correlations in [-1, 1]; None is left blank, NaN is shown as undefined."""

    name: str
    srcc_before: float | None = None
    srcc_after: float | None = None
    plcc_before: float | None = None
    plcc_after: float | None = None
    srcc_control: float | None = None
    n: int | None = None
    total: bool = False


@dataclass(frozen=True)
class Judgement:
    """A picture with what the model said of it.

    Args:
        predicted: the model's score; NaN where its answer held none.
        true: opinion score, in the units of its dataset.
        kind: degradation, or another group to colour the scatter by.
        text: the model's own words, raw.
        image: the picture; only needed where it is shown.
        name: what to call it, for example `coffee, blur 3`.
    """

    predicted: float
    true: float
    kind: str = ""
    text: str = ""
    image: Image | None = None
    name: str = ""


def quality_table(rows: Sequence[QualityRow], *, title: str | None = None) -> Table:
    """The results table for the console."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns = _columns(rows)
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for position, (heading, _) in enumerate(columns):
        table.add_column(heading, justify="right" if position else "left")
    for row in rows:
        if row.total and table.row_count:
            table.add_section()
        # Text, not str: a name from a label file must not be read as markup.
        table.add_row(*(Text(cell) for cell in _cells(row, columns)), style="bold" if row.total else None)
    return table


def write_quality_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    summary: str,
    curves: Curves,
    scatter: Sequence[Judgement],
    table_rows: Sequence[QualityRow],
    best: Sequence[Judgement],
    worst: Sequence[Judgement],
    misjudged: Sequence[Judgement] = (),
    facts: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
    timing: Sequence[Sequence[str]] = (),
) -> None:
    """Write the report of a run that learned to judge quality.

    Args:
        path: `.html` file; folders are made.
        title: heading of the page.
        summary: what ran and what came out, in two or three sentences.
        curves: panel title -> line name -> (steps, values). The first line of a panel is drawn as the run itself, the
            others (the shuffled-label control) dashed and grey. NaN leaves a gap.
        scatter: held-out pictures; those with a NaN prediction are counted in the caption instead of drawn.
        table_rows: per degradation first, then `total=True` rows.
        best: pictures the model rated highest, with `image` and `text`.
        worst: pictures the model rated lowest.
        misjudged: pictures with the largest error, if they are to be shown.
        facts: headline numbers as (label, value).
        notes: what a reader must know to believe the numbers: data, limits, settings.
        timing: rows of `thurl.training.timing.phase_rows`.
    """
    sections = []
    if table_rows:
        sections.append(section("Agreement with the true order", _html_table(table_rows) + _TABLE_CAPTION))
    if any(lines for lines in curves.values()):
        drawing = figure(draw_curves(curves), "Curves over training steps", _CURVE_CAPTION)
        sections.append(section("Learning curves", drawing))
    if scatter:
        sections.append(section("Predicted against true quality", _scatter_figure(scatter)))
    for heading, pictures in (("Rated best", best), ("Rated worst", worst), ("Largest errors", misjudged)):
        if pictures:
            sections.append(section(heading, gallery(_card(picture) for picture in pictures)))
    write_page(path, title=title, summary=summary, facts=facts, sections=sections, timing=timing, notes=notes)


def _columns(rows: Sequence[QualityRow]) -> list[tuple[str, str]]:
    every = [
        ("degradation", "name"),
        ("n", "n"),
        ("SRCC before", "srcc_before"),
        ("SRCC after", "srcc_after"),
        ("PLCC before", "plcc_before"),
        ("PLCC after", "plcc_after"),
        ("SRCC control", "srcc_control"),
    ]
    return [(heading, name) for heading, name in every if any(getattr(row, name) is not None for row in rows)]


def _cells(row: QualityRow, columns: Sequence[tuple[str, str]]) -> list[str]:
    cells = []
    for _, name in columns:
        value = getattr(row, name)
        cells.append(number(value) if isinstance(value, float) else "" if value is None else str(value))
    return cells


def _html_table(rows: Sequence[QualityRow]) -> str:
    columns = _columns(rows)
    head = "".join(f"<th>{escape(heading)}</th>" for heading, _ in columns)
    body = []
    for row in rows:
        cells = [
            f"<td class='{'after' if name == 'srcc_after' else ''}'>{escape(cell)}</td>"
            for cell, (_, name) in zip(_cells(row, columns), columns, strict=True)
        ]
        body.append(f"<tr class='{'total' if row.total else ''}'>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _card(picture: Judgement) -> str:
    numbers = f"predicted <b>{number(picture.predicted, 2)}</b>, true <b>{number(picture.true, 2)}</b>"
    return card(
        picture.name or picture.kind, numbers, image=picture.image, alt=picture.name or "picture", text=picture.text
    )


def _scatter_figure(points: Sequence[Judgement]) -> str:
    shown = [point for point in points if math.isfinite(point.predicted) and math.isfinite(point.true)]
    caption = f"{len(shown)} held-out pictures."
    if len(shown) < len(points):
        caption += f" Not drawn: {len(points) - len(shown)}, whose answer held no score or whose rating is missing."
    caption += (
        " Only the order is trained, so the points should rise from left to right; they need not lie on a diagonal."
    )
    return figure(_draw_scatter(shown), "Scatter of predicted against true quality", caption)


def _draw_scatter(points: Sequence[Judgement]) -> Any:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(point.kind for point in points))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 4.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.set_xlabel("true quality")
        axes.set_ylabel("predicted quality")
        for position, kind in enumerate(kinds):
            group = [point for point in points if point.kind == kind]
            axes.scatter(
                [point.true for point in group],
                [point.predicted for point in group],
                s=22,
                alpha=0.65,
                linewidths=0,
                color=COLOURS[position % len(COLOURS)],
                marker=MARKERS[position % len(MARKERS)],
                label=plot_text(kind) or "pictures",
            )
        if any(kinds):
            figure.legend(loc="outside right upper", handletextpad=0.3, borderaxespad=1.0)
    return figure


_TABLE_CAPTION = (
    "<p class='caption'>SRCC: rank correlation (Spearman), PLCC: linear correlation (Pearson), both with the true "
    "quality of photographs that were not trained on. Control: the same run with shuffled ratings, which should stay "
    "near zero.</p>"
)
_CURVE_CAPTION = (
    "Thin: every step; thick: running mean (curves of more than 25 points). The control saw shuffled ratings."
)
