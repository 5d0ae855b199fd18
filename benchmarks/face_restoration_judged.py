"""The evaluator judges what the tiny restoration network made: every measure that needs no weights.

    python benchmarks/face_restoration_tiny.py --seeds 2024 2025 2026
    python benchmarks/face_restoration_judged.py runs/face_restoration_tiny/seed_*

The held-out squares of the recipe become folders of PNG files, as an entry to the evaluator is one: the degraded
input, each clean-up at the strength that is best on the validation photographs, and the pictures of the network. Each
folder is evaluated with the originals and the inputs beside it. One record per model folder; its seed is the number
that the folder's name ends with, and its squares are drawn from it.

Bar, from before the runs: the network is above the input and above the bicubic clean-up in each measure that compares
with the original (`AGAINST_ORIGINAL`). The other measures have no original and are reported.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from thurl.iqa.face_restoration import EvaluationSettings, evaluate_faces
from thurl.recipe.face_restoration_run import load_study
from thurl.recipe.shipped import find_recipe
from thurl.recipe.validate import load_recipe
from thurl.restoration.cleanup import clean_up
from thurl.restoration.evaluation import stacked_pairs, tuned_strengths
from thurl.restoration.restorer import Restorer
from thurl.training.results import write_results


RECIPE = "tiny/face_restoration"
AGAINST_ORIGINAL = ("psnr", "psnr_y", "ssim")
WITHOUT = ("lq_psnr_8", "lq_ssim_8", "colour_shift", "tenengrad", "noise_sigma", "blockiness")
BASELINES = ("degraded", "bicubic")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="folders of trained models, named ..._SEED")
    parser.add_argument("--out", type=Path, default=Path("results/face_restoration_judged.json"))
    parser.add_argument("--overrides", nargs="*", default=[], metavar="section.key=value", help="of the recipe")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    runs = []
    for model in options.models:
        with tempfile.TemporaryDirectory() as place:
            judged = judge(model, seed_of(model), Path(place), options.overrides)
        runs.append({"seed": seed_of(model), "judged": judged, "failures": failures(judged)})
        sys.stdout.write(f"{model}: {', '.join(runs[-1]['failures']) or 'passed'}\n")
    write_results(
        options.out,
        recipe=f"recipes/{RECIPE}.yaml",
        overrides=options.overrides,
        runs=runs,
        bar=f"{', '.join(AGAINST_ORIGINAL)}: model above {' and '.join(BASELINES)}",
        passed=sum(not run["failures"] for run in runs),
    )
    return int(any(run["failures"] for run in runs))


def seed_of(model: Path) -> int:
    """The number at the end of a folder's name."""
    found = re.search(r"(\d+)$", model.name)
    if found is None:
        raise SystemExit(f"{model}: the name of the folder has to end with the seed of its run, such as seed_2024")
    return int(found[1])


def judge(model: Path, seed: int, place: Path, overrides: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Mean of each measure over the held-out squares, by who made the pictures."""
    loaded = load_recipe(find_recipe(RECIPE), [f"training.seed={seed}", f"evaluation.seed={seed}", *overrides])
    study = load_study(loaded.recipe, seed)
    assert study.test is not None and loaded.recipe.evaluation is not None
    degraded, clean = stacked_pairs(study.test, range(len(study.test)))
    entries: dict[str, Any] = {"degraded": degraded}
    for name, strength in tuned_strengths(study.validation, loaded.recipe.evaluation.cleanups).items():
        entries[name] = clean_up(degraded, name, strength)
    restorer = Restorer.from_pretrained(model)
    entries["model"] = restorer.restore([Image.fromarray(picture) for picture in degraded])
    for name, pictures in (*entries.items(), ("lq", degraded), ("gt", clean)):
        save(place / name, pictures)
    return {name: measures(place, name) for name in entries}


def measures(place: Path, name: str) -> dict[str, float]:
    """What the evaluator says of one folder."""
    settings = EvaluationSettings(
        place / name, lq=place / "lq", gt=place / "gt", metrics=(*AGAINST_ORIGINAL, *WITHOUT)
    )
    evaluation = evaluate_faces(settings)
    evaluation.raise_for_status()
    return {metric: evaluation.summary["overall"][metric] for metric in (*AGAINST_ORIGINAL, *WITHOUT)}


def failures(judged: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What misses the bar, as `metric: who`. An undefined number misses it."""
    return [
        f"{metric}: {name}"
        for metric in AGAINST_ORIGINAL
        for name in BASELINES
        if not judged["model"][metric] > judged[name][metric]
    ]


def save(folder: Path, pictures: Any) -> None:
    (folder / "held_out").mkdir(parents=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(np.asarray(picture)).save(folder / "held_out" / f"{number:04d}.png")


if __name__ == "__main__":
    sys.exit(main())
