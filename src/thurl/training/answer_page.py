"""One-page report of a run that learned to answer questions; same page, safety and figures as the quality report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from thurl.training.page import (
    MAX_TEXT,
    Curves,
    draw_curves,
    escape,
    figure,
    gallery,
    section,
    text_table,
    write_page,
)


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
    curves: Curves,
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
    sections = [section("Exact answers", text_table(table) + _CAPTION)]
    if curves:
        sections.append(section("Learning curves", figure(draw_curves(curves), "Curves over training steps", _CURVES)))
    sections += [section(heading, gallery(map(_card, cards))) for heading, cards in examples.items() if cards]
    write_page(path, title=title, summary=summary, facts=facts, sections=sections, timing=timing, notes=notes)


def _card(card: AnswerCard) -> str:
    caption = f"<span class='name'>{_short(card.task)}</span><span class='numbers'>right: {_short(card.answer)}</span>"
    words = f"<blockquote>{_short(card.question)}</blockquote><blockquote><b>{_short(card.reply)}</b></blockquote>"
    return f"<figure class='card'><figcaption>{caption}{words}</figcaption></figure>"


def _short(text: str) -> str:
    cut = text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " \N{HORIZONTAL ELLIPSIS}"
    return escape(cut)


_CAPTION = (
    "<p class='caption'>Accuracy: share of exact answers, decoded greedily. Unparsed: share of replies without a "
    "readable answer; they count as wrong.</p>"
)
_CURVES = "Thin: every entry; thick: running mean (curves of more than 25 points). Grey: the control."
