"""One-page report of a run that changes pictures; same page, safety and figures as the quality report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thurl.training.page import Curves, card, draw_curves, escape, figure, gallery, section, text_table, write_page


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
    curves: Curves,
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
    sections = [section("Results", text_table(table))]
    if curves:
        drawing = figure(draw_curves(curves), "Curves over training steps", _CURVES)
        sections.append(section("Learning curves", drawing))
    for number, row in enumerate(pictures, start=1):
        cards = gallery(card(name, "", image=picture, alt=name) for name, picture in row.states.items())
        caption = f"<p class='caption'>{escape(row.caption)}</p>" if row.caption else ""
        sections.append(section(f"Example {number}", cards + caption))
    write_page(path, title=title, summary=summary, facts=facts, sections=sections, timing=timing, notes=notes)


_CURVES = "Thin: every entry; thick: running mean (curves of more than 25 points). Grey: the control."
