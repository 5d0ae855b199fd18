"""One-page run report: a single HTML file with its figures inside, readable in any browser and on paper, no network.

Everything a model or a label file wrote is untrusted text: it is escaped, stripped of control characters, and the page
forbids scripts and outside resources.
"""

from __future__ import annotations

import base64
import html
import io
import math
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thurl.training.results import environment, write_atomically


if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.table import Table


__all__ = ["Judgement", "QualityRow", "quality_table", "write_quality_report"]

Curves = Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]

MAX_TEXT = 1500
"""Characters of a model's answer that are shown."""
MAX_SIDE = 384
"""Pixels of the longer side of a shown picture; smaller ones are shown as they are."""

# Okabe and Ito's colours, which stay apart for colour-blind readers; the marker says the same again in grey print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6A3D9A", "#777777")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_INK, _MUTED, _GRID = "#1d2733", "#6b7785", "#e4e8ec"
_STYLE = {
    "font.size": 9.5,
    "axes.edgecolor": "#b8c0c8",
    "axes.labelcolor": _INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}


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
    parts = [f"<header><h1>{_escape(title)}</h1><p class='lead'>{_escape(summary)}</p></header>"]
    if facts:
        tiles = "".join(f"<div><dt>{_escape(label)}</dt><dd>{_escape(value)}</dd></div>" for label, value in facts)
        parts.append(f"<dl class='facts'>{tiles}</dl>")
    if table_rows:
        parts.append(_section("Agreement with the true order", _html_table(table_rows) + _TABLE_CAPTION))
    if any(lines for lines in curves.values()):
        parts.append(
            _section("Learning curves", _figure(_draw_curves(curves), "Curves over training steps", _CURVE_CAPTION))
        )
    if scatter:
        parts.append(_section("Predicted against true quality", _scatter_figure(scatter)))
    for heading, pictures in (("Rated best", best), ("Rated worst", worst), ("Largest errors", misjudged)):
        if pictures:
            parts.append(
                _section(heading, f"<div class='gallery'>{''.join(_card(picture) for picture in pictures)}</div>")
            )
    if timing:
        parts.append(_section("Where the time went", _text_table(timing)))
    if notes:
        items = "".join(f"<li>{_escape(note)}</li>" for note in notes)
        parts.append(_section("Notes", f"<ul class='notes'>{items}</ul>"))
    parts.append(f"<footer>{_escape(_environment_line())}</footer>")
    write_atomically(path, _PAGE.format(title=_escape(title), body="\n".join(parts)))


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
        cells.append(_number(value) if isinstance(value, float) else "" if value is None else str(value))
    return cells


def _number(value: float, digits: int = 3) -> str:
    if not math.isfinite(value):
        return "undefined"
    text = f"{value:.{digits}f}"
    # A typographic minus is as wide as a digit; "-0.000" says nothing.
    return (text[1:] if float(text) == 0 else "\N{MINUS SIGN}" + text[1:]) if text.startswith("-") else text


def _visible(text: object) -> str:
    """Text with control, bidirectional and unpaired characters, which could hide or reorder words, made visible."""
    hidden = {"Cc", "Cf", "Cs", "Co"}
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if unicodedata.category(character) in hidden and character not in "\n\t"
        else character
        for character in str(text)
    )


def _escape(text: object) -> str:
    return html.escape(_visible(text), quote=True)


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{_escape(heading)}</h2>{content}</section>"


def _html_table(rows: Sequence[QualityRow]) -> str:
    columns = _columns(rows)
    head = "".join(f"<th>{_escape(heading)}</th>" for heading, _ in columns)
    body = []
    for row in rows:
        cells = [
            f"<td class='{'after' if name == 'srcc_after' else ''}'>{_escape(cell)}</td>"
            for cell, (_, name) in zip(_cells(row, columns), columns, strict=True)
        ]
        body.append(f"<tr class='{'total' if row.total else ''}'>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _text_table(rows: Sequence[Sequence[str]]) -> str:
    """First row: headings, last row: total."""
    head, *body = [[_escape(cell) for cell in row] for row in rows]
    lines = [f"<tr class='{'total' if row is body[-1] else ''}'><td>{'</td><td>'.join(row)}</td></tr>" for row in body]
    return f"<table><thead><tr><th>{'</th><th>'.join(head)}</th></tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _card(picture: Judgement) -> str:
    image = ""
    if picture.image is not None:
        # Small pictures are enlarged without smoothing: a browser's interpolation would look like blur.
        shown, small = picture.image.convert("RGB"), max(picture.image.size) < MAX_SIDE
        if not small:
            shown.thumbnail((MAX_SIDE, MAX_SIDE))
        image = (
            f"<img class='{'small' if small else ''}' alt='{_escape(picture.name or 'picture')}' src='{_png(shown)}'>"
        )
    text = picture.text if len(picture.text) <= MAX_TEXT else picture.text[:MAX_TEXT] + " \N{HORIZONTAL ELLIPSIS}"
    numbers = f"predicted <b>{_number(picture.predicted, 2)}</b>, true <b>{_number(picture.true, 2)}</b>"
    name = picture.name or picture.kind
    caption = f"<span class='name'>{_escape(name)}</span>" if name else ""
    words = f"<blockquote>{_escape(text)}</blockquote>" if text.strip() else ""
    words = f"{caption}<span class='numbers'>{numbers}</span>{words}"
    return f"<figure class='card'>{image}<figcaption>{words}</figcaption></figure>"


def _figure(drawing: Any, alt: str, caption: str) -> str:
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=200)
    return (
        f"<figure class='plot'><img alt='{_escape(alt)}' src='{_data_uri(buffer.getvalue())}'>"
        f"<figcaption>{_escape(caption)}</figcaption></figure>"
    )


def _png(image: Image) -> str:
    # PNG, because JPEG would add a degradation of its own to pictures whose quality is the subject.
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return _data_uri(buffer.getvalue())


def _data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"


def _draw_curves(curves: Curves) -> Any:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    panels = [(name, lines) for name, lines in curves.items() if lines]
    with matplotlib.rc_context(_STYLE):
        layout = ConstrainedLayoutEngine(wspace=0.08)
        figure = Figure(figsize=(8.6, 3.1 if len(panels) > 1 else 3.6), layout=layout)
        FigureCanvasAgg(figure)
        for axes, (name, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            axes.set_title(_plot_text(name))
            axes.set_xlabel("training step")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axes.margins(x=0.02, y=0.08)
            for position, (label, (steps, values)) in enumerate(lines.items()):
                look = (
                    {"color": _COLOURS[0], "zorder": 3}
                    if position == 0
                    else {"color": _MUTED, "linestyle": (0, (4, 2))}
                )
                dense = len(values) > 25
                if dense:
                    axes.plot(steps, values, color=look["color"], linewidth=0.7, alpha=0.3)
                axes.plot(
                    steps,
                    _running_mean(values) if dense else values,
                    label=_plot_text(label),
                    linewidth=2.0 if position == 0 else 1.5,
                    marker=None if dense else _MARKERS[position % len(_MARKERS)],
                    markersize=4,
                    **look,
                )
            if len(lines) > 1:
                axes.legend(loc="best", handlelength=2.4)
    return figure


def _running_mean(values: Sequence[float]) -> list[float]:
    """Centred mean over about a tenth of the curve, shorter at the ends; undefined values are left out."""
    half = max(1, len(values) // 20)
    smooth = []
    for position in range(len(values)):
        window = [v for v in values[max(0, position - half) : position + half + 1] if math.isfinite(v)]
        smooth.append(sum(window) / len(window) if window else math.nan)
    return smooth


def _scatter_figure(points: Sequence[Judgement]) -> str:
    shown = [point for point in points if math.isfinite(point.predicted) and math.isfinite(point.true)]
    caption = f"{len(shown)} held-out pictures."
    if len(shown) < len(points):
        caption += f" Not drawn: {len(points) - len(shown)}, whose answer held no score or whose rating is missing."
    caption += (
        " Only the order is trained, so the points should rise from left to right; they need not lie on a diagonal."
    )
    return _figure(_draw_scatter(shown), "Scatter of predicted against true quality", caption)


def _draw_scatter(points: Sequence[Judgement]) -> Any:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(point.kind for point in points))
    with matplotlib.rc_context(_STYLE):
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
                color=_COLOURS[position % len(_COLOURS)],
                marker=_MARKERS[position % len(_MARKERS)],
                label=_plot_text(kind) or "pictures",
            )
        if any(kinds):
            figure.legend(loc="outside right upper", handletextpad=0.3, borderaxespad=1.0)
    return figure


def _plot_text(text: str) -> str:
    """A label as it is written: matplotlib would read `$` as mathematics and hide labels that begin with `_`."""
    return _visible(text).replace("$", r"\$").lstrip("_")


def _environment_line() -> str:
    where = environment()
    names = ("thurl", "python", "torch", "transformers", "trl")
    parts = [f"{name} {where['versions'][name]}" for name in names if where["versions"].get(name)]
    machine = where["machine"]
    parts.append(", ".join(machine["cuda"]) or f"{machine['cpu']}, {machine['cores']} cores")
    return _join(parts)


def _join(parts: Iterable[str]) -> str:
    return " \N{MIDDLE DOT} ".join(parts)


_TABLE_CAPTION = (
    "<p class='caption'>SRCC: rank correlation (Spearman), PLCC: linear correlation (Pearson), both with the true "
    "quality of photographs that were not trained on. Control: the same run with shuffled ratings, which should stay "
    "near zero.</p>"
)
_CURVE_CAPTION = (
    "Thin: every step; thick: running mean (curves of more than 25 points). The control saw shuffled ratings."
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light; --ink: #1d2733; --muted: #5f6b78; --rule: #dfe4e9; --accent: #0072b2; --soft: #f6f8fa; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }}
main {{ max-width: 58rem; margin: 0 auto; padding: 3rem 1.5rem 4rem; }}
h1 {{ font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.01em; margin: 0 0 .6rem; }}
h2 {{ font-size: 1.15rem; margin: 0 0 1rem; padding-bottom: .4rem; border-bottom: 1px solid var(--rule); }}
section {{ margin-top: 2.8rem; }}
.lead {{ margin: 0; max-width: 46rem; color: #3a4653; font-size: 1.06rem; white-space: pre-line; }}
.facts {{ display: flex; flex-wrap: wrap; gap: 0 2.6rem; margin: 1.8rem 0 0; padding: 1.1rem 0;
  border: solid var(--rule); border-width: 1px 0; }}
.facts dt {{ color: var(--muted); font-size: .85rem; }}
.facts dd {{ margin: 0; font-size: 1.45rem; font-weight: 600; font-variant-numeric: tabular-nums; }}
table {{ width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th {{ text-align: right; font-weight: 600; font-size: .85rem; color: var(--muted); padding: .35rem .6rem;
  border-bottom: 1.5px solid var(--ink); }}
td {{ text-align: right; padding: .4rem .6rem; border-bottom: 1px solid var(--rule); }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
td.after {{ color: var(--accent); font-weight: 600; }}
tr.total td {{ font-weight: 700; border-top: 1.5px solid var(--ink); border-bottom: 0; }}
.caption, figcaption {{ color: var(--muted); font-size: .88rem; }}
.caption {{ margin: .8rem 0 0; max-width: 46rem; }}
figure {{ margin: 0; }}
.plot img {{ width: 100%; height: auto; display: block; }}
.plot figcaption {{ margin-top: .5rem; max-width: 46rem; }}
.gallery {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.4rem; }}
.card {{ border: 1px solid var(--rule); border-radius: 6px; overflow: hidden; break-inside: avoid; }}
.card img {{ width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--soft); display: block; }}
.card img.small {{ image-rendering: pixelated; }}
.card figcaption {{ padding: .7rem .9rem .9rem; }}
.card .name {{ display: block; color: var(--ink); font-weight: 600; }}
.card .numbers {{ font-variant-numeric: tabular-nums; }}
.card b {{ color: var(--ink); }}
blockquote {{ margin: .6rem 0 0; padding: .5rem .7rem; background: var(--soft); border-left: 3px solid #c6d3de;
  color: var(--ink); font: .82rem/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }}
.notes {{ margin: 0; padding-left: 1.2rem; max-width: 46rem; }}
.notes li {{ margin-bottom: .35rem; }}
footer {{ margin-top: 3rem; padding-top: .9rem; border-top: 1px solid var(--rule); color: var(--muted);
  font-size: .82rem; }}
@page {{ margin: 18mm 16mm; }}
@media print {{
  body {{ font-size: 10pt; }}
  main {{ max-width: none; padding: 0; }}
  section {{ margin-top: 1.6rem; break-inside: avoid; }}
  .gallery {{ grid-template-columns: repeat(3, 1fr); }}
}}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
