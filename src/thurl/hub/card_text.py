"""What the cards of models and of data sets share: lines that stay lines, tables, numbers, citations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


__all__ = ["citation", "fenced", "front_matter", "number", "one_line", "table"]


def one_line(text: Any) -> str:
    """One line that cannot leave its table cell or begin a heading of its own."""
    return " ".join(str(text).split()).replace("|", "\\|")


def number(value: float) -> str:
    """Four digits, "undefined" where there is none."""
    return f"{value:.4g}" if math.isfinite(value) else "undefined"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown; columns after the first to the right."""
    lines: list[Sequence[Any]] = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return "\n".join("| " + " | ".join(one_line(cell) for cell in line) + " |" for line in lines) + "\n"


def front_matter(data: Any) -> str:
    """The metadata block the Hub reads. `data`: a `huggingface_hub.CardData`."""
    return f"---\n{data.to_yaml()}\n---\n"


def fenced(text: str, language: str) -> str:
    """A block of code that `text` cannot end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def citation(title: str, arxiv_id: str) -> str:
    """The section with the BibTeX entry of a paper on arXiv; the year is that of its first version."""
    entry = [
        f"@misc{{arxiv{arxiv_id},",
        f"  title = {{{{{one_line(title)}}}}},",
        f"  year = {{20{arxiv_id[:2]}}},",
        f"  eprint = {{{arxiv_id}}},",
        "  archivePrefix = {arXiv},",
        f"  url = {{https://arxiv.org/abs/{arxiv_id}}}",
        "}",
    ]
    return "## Citation\n\n" + fenced("\n".join(entry), "bibtex")
