"""DiffIQA as released (arXiv 2503.11221): the labels of three people for each image, and the triplets made of them.

    images/{01..06}/<name>_<idx>.png    images/Original/<name>.png
    labels/{A,B,C}/{01..06}/<name>_<idx>.json    {"Picture_AI": {"Name", "File", "ImageSize", "Label"}, ...}

`Label` of `Picture_AI` says how the generated image compares with the reference. The majority of the three counts; an
image on which all three differ is left out. The published split is one of references; it comes with the triplet
files, so a training run reads those (`thurl.iqa.afine.triplets.read_triplets`).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from thurl.data.formats.tables import image_path
from thurl.data.records import RowProblems
from thurl.errors import DataError, MissingRequirementError
from thurl.iqa.afine.triplets import Triplet, triplet_type


__all__ = ["LABELS", "diffiqa_triplets", "majority_label", "read_diffiqa", "read_diffiqa_labels"]

LABELS = {"Positive": 1.0, "Similar": 0.5, "Negative": 0.0}
"""What a person may say, and the label `g` of the image against its reference."""

ANNOTATORS = ("A", "B", "C")

_MAX_BYTES = 1 << 16


def majority_label(labels: Sequence[str]) -> str | None:
    """The label at least two of three people gave; `None` when all differ.

    Raises:
        DataError: not three labels, or an unknown one.
    """
    if len(labels) != len(ANNOTATORS) or not set(labels) <= set(LABELS):
        raise DataError(f"labels are {list(labels)}; three of {', '.join(LABELS)} are needed")
    label, votes = Counter(labels).most_common(1)[0]
    return label if votes > 1 else None


def read_diffiqa_labels(folder: str | os.PathLike[str]) -> dict[str, dict[str, list[str]]]:
    """Labels by scene and version: `{"000006x0y32": {"01": ["Positive", "Similar", "Negative"], ...}, ...}`.

    Args:
        folder: `labels` of the release.

    Raises:
        MissingRequirementError: no such folder, or none of `A`, `B`, `C` in it.
        DataError: files that cannot be read, unknown labels, images without three of them; the first 20 and the count.
    """
    root = Path(folder)
    absent = [name for name in ANNOTATORS if not (root / name).is_dir()]
    if absent:
        raise MissingRequirementError(f"{root}: no folder {', '.join(absent)}; give the folder `labels` of DiffIQA")
    problems = RowProblems(str(root), fix="Copy these files again.")
    found: dict[str, dict[str, dict[str, str]]] = {}
    for annotator in ANNOTATORS:
        for path in sorted((root / annotator).glob("*/*.json")):
            problems.file = path.relative_to(root).as_posix()
            scene, _, version = path.stem.rpartition("_")
            if not scene or version != path.parent.name:
                problems.add(1, f"is in folder {path.parent.name}; its name must end in _{path.parent.name}")
                continue
            label = _read_label(path, problems)
            if label is not None:
                found.setdefault(scene, {}).setdefault(version, {})[annotator] = label
    for scene, versions in found.items():
        for version, labels in versions.items():
            if len(labels) != len(ANNOTATORS):
                problems.file = f"{scene}_{version}"
                problems.add(1, f"has a label of {', '.join(labels)} only; three are needed")
    problems.raise_if_any()
    if not found:
        raise DataError(f"{root}: no label file in it; they lie in <A,B,C>/<01..06>/<name>_<idx>.json")
    return {
        scene: {version: [labels[name] for name in ANNOTATORS] for version, labels in sorted(versions.items())}
        for scene, versions in sorted(found.items())
    }


def diffiqa_triplets(
    labels: Mapping[str, Mapping[str, Sequence[str]]],
    *,
    images: str | os.PathLike[str] = "images",
    ending: str = ".png",
    dataset: str = "DiffIQA",
) -> list[Triplet]:
    """Triplets of each scene: pairs of kept images whose order is known, then each kept image against the reference.

    Pairs with different labels, or both Similar (a tie); two Positives or two Negatives have no known order.

    Args:
        labels: as `read_diffiqa_labels` gives them; scenes and versions are taken in their order.
        images: folder `images` of the release.
        ending: of the picture files.
    """
    found: list[Triplet] = []
    for scene, versions in labels.items():
        kept = {version: label for version, votes in versions.items() if (label := majority_label(votes)) is not None}
        reference = image_path(images, f"Original/{scene}{ending}")
        at = {version: image_path(images, f"{version}/{scene}_{version}{ending}") for version in kept}
        order = list(kept)
        for place, a in enumerate(order):
            for b in order[place + 1 :]:
                one, two = LABELS[kept[a]], LABELS[kept[b]]
                if one != two or one == 0.5:
                    g12 = 0.5 if one == two else float(one > two)
                    kind = triplet_type(kept[a], kept[b])
                    found.append(Triplet(at[a], at[b], reference, g12, one, two, kind, scene, dataset))
        for version, label in kept.items():
            g = LABELS[label]
            kind = triplet_type(label, "Y")
            found.append(Triplet(at[version], reference, reference, g, g, 0.5, kind, scene, dataset))
    return found


def read_diffiqa(
    labels: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    references: Collection[str] | None = None,
    dataset: str | None = None,
) -> list[Triplet]:
    """Triplets from the released labels.

    Args:
        labels: folder `labels`.
        images: folder `images`; beside `labels` when `None`.
        references: names of the scenes to take, without ending; `None`: all.

    Raises:
        MissingRequirementError, DataError: as `read_diffiqa_labels`; references without a label, no triplet left.
    """
    scenes = read_diffiqa_labels(labels)
    if references is not None:
        wanted = [Path(name).stem for name in references]
        unknown = [name for name in wanted if name not in scenes]
        if unknown:
            more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
            raise DataError(f"{labels}: no label of reference {', '.join(unknown[:20])}{more}; check the list")
        scenes = {name: scenes[name] for name in wanted}
    root = Path(images) if images is not None else Path(labels).parent / "images"
    found = diffiqa_triplets(scenes, images=root, dataset=dataset or "DiffIQA")
    if not found:
        raise DataError(f"{labels}: the labels leave no triplet; in no scene do two of three people agree")
    return found


def _read_label(path: Path, problems: RowProblems) -> str | None:
    try:
        if path.stat().st_size > _MAX_BYTES:
            problems.add(1, f"{path.stat().st_size} bytes; a label file has some hundred")
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        label = content["Picture_AI"]["Label"]
    except (OSError, ValueError, RecursionError) as error:
        problems.add(1, f"is no JSON file: {error}")
        return None
    except (KeyError, TypeError):
        problems.add(1, "has no Picture_AI.Label")
        return None
    if not isinstance(label, str) or label not in LABELS:
        problems.add(1, f"Label is {str(label)[:40]!r}; it must be one of {', '.join(LABELS)}")
        return None
    return label
