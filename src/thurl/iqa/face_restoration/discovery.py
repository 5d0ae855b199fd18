"""Which files belong together: restored pictures, their inputs, originals and landmarks.

A data set is the first folder below the root; pictures that lie in the root itself form the set `.`. A picture's name
is its path below that folder without ending, so that equal names in two data sets stay apart, and pairs are found by
data set and name, whatever the ending.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from thurl.errors import UsageError
from thurl.iqa.face_restoration.landmarks import Landmarks, Points
from thurl.iqa.face_restoration.pictures import ENDINGS
from thurl.iqa.face_restoration.protocol import NTIRE2025


__all__ = ["FaceItem", "FaceSets", "find_faces"]

ROOT = "."
_NAMED = {
    "restored": "a restored picture",
    "lq": "an LQ picture",
    "gt": "a GT picture",
    "landmarks": "landmarks",
}


@dataclass(frozen=True)
class FaceItem:
    """One picture of the evaluation and what was found for it.

    Attributes:
        dataset, name: together the key.
        restored, lq, gt: files; None where there is none.
        landmarks: five points in pixels of the input, None where there are none.
        problems: what is wrong with it, such as a missing file.
    """

    dataset: str
    name: str
    restored: Path | None = None
    lq: Path | None = None
    gt: Path | None = None
    landmarks: Points | None = None
    problems: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """`dataset/name`."""
        return f"{self.dataset}/{self.name}"


@dataclass(frozen=True)
class FaceSets:
    """Everything found.

    Attributes:
        items: sorted by data set and name; pictures without a restoration are among them.
        warnings: one message per kind of trouble, each naming all files concerned.
        missing: pictures that the protocol wants and that were not found, by data set.
    """

    items: tuple[FaceItem, ...]
    warnings: tuple[str, ...] = ()
    missing: Mapping[str, int] = field(default_factory=dict)


def find_faces(
    restored: Path,
    *,
    lq: Path | None = None,
    gt: Path | None = None,
    landmarks: Landmarks | None = None,
    protocol: str = "free",
) -> FaceSets:
    """Find and pair the pictures.

    Args:
        restored, lq, gt: roots with one folder per data set.
        landmarks: points per face.
        protocol: with "ntire2025" the data sets must be those of the challenge.

    Raises:
        UsageError: a root that is no folder, no picture in it, unknown data sets; all problems together.
    """
    roots = {"restored": restored, "lq": lq, "gt": gt}
    problems = [f"--{kind} {root}: no such folder" for kind, root in roots.items() if root and not root.is_dir()]
    if problems:
        raise UsageError(problems)
    found = {kind: _pictures(root) for kind, root in roots.items() if root is not None}
    if not found["restored"]:
        raise UsageError(f"--restored {restored}: no picture in it (endings: {', '.join(ENDINGS)})")
    datasets = sorted({dataset for dataset, _ in found["restored"]})
    if protocol == "ntire2025" and (unknown := [name for name in datasets if name not in NTIRE2025]):
        raise UsageError(
            f"--restored {restored}: the folders {', '.join(unknown)} are no data sets of ntire2025 "
            f"({', '.join(NTIRE2025)}); rename them, or take --protocol free"
        )
    # An input without a restoration is a failure of the entry. Originals beyond those asked for are not.
    keys = sorted(set(found["restored"]) | set(found.get("lq", {})))
    items: list[FaceItem] = []
    unmatched: dict[str, list[str]] = {"restored": [], "lq": [], "gt": [], "landmarks": []}
    for dataset, name in keys:
        trouble = []
        files: dict[str, Path | None] = {}
        for kind, files_of in found.items():
            paths = files_of.get((dataset, name), [])
            files[kind] = paths[0] if len(paths) == 1 else None
            if not paths:
                trouble.append(f"without {_NAMED[kind]}")
                unmatched[kind].append(f"{dataset}/{name}")
            elif len(paths) > 1:
                trouble.append(f"{kind}: {len(paths)} files of one name: {', '.join(path.name for path in paths)}")
        points = None
        if landmarks is not None:
            points = landmarks.of(dataset, name)
            if points is None:
                unmatched["landmarks"].append(f"{dataset}/{name}")
                trouble.append("without landmarks")
        items.append(FaceItem(dataset, name, landmarks=points, problems=tuple(trouble), **files))
    warnings = [
        f"{len(names)} of {len(items)} pictures without {_NAMED[kind]}: {', '.join(names)}"
        for kind, names in unmatched.items()
        if names
    ]
    missing = {}
    if protocol == "ntire2025":
        counts = {name: sum(item.dataset == name for item in items) for name in NTIRE2025}
        missing = {name: face.images - counts[name] for name, face in NTIRE2025.items() if counts[name] < face.images}
        surplus = [f"{name}: {counts[name]}" for name, face in NTIRE2025.items() if counts[name] > face.images]
        if missing:
            short = ", ".join(f"{name} {counts[name]} of {NTIRE2025[name].images}" for name in missing)
            warnings.append(f"the set is not complete: {short}")
        if surplus:
            warnings.append(f"more pictures than the challenge has: {', '.join(surplus)}")
    return FaceSets(tuple(items), tuple(warnings), missing)


def _pictures(root: Path) -> dict[tuple[str, str], list[Path]]:
    found: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if path.suffix.lower() not in ENDINGS or any(part.startswith(".") for part in relative.parts):
            continue
        if path.is_dir():
            continue
        dataset, rest = (relative.parts[0], relative.parts[1:]) if len(relative.parts) > 1 else (ROOT, relative.parts)
        name = "/".join((*rest[:-1], Path(rest[-1]).stem))
        found.setdefault((dataset, name), []).append(path)
    return found
