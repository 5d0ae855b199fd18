"""The parts of a one-page run report: a single HTML file with its figures inside, readable in any browser, no network.

Everything a model or a label file wrote is untrusted text: it is escaped, stripped of control characters, and the page
forbids scripts and outside resources. What a kind of run shows of itself is put together elsewhere
(`thurl.training.report`, `thurl.training.answer_page`, `thurl.recipe.exif_report`).
"""

from __future__ import annotations

import base64
import html
import io
import math
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thurl.training.results import environment, write_atomically


if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "COLOURS",
    "MARKERS",
    "MAX_SIDE",
    "MAX_TEXT",
    "STYLE",
    "Curves",
    "card",
    "draw_curves",
    "escape",
    "figure",
    "gallery",
    "number",
    "plot_png",
    "plot_text",
    "section",
    "text_table",
    "write_page",
]

Curves = Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]
"""Panel -> line -> (steps, values)."""

MAX_TEXT = 1500
"""Characters of a model's answer that are shown."""
MAX_SIDE = 384
"""Pixels of the longer side of a shown picture; smaller ones are shown as they are."""

# Okabe and Ito's colours, which stay apart for colour-blind readers; the marker says the same again in grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6A3D9A", "#777777")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_INK, _MUTED, _GRID = "#1d2733", "#6b7785", "#e4e8ec"
STYLE = {
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


def write_page(
    path: str | os.PathLike[str],
    *,
    title: str,
    summary: str,
    facts: Sequence[tuple[str, str]] = (),
    sections: Sequence[str] = (),
    timing: Sequence[Sequence[str]] = (),
    notes: Sequence[str] = (),
) -> None:
    """Write a page in one step.

    Args:
        path: `.html` file; folders are made.
        title: heading of the page.
        summary: what ran and what came out, in two or three sentences.
        facts: headline numbers as (label, value).
        sections: results of `section`, in their order.
        timing: rows of `thurl.training.timing.phase_rows`.
        notes: what a reader must know to believe the numbers: data, limits, settings.
    """
    parts = [f"<header><h1>{escape(title)}</h1><p class='lead'>{escape(summary)}</p></header>"]
    if facts:
        tiles = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in facts)
        parts.append(f"<dl class='facts'>{tiles}</dl>")
    parts += sections
    if timing:
        parts.append(section("Where the time went", text_table(timing)))
    if notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        parts.append(section("Notes", f"<ul class='notes'>{items}</ul>"))
    parts.append(f"<footer>{escape(_environment_line())}</footer>")
    write_atomically(path, _PAGE.format(title=escape(title), body="\n".join(parts)))


def escape(text: object) -> str:
    """Untrusted text as HTML."""
    return html.escape(_visible(text), quote=True)


def _visible(text: object) -> str:
    """Text with control, bidirectional and unpaired characters, which could hide or reorder words, made visible."""
    hidden = {"Cc", "Cf", "Cs", "Co"}
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if unicodedata.category(character) in hidden and character not in "\n\t"
        else character
        for character in str(text)
    )


def number(value: float, digits: int = 3) -> str:
    """A number as a reader wants it; NaN and infinities are called undefined."""
    if not math.isfinite(value):
        return "undefined"
    text = f"{value:.{digits}f}"
    # A typographic minus is as wide as a digit; "-0.000" says nothing.
    return (text[1:] if float(text) == 0 else "\N{MINUS SIGN}" + text[1:]) if text.startswith("-") else text


def section(heading: str, content: str) -> str:
    """A heading, untrusted text, with HTML below it."""
    return f"<section><h2>{escape(heading)}</h2>{content}</section>"


def text_table(rows: Sequence[Sequence[str]], *, total: bool = True) -> str:
    """A table of untrusted texts: first row headings, last row the total where there is one."""
    head, *body = [[escape(cell) for cell in row] for row in rows]
    lines = [
        f"<tr class='{'total' if total and row is body[-1] else ''}'><td>{'</td><td>'.join(row)}</td></tr>"
        for row in body
    ]
    return f"<table><thead><tr><th>{'</th><th>'.join(head)}</th></tr></thead><tbody>{''.join(lines)}</tbody></table>"


def gallery(cards: Iterable[str]) -> str:
    """Results of `card`, side by side."""
    return f"<div class='gallery'>{''.join(cards)}</div>"


def card(name: str, numbers: str, *, image: Image | None = None, alt: str = "picture", text: str = "") -> str:
    """A picture with its name, numbers and words.

    Args:
        name: untrusted text; may be empty.
        numbers: HTML.
        image: shown in at most `MAX_SIDE` pixels.
        alt: what a reader without the picture is told.
        text: untrusted, shown as a quotation and cut after `MAX_TEXT` characters.
    """
    shown = ""
    if image is not None:
        # Small pictures are enlarged without smoothing: a browser's interpolation would look like blur.
        picture, small = image.convert("RGB"), max(image.size) < MAX_SIDE
        if not small:
            picture.thumbnail((MAX_SIDE, MAX_SIDE))
        shown = f"<img class='{'small' if small else ''}' alt='{escape(alt)}' src='{_png(picture)}'>"
    text = text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " \N{HORIZONTAL ELLIPSIS}"
    caption = f"<span class='name'>{escape(name)}</span>" if name else ""
    words = f"<blockquote>{escape(text)}</blockquote>" if text.strip() else ""
    words = f"{caption}<span class='numbers'>{numbers}</span>{words}"
    return f"<figure class='card'>{shown}<figcaption>{words}</figcaption></figure>"


def figure(drawing: Any, alt: str, caption: str) -> str:
    """A matplotlib figure inside the page."""
    return (
        f"<figure class='plot'><img alt='{escape(alt)}' src='{_data_uri(plot_png(drawing))}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def plot_png(drawing: Any) -> bytes:
    """A matplotlib figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()


def _png(image: Image) -> str:
    # PNG, because JPEG would add a degradation of its own to pictures whose quality is the subject.
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return _data_uri(buffer.getvalue())


def _data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"


def draw_curves(curves: Curves, *, alike: bool = False) -> Any:
    """One panel per name; its first line is the run, the others, dashed and grey, are what it is compared with.

    Args:
        curves: panel -> line -> (steps, values).
        alike: give all lines colours of their own instead.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    panels = [(name, lines) for name, lines in curves.items() if lines]
    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(wspace=0.08)
        figure = Figure(figsize=(8.6, 3.1 if len(panels) > 1 else 3.6), layout=layout)
        FigureCanvasAgg(figure)
        for axes, (name, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            axes.set_title(plot_text(name))
            axes.set_xlabel("training step")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axes.margins(x=0.02, y=0.08)
            for position, (label, (steps, values)) in enumerate(lines.items()):
                look = (
                    {"color": COLOURS[position % len(COLOURS)], "zorder": 3}
                    if position == 0 or alike
                    else {"color": _MUTED, "linestyle": (0, (4, 2))}
                )
                if position >= len(COLOURS):
                    look["linestyle"] = (0, (4, 2))
                dense = len(values) > 25
                if dense:
                    axes.plot(steps, values, color=look["color"], linewidth=0.7, alpha=0.3)
                axes.plot(
                    steps,
                    _running_mean(values) if dense else values,
                    label=plot_text(label),
                    linewidth=2.0 if position == 0 else 1.5,
                    marker=None if dense else MARKERS[position % len(MARKERS)],
                    markersize=4,
                    **look,
                )
            if alike:
                axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=2.4)
            elif len(lines) > 1:
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


def plot_text(text: str) -> str:
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
