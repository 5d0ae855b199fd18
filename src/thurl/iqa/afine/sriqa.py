"""SRIQA-Bench (arXiv 2503.11221): ten super-resolution methods and the original of each scene, judged in pairs.

    images/<Method>/<name>_<Method>x4.png    images/Original/<name>_Original.png
    MOS/<name>.txt (also MOS_Reg, MOS_Gen)   labels/{A..J}/<name>/*.json

MOS lie in [0, 100] within each scene, so they compare within a scene only. The published accuracies fit subsets that
both include the original: 3 pairs per scene for regression, 36 for generation, 55 in all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import ndtr

from thurl.data.formats.by_reference import read_by_reference
from thurl.data.records import RatedImage, RowProblems, check_rated_images
from thurl.errors import DataError, MissingRequirementError
from thurl.iqa.afine.rated_pairs import all_pairs, with_reference_paths
from thurl.iqa.afine.triplets import Triplet


__all__ = ["GENERATION", "ORIGINAL", "REGRESSION", "PairCounts", "mos_from_counts", "read_sriqa", "read_sriqa_counts"]

ORIGINAL = "Original"
REGRESSION = ("SwinIR", "RealESRNet")
GENERATION = ("RealESRGAN", "BSRGAN", "HGGT", "StableSR", "SUPIR", "SeeSR", "SinSR", "OSEDiff")

_FLOOR = 1e-6
_VERDICTS = {("Positive", "Negative"): (1, 0), ("Negative", "Positive"): (0, 1), ("Similar", "Similar"): (1, 1)}


@dataclass(frozen=True)
class PairCounts:
    """How often each image of a scene was preferred: `counts[i, j]` for i over j, a tie counts for both; (n, n)."""

    scene: str
    images: tuple[str, ...]
    counts: np.ndarray


def mos_from_counts(counts: np.ndarray | Sequence[Sequence[float]]) -> np.ndarray:
    """Scores of the n images of one scene from their pair counts, in [0, 100].

    Maximises `sum_ij C_ij log max(Phi(S_i - S_j), 1e-6) - sum_i S_i^2 / 2` with `sum S = 0` (Thurstone's case V with
    a Gaussian prior), then maps the smallest to 0 and the largest to 100.

    Args:
        counts: (n, n), n >= 2, non-negative; the diagonal must be 0.

    Returns:
        (n,) float64; all NaN when every image comes out equal, since then there is no scale.

    Raises:
        DataError: another shape, negative or infinite counts, an image compared with itself, no convergence.
    """
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or len(table) < 2:
        raise DataError(f"counts have the shape {table.shape}; (n, n) with n >= 2 is needed")
    if not np.isfinite(table).all() or table.min() < 0 or np.diag(table).any():
        raise DataError("counts must be finite, 0 or more, and 0 on the diagonal: no image meets itself")
    n = len(table)

    def cost(scores: np.ndarray) -> tuple[float, np.ndarray]:
        gaps = scores[:, None] - scores[None, :]
        p = ndtr(gaps)
        density = np.exp(-0.5 * gaps**2) / np.sqrt(2 * np.pi)
        slope = np.where(p > _FLOOR, table * density / np.maximum(p, _FLOOR), 0.0)
        value = -(table * np.log(np.maximum(p, _FLOOR))).sum() + 0.5 * (scores**2).sum()
        return float(value), -slope.sum(axis=1) + slope.sum(axis=0) + scores

    found = minimize(
        cost,
        np.zeros(n),
        jac=True,
        method="SLSQP",
        constraints={"type": "eq", "fun": lambda s: s.sum(), "jac": lambda s: np.ones(n)},
        options={"maxiter": 1000, "ftol": 1e-10},
    )
    if not found.success:
        raise DataError(f"no scores found for these counts: {found.message}")
    low, high = found.x.min(), found.x.max()
    if high - low < 1e-9:
        return np.full(n, np.nan)
    return (found.x - low) / (high - low) * 100


def read_sriqa_counts(folder: str | os.PathLike[str]) -> list[PairCounts]:
    """Pair counts by scene from `labels/{A..J}/<name>/*.json`.

    A file says `Positive`, `Similar` or `Negative` of `Picture_01` and of `Picture_02`; that these are the words is
    taken over from DiffIQA, and any other pair of words is reported.

    Raises:
        MissingRequirementError: no such folder.
        DataError: files that cannot be used, the first 20 and the count.
    """
    root = Path(folder)
    if not root.is_dir():
        raise MissingRequirementError(f"{root}: no such folder; give the folder `labels` of SRIQA-Bench")
    problems = RowProblems(str(root), fix="Copy these files again.")
    verdicts: dict[str, list[tuple[str, str, tuple[int, int]]]] = {}
    for path in sorted(root.glob("*/*/*.json")):
        problems.file = path.relative_to(root).as_posix()
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            pictures = [content[key] for key in ("Picture_01", "Picture_02")]
            names = [str(picture["Name"]) for picture in pictures]
            said = _VERDICTS.get((pictures[0]["Label"], pictures[1]["Label"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            problems.add(1, f"cannot be used: {type(error).__name__} {error}")
            continue
        if said is None or names[0] == names[1]:
            problems.add(1, "must name two pictures, labelled Positive and Negative, or both Similar")
            continue
        verdicts.setdefault(path.parent.name, []).append((names[0], names[1], said))
    problems.raise_if_any()
    if not verdicts:
        raise DataError(f"{root}: no label file in it; they lie in <A..J>/<name>/*.json")
    found = []
    for scene, rows in sorted(verdicts.items()):
        images = tuple(sorted({name for row in rows for name in row[:2]}))
        at = {name: place for place, name in enumerate(images)}
        counts = np.zeros((len(images), len(images)))
        for first, second, (won, lost) in rows:
            counts[at[first], at[second]] += won
            counts[at[second], at[first]] += lost
        found.append(PairCounts(scene, images, counts))
    return found


def read_sriqa(
    root: str | os.PathLike[str], *, part: str = "All", dataset: str = "SRIQA-Bench"
) -> tuple[list[RatedImage], list[Triplet]]:
    """Rated images of the benchmark with their reference, and all pairs of each scene.

    Args:
        root: folder with `MOS` and `images`.
        part: `All`, `Reg` (regression methods and the original) or `Gen` (GAN and diffusion methods and the original).

    Raises:
        MissingRequirementError, DataError: files that are not there or cannot be used.
    """
    methods = {"All": (*REGRESSION, *GENERATION), "Reg": REGRESSION, "Gen": GENERATION}.get(part)
    if methods is None:
        raise DataError(f"part is {part!r}; it must be All, Reg or Gen")
    folder = Path(root) / "MOS"
    problems = RowProblems(str(folder))
    records = read_by_reference(
        folder, images=Path(root) / "images", dataset=dataset, problems=problems, allow_outside=False
    )
    placed = [_placed(record, Path(root) / "images", problems) for record in records]
    check_rated_images([record for record in placed if record is not None], problems)
    problems.raise_if_any()
    wanted = {ORIGINAL, *methods}
    kept = [record for record in placed if record is not None and record.extra["method"] in wanted]
    kept = with_reference_paths(kept, Path(root) / "images" / ORIGINAL, pattern="{name}_Original")
    return kept, all_pairs(kept, type=part)


def _placed(record: RatedImage, images: Path, problems: RowProblems) -> RatedImage | None:
    """The record with its folder, which the MOS files leave out."""
    import dataclasses

    name = Path(record.image).name
    method = Path(name).stem.rpartition("_")[2].removesuffix("x4")
    if method not in (ORIGINAL, *REGRESSION, *GENERATION):
        problems.add(record.row, f"{name}: {method!r} is no method of SRIQA-Bench; names end in _<Method>x4")
        return None
    return dataclasses.replace(record, image=str(images / method / name), extra={"method": method})
