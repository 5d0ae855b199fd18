"""One-page report of a run that learned to answer questions; same page, safety and figures as the quality report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from thurl.training import report
from thurl.training.results import write_atomically


__all__ = ["AnswerCard", "write_answer_page"]


@dataclass(frozen=True)
class AnswerCard:
    """A question with what the model wrote and the right answer, all untrusted text."""

    task: str
    question: str
    reply: str
    answer: str


def write_answer_page(
    path: str | os.PathLike[str],
    *,
    title: str,
    summary: str,
    facts: Sequence[tuple[str, str]],
    table: Sequence[Sequence[str]],
    curves: report.Curves,
    examples: Mapping[str, Sequence[AnswerCard]],
    notes: Sequence[str] = (),
    timing: Sequence[Sequence[str]] = (),
) -> None:
    """Write the page.

    Args:
        path: `.html` file; folders are made.
        title, summary: heading, and what ran on what.
        facts: headline numbers as (label, value).
        table: headings, rows, total last.
        curves: panel -> line -> (steps, values); the first line of a panel is the run, the others are controls.
        examples: heading -> cards; empty groups are left out.
        notes: what a reader must know to believe the numbers.
        timing: rows of `thurl.training.timing.phase_rows`.
    """
    escape, section = report._escape, report._section
    parts = [f"<header><h1>{escape(title)}</h1><p class='lead'>{escape(summary)}</p></header>"]
    tiles = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in facts)
    parts.append(f"<dl class='facts'>{tiles}</dl>")
    parts.append(section("Exact answers", report._text_table(table) + _CAPTION))
    if curves:
        drawing = report._draw_curves(curves)
        parts.append(section("Learning curves", report._figure(drawing, "Curves over training steps", _CURVES)))
    for heading, cards in examples.items():
        if cards:
            parts.append(section(heading, f"<div class='gallery'>{''.join(map(_card, cards))}</div>"))
    if timing:
        parts.append(section("Where the time went", report._text_table(timing)))
    if notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        parts.append(section("Notes", f"<ul class='notes'>{items}</ul>"))
    parts.append(f"<footer>{escape(report._environment_line())}</footer>")
    write_atomically(path, report._PAGE.format(title=escape(title), body="\n".join(parts)))


def _card(card: AnswerCard) -> str:
    caption = f"<span class='name'>{_short(card.task)}</span><span class='numbers'>right: {_short(card.answer)}</span>"
    words = f"<blockquote>{_short(card.question)}</blockquote><blockquote><b>{_short(card.reply)}</b></blockquote>"
    return f"<figure class='card'><figcaption>{caption}{words}</figcaption></figure>"


def _short(text: str) -> str:
    cut = text if len(text) <= report.MAX_TEXT else text[: report.MAX_TEXT] + " \N{HORIZONTAL ELLIPSIS}"
    return report._escape(cut)


_CAPTION = (
    "<p class='caption'>Accuracy: share of exact answers, decoded greedily. Unparsed: share of replies without a "
    "readable answer; they count as wrong.</p>"
)
_CURVES = "Thin: every entry; thick: running mean (curves of more than 25 points). Grey: the control."
