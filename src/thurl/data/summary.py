"""What a set of rated pictures looks like, in numbers for the command line and reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from thurl.data.records import RatedImage


__all__ = ["summary"]


def summary(records: Sequence[RatedImage]) -> dict[str, dict[str, Any]]:
    """Figures of each data set, in order of first appearance.

    Returns:
        data set -> `images`; `mos_min`, `mos_max`, `mos_mean` on the data set's own scale; `mos_distinct` values;
        `tied_pairs`, the share in [0, 1] of all pairs with exactly equal MOS, `None` for one picture; `references`,
        how many pristine pictures; `with_std`, how many pictures state a standard deviation.
    """
    groups: dict[str, list[RatedImage]] = {}
    for record in records:
        groups.setdefault(record.dataset, []).append(record)
    return {dataset: _figures(group) for dataset, group in groups.items()}


def _figures(group: list[RatedImage]) -> dict[str, Any]:
    values = [record.mos for record in group]
    counts = Counter(values)
    pairs = len(values) * (len(values) - 1) // 2
    tied = sum(count * (count - 1) // 2 for count in counts.values())
    return {
        "images": len(values),
        "mos_min": min(values),
        "mos_max": max(values),
        "mos_mean": sum(values) / len(values),
        "mos_distinct": len(counts),
        "tied_pairs": tied / pairs if pairs else None,
        "references": len({record.reference for record in group if record.reference}),
        "with_std": sum(record.std is not None for record in group),
    }
