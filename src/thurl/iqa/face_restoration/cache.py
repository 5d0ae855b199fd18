"""Results that are there already, by content: a second run, or one after a kill, computes only what is missing.

A value is kept under a digest of the metric (name, version, weights, seed) and of the bytes of the files it was
computed from. Values lie in one file of JSON lines, feature vectors in one `.npy` file each. Undefined values are not
kept: they are tried again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


__all__ = ["ResultCache", "result_key"]


def result_key(
    metric: str, version: str, fingerprint: str, digests: Mapping[str, str], landmarks: Sequence | None
) -> str:
    """Key of one result.

    Args:
        metric, version, fingerprint: identify how it was computed.
        digests: kind of file ("restored", "lq", "gt") to SHA-1, those that the metric looks at.
        landmarks: points, for a metric that looks at them.
    """
    parts = [metric, version, fingerprint, sorted(digests.items()), landmarks]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class ResultCache:
    """Results in a folder, or in memory only.

    Args:
        folder: made when the first result is written; None keeps nothing on disk.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None):
        self.folder = Path(folder) if folder is not None else None
        self._values: dict[str, float] = {}
        self._records: dict[str, Any] = {}
        self._features: dict[str, np.ndarray] = {}
        self._unwritten: list[str] = []
        file = self._file
        if file is not None and file.is_file():
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                    if "record" in entry:
                        self._records[str(entry["key"])] = entry["record"]
                    else:
                        self._values[str(entry["key"])] = float(entry["value"])
                except (ValueError, KeyError, TypeError):
                    continue  # a line that a kill has cut off

    @property
    def _file(self) -> Path | None:
        return None if self.folder is None else self.folder / "values.jsonl"

    def value(self, key: str) -> float | None:
        """The number under a key; None when there is none."""
        return self._values.get(key)

    def keep(self, key: str, value: float) -> None:
        """Remember a number; NaN is not kept."""
        if not math.isnan(value):
            self._values[key] = value
            self._unwritten.append(json.dumps({"key": key, "value": repr(value)}))

    def record(self, key: str) -> Any:
        """The JSON value under a key; None when there is none."""
        return self._records.get(key)

    def keep_record(self, key: str, record: Any) -> None:
        """Remember a JSON value."""
        if self._records.get(key) != record:
            self._records[key] = record
            self._unwritten.append(json.dumps({"key": key, "record": record}))

    def features(self, key: str) -> np.ndarray | None:
        """The vector under a key; None when there is none."""
        if key in self._features:
            return self._features[key]
        path = self._features_file(key)
        if path is None or not path.is_file():
            return None
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None  # cut off: computed again

    def keep_features(self, key: str, row: np.ndarray) -> None:
        """Remember a vector."""
        path = self._features_file(key)
        if path is None:
            self._features[key] = row
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, row, allow_pickle=False)

    def flush(self) -> None:
        """Write what is new to the disk."""
        file = self._file
        if file is not None and self._unwritten:
            file.parent.mkdir(parents=True, exist_ok=True)
            # A line that was cut off before must not swallow the next one.
            with open(file, "a+b") as target:
                target.seek(0, os.SEEK_END)
                if target.tell():
                    target.seek(-1, os.SEEK_END)
                    if target.read(1) != b"\n":
                        target.write(b"\n")
                target.write(("\n".join(self._unwritten) + "\n").encode())
        self._unwritten.clear()

    def _features_file(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / "features" / key[:2] / f"{key}.npy"
