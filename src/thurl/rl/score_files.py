"""Scoring many picture files into a CSV that survives being interrupted.

One line per picture, written as soon as its score is there. A second run with the same settings goes on where the
first ended; a line that was cut off is dropped. Beside `scores.csv` lies `scores.csv.settings.json` with all that
makes the scores what they are (model, question, decoding): scores of other settings are never mixed into the file.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thurl.data.image_files import find_images
from thurl.errors import DataError, UsageError
from thurl.rl.decoding import Decoding, QualityScore, make_decoding
from thurl.rl.evaluation import jsonable
from thurl.training.results import write_atomically


if TYPE_CHECKING:
    from thurl.rl.scorer import QualityScorer

__all__ = ["CSV_COLUMNS", "ScoredFile", "find_images", "read_scores", "score_files", "settings_path"]

CSV_COLUMNS = ("image", "score", "std", "ok", "n_ok", "n_samples", "text", "error")


@dataclass(frozen=True)
class ScoredFile:
    """One line of a score file.

    Attributes:
        image: path as it was found.
        score, std, ok, text, error: as in `QualityScore`.
        n_ok, n_samples: usable answers and answers in all; 0 and 0 for a picture that cannot be opened.
        resumed: the line was in the file already.
    """

    image: str
    score: float
    std: float
    ok: bool
    n_ok: int
    n_samples: int
    text: str
    error: str
    resumed: bool = False

    def row(self) -> dict[str, Any]:
        """The line as a JSON object; undefined numbers are null."""
        return {name: jsonable(getattr(self, name)) for name in CSV_COLUMNS}


def settings_path(csv_path: str | os.PathLike[str]) -> Path:
    """The file beside a score file that holds its settings."""
    return Path(f"{os.fspath(csv_path)}.settings.json")


def score_files(
    scorer: QualityScorer,
    paths: Sequence[str | os.PathLike[str]],
    *,
    csv_path: str | os.PathLike[str] | None = None,
    decoding: Decoding | None = None,
    batch_size: int = 8,
    retry_failed: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> Iterator[ScoredFile]:
    """Score picture files one batch at a time; a picture that cannot be opened is a line with its error.

    Args:
        scorer: the model.
        paths: picture files.
        csv_path: score file to write or to go on with; None writes none.
        decoding: decoding settings; **options: single fields of `Decoding`.
        batch_size: answers generated together.
        retry_failed: score pictures without a score in `csv_path` again.
        overwrite: begin `csv_path` anew.

    Yields:
        Lines that were in the file already, then new ones as they are written.

    Raises:
        UsageError: `csv_path` was written with other settings, or is no score file.
    """
    decoding = make_decoding(decoding, options)
    names = [os.fspath(path) for path in paths]
    done: dict[str, ScoredFile] = {}
    target = Path(csv_path) if csv_path is not None else None
    if target is not None:
        settings = {**scorer.settings(), **decoding.settings()}
        done = _prepare(target, settings, retry_failed=retry_failed, overwrite=overwrite)
    for name in names:
        if name in done:
            yield done[name]
    todo = [name for name in names if name not in done]
    step = max(1, batch_size // decoding.n_samples)
    file = target.open("a", encoding="utf-8", newline="", buffering=1) if target is not None else None
    try:
        for start in range(0, len(todo), step):
            chunk = todo[start : start + step]
            scores = scorer.score(chunk, decoding=decoding, batch_size=batch_size, errors="mark")
            for name, score in zip(chunk, scores, strict=True):
                line = _line(name, score)
                if file is not None:
                    file.write(_format(line))
                yield line
    finally:
        if file is not None:
            file.close()


def read_scores(path: str | os.PathLike[str]) -> list[ScoredFile]:
    """Read a score file, or any CSV with the columns `image` and `score`.

    Raises:
        DataError: it cannot be read, lacks these columns, or holds a score that is no number (all rows listed).
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    reader = csv.DictReader(io.StringIO(text))
    if not {"image", "score"} <= set(reader.fieldnames or ()):
        raise DataError(f"{path} has the columns {reader.fieldnames}: `image` and `score` are needed")
    escaped = tuple(reader.fieldnames or ()) == CSV_COLUMNS
    rows: list[ScoredFile] = []
    problems: list[str] = []
    for number, row in enumerate(reader, start=2):
        try:
            rows.append(_parse(row, escaped=escaped))
        except (ValueError, TypeError) as error:
            problems.append(f"row {number}: {error}")
    if problems:
        shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise DataError(f"{path}: {shown}")
    return rows


def _prepare(target: Path, settings: dict[str, Any], *, retry_failed: bool, overwrite: bool) -> dict[str, ScoredFile]:
    """Make the score file and its settings ready for appending; the good lines it already holds."""
    fingerprint = _fingerprint(settings)
    sidecar = settings_path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    rows: list[ScoredFile] = []
    if target.exists() and target.stat().st_size > 0 and not overwrite:
        known = _read_settings(sidecar)
        if known.get("fingerprint") != fingerprint:
            changes = _changes(known.get("settings") or {}, settings)
            raise UsageError(
                f"{target} was written with other settings ({changes}): scores of both would be mixed. "
                "Choose another CSV file, or overwrite this one (--overwrite)"
            )
        rows = _repair(target, retry_failed)
    else:
        write_atomically(target, _header())
    document = {"fingerprint": fingerprint, "settings": jsonable(settings)}
    write_atomically(sidecar, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return {row.image: row for row in rows}


def _repair(target: Path, retry_failed: bool) -> list[ScoredFile]:
    """Keep the whole lines of an interrupted run; rewrite the file where that drops something."""
    data = target.read_bytes()
    whole = data[: data.rfind(b"\n") + 1].decode("utf-8", errors="replace")
    lines = whole.splitlines(keepends=True)
    header = _header()
    if lines and lines[0] != header:
        raise UsageError(f"{target} is no score file (its first line is {lines[0].strip()[:80]!r}): choose another")
    rows: dict[str, ScoredFile] = {}
    for line in lines[1:]:
        cells = next(csv.reader([line]), [])
        if len(cells) != len(CSV_COLUMNS) or "\0" in line or "\ufffd" in cells[0]:
            continue
        try:
            row = _parse(dict(zip(CSV_COLUMNS, cells, strict=True)))
        except ValueError:
            continue
        if row.ok or not retry_failed:
            rows[row.image] = row
    text = header + "".join(_format(row) for row in rows.values())
    if text.encode() != data:
        write_atomically(target, text)
    return list(rows.values())


def _line(name: str, score: QualityScore) -> ScoredFile:
    return ScoredFile(
        image=name,
        score=score.score,
        std=score.std,
        ok=score.ok,
        n_ok=score.n_ok,
        n_samples=len(score.samples),
        text=score.text,
        error=score.error,
    )


def _header() -> str:
    return ",".join(CSV_COLUMNS) + "\n"


def _format(row: ScoredFile) -> str:
    """One physical line: line breaks are escaped, so that a line that was cut off can be told from a whole one."""
    buffer = io.StringIO()
    cells = [
        _escape(row.image),
        "" if math.isnan(row.score) else repr(row.score),
        "" if math.isnan(row.std) else repr(row.std),
        "1" if row.ok else "0",
        row.n_ok,
        row.n_samples,
        _escape(row.text),
        _escape(row.error),
    ]
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


def _parse(row: dict[str, Any], *, escaped: bool = True) -> ScoredFile:
    def number(name: str) -> float:
        text = (row.get(name) or "").strip()
        try:
            return float(text) if text else math.nan
        except ValueError:
            raise ValueError(f"{name} is {text[:40]!r}, it must be a number or empty") from None

    plain = _unescape if escaped else str  # a path in a file of another origin may hold any backslash
    score = number("score")
    ok = (row.get("ok") or "1").strip().lower() in ("1", "true", "yes") and math.isfinite(score)
    return ScoredFile(
        image=plain(row["image"] or ""),
        score=score if ok else math.nan,
        std=number("std"),
        ok=ok,
        n_ok=int(row.get("n_ok") or ok),
        n_samples=int(row.get("n_samples") or 1),
        text=plain(row.get("text") or ""),
        error=plain(row.get("error") or ""),
        resumed=True,
    )


# Everything str.splitlines breaks at, and the zero byte that a crash of the machine leaves behind.
_UNICODE = re.compile(r"\\u([0-9a-f]{4})")
_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029\0"


def _escape(text: str) -> str:
    text = text.replace("\\", "\\\\")
    for character in _BREAKS:
        text = text.replace(character, f"\\u{ord(character):04x}")
    # A file name that is not UTF-8 holds surrogates, which cannot be written.
    return text.encode("utf-8", "backslashreplace").decode()


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    parts = text.split("\\\\")
    return "\\".join(_UNICODE.sub(lambda match: chr(int(match[1], 16)), part) for part in parts)


def _fingerprint(settings: dict[str, Any]) -> str:
    # Where a model lies does not matter when its weights are known; the batch size is not among the settings.
    kept = {k: v for k, v in settings.items() if k != "model" or not settings.get("weights")}
    return hashlib.sha256(json.dumps(jsonable(kept), sort_keys=True).encode()).hexdigest()[:16]


def _read_settings(sidecar: Path) -> dict[str, Any]:
    try:
        document = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    if not old:
        return "its settings file is missing or broken"
    new = jsonable(new)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name) and name != "prompt"]
    parts = [f"{name}: {old.get(name)} then, {new.get(name)} now" for name in names]
    parts += ["another question"] if old.get("prompt") != new.get("prompt") else []
    return "; ".join(parts)
