"""Parts of a manifest that share no person, no video and no source of a forgery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from thurl.forensics.deepfake.manifest import FaceItem
from thurl.forensics.splits import assign_parts, connected_units


__all__ = ["split_by_identity"]


def split_by_identity(
    items: Sequence[FaceItem], parts: Mapping[str, float], *, seed: int = 0
) -> dict[str, list[FaceItem]]:
    """Disjoint parts in which no person, and no video, is in two.

    People who occur in one picture are kept together, so few swaps between many people may make one large group.
    Items without identities are split by video, a forgery together with its `original`.

    Args:
        items: whatever their `split`.
        parts: name to share; positive numbers that add up to 1, counted in groups.
        seed: another seed is another split.

    Returns:
        Items of each part in their old order with their new `split`; no part is empty.

    Raises:
        UsageError: wrong `parts`.
        DataError: fewer groups than parts.
    """
    units = connected_units(_belonging(item) for item in items)
    part_of = assign_parts(
        units,
        parts,
        seed=seed,
        what=f"{len(items)} faces",
        fix="give videos of more people, or fewer parts",
    )
    result: dict[str, list[FaceItem]] = {part: [] for part in parts}
    for item, unit in zip(items, units, strict=True):
        result[part_of[unit]].append(replace(item, split=part_of[unit]))
    return result


def _belonging(item: FaceItem) -> list[str]:
    people = [f"person {item.dataset}\0{name}" for name in item.identities]
    # A forgery shows the person of its original, whether or not anybody has a name.
    source = item.original or (item.video if item.fake == 0 else "")
    sources = [f"source {item.dataset}\0{source}"] if source else []
    return [*people, *sources, "video " + "\0".join(map(str, item.video_key))]
