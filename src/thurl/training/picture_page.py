"""One-page report of a run that changes pictures; same page, safety and figures as the quality report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thurl.training import report
from thurl.training.results import write_atomically


if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["PictureRow", "write_picture_page"]


@dataclass(frozen=True)
class PictureRow:
    """One picture in several states, from left to right by name, and a caption; names and caption are untrusted."""

    states: Mapping[str, Image]
    caption: str = ""


def write_picture_page(
    path: str | os.PathLike[str],
    *,
    title: str,
    summary: str,
    facts: Sequence[tuple[str, str]],
    table: Sequence[Sequence[str]],
    curves: report.Curves,
    pictures: Sequence[PictureRow],
    notes: Sequence[str] = (),
    timing: Sequence[Sequence[str]] = (),
) -> None:
    """Write the page.

    Args:
        path: `.html` file; folders are made.
        title, summary: heading, and what ran on what.
        facts: headline numbers as (label, value).
        table: headings, rows, the most important last.
        curves: panel -> line -> (steps, values); the first line of a panel is the run, the others are controls.
        pictures: examples.
        notes: what a reader must know to believe the numbers.
        timing: rows of `thurl.training.timing.phase_rows`.
    """
    escape, section = report._escape, report._section
    parts = [f"<header><h1>{escape(title)}</h1><p class='lead'>{escape(summary)}</p></header>"]
    tiles = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in facts)
    parts.append(f"<dl class='facts'>{tiles}</dl>")
    parts.append(section("Results", report._text_table(table)))
    if curves:
        drawing = report._draw_curves(curves)
        parts.append(section("Learning curves", report._figure(drawing, "Curves over training steps", _CURVES)))
    for number, row in enumerate(pictures, start=1):
        cards = "".join(_card(name, picture) for name, picture in row.states.items())
        caption = f"<p class='caption'>{escape(row.caption)}</p>" if row.caption else ""
        parts.append(section(f"Example {number}", f"<div class='gallery'>{cards}</div>{caption}"))
    if timing:
        parts.append(section("Where the time went", report._text_table(timing)))
    if notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        parts.append(section("Notes", f"<ul class='notes'>{items}</ul>"))
    parts.append(f"<footer>{escape(report._environment_line())}</footer>")
    write_atomically(path, report._PAGE.format(title=escape(title), body="\n".join(parts)))


def _card(name: str, picture: Image) -> str:
    # Small pictures are enlarged without smoothing: a browser's interpolation would look like blur.
    shown = picture.convert("RGB")
    small = max(shown.size) < report.MAX_SIDE
    if not small:
        shown.thumbnail((report.MAX_SIDE, report.MAX_SIDE))
    image = f"<img class='{'small' if small else ''}' alt='{report._escape(name)}' src='{report._png(shown)}'>"
    caption = f"<figcaption><span class='name'>{report._escape(name)}</span></figcaption>"
    return f"<figure class='card'>{image}{caption}</figure>"


_CURVES = "Thin: every entry; thick: running mean (curves of more than 25 points). Grey: the control."
