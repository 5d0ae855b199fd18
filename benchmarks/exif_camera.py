"""The tiny EXIF recipes on fresh seeds: settings learned, control, false alarms, fakes before and after training.

    python benchmarks/exif_camera.py --seeds 11 12 13

Each seed is one run of the recipe, and its control, in processes of their own, so scenes, settings, noise, weights and
order are all drawn anew; nothing of it was used to choose the recipe. With `--folder` a benchmark that was stopped
goes on where it was. The bars were written down before the first run:

- `learned`: Spearman on held-out photographs above 0.95 (ISO), 0.75 (focal length), 0.6 (aperture), every seed.
- `control`: the run on settings of other photographs within 0.25 of 0 for each of the four settings, every seed. It is
  judged after its last step; the first runs judged it at the checkpoint with the best loss on its validation part.
- `false_alarms`: realised rate within 3 standard errors of the nominal one, every rate and seed
  (`thurl.recipe.exif_detection.BAR`; its standard error there).
- `fakes`: AUC of the half-resolution fakes (`reborn`) above 0.62, and above that of the encoder's first weights by
  more than 0.10, means over the seeds.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

from thurl.recipe.validate import load_recipe
from thurl.training.results import write_results


ROOT = Path(__file__).resolve().parents[1]
LEARNED = {"iso": 0.95, "focal_length": 0.75, "aperture": 0.6}
MOMENTS = ("before", "after", "control")
CONTROL = 0.25
PARTS = ("run", "control")
FAKE, FAKE_AUC, FAKE_GAIN = "reborn", 0.62, 0.10


def one_run(recipe: str, seed: int, overrides: Sequence[str], folder: Path | None = None, jobs: int = 1) -> dict:
    """The record of one run of a tiny recipe and of its control, which may run at the same time (`jobs`).

    Args:
        folder: holds the runs and is kept; what is finished there is not done again.
    """
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(jobs) as pool:
        place = Path(temporary) if folder is None else folder
        parts = pool.map(lambda part: _part(recipe, seed, overrides, place / f"{seed}_{part}", part), PARTS)
        record, control = parts
    record["control"] = control["after"]
    for name, entry in record["generated"].items():
        entry["auc_control"] = control["generated"][name]["auc"]
    return record


def _part(recipe: str, seed: int, overrides: Sequence[str], place: Path, part: str) -> dict[str, Any]:
    results = place / "results.json"
    if not results.is_file():
        place.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "--part", part, "--recipe", recipe, "--seeds", str(seed)]
        command += ["--folder", str(place), "--overrides", *overrides]
        with open(place / "log.txt", "w") as log:
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False,
                                  env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
        if done.returncode:
            raise RuntimeError((place / "log.txt").read_text()[-3000:])
    return json.loads(results.read_text())["runs"][0]


def run_part(recipe: str, seed: int, overrides: Sequence[str], place: Path, part: str) -> None:
    """The run of a recipe, or its control alone, written to `place`; goes on from a checkpoint that is there."""
    from thurl.recipe.exif_run import run  # torch and transformers, which the waiting process has no use for

    path = ROOT / "recipes" / "tiny" / f"{recipe}.yaml"
    changes = [f"training.seed={seed}", f"control.seed={seed}", f"training.output_dir={place}", *overrides]
    changes += ["training.resume_from_checkpoint=auto", "control.shuffle_settings=false"]
    changes += [f"report.results={place}/results.json", f"report.html={place}/report.html"]
    changes += ["evaluation.before=false"] if part == "control" else []
    loaded = load_recipe(path, changes).recipe
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run(loaded, recipe_path=path.name, shuffle=part == "control")


def short(record: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a record that the tables show: `settings`, `classes`, `edits`, `false_alarms`, `generated`."""
    found: dict[str, Any] = {"seed": record["seed"], "steps": record["steps"], "seconds": record["seconds"]}
    for name in record["after"]["test"]:
        kind, _, task = name.partition("_")
        group = {"srcc": "settings", "accuracy": "classes"}.get(kind)
        if group:
            moments = {when: record[when]["test"][name] for when in MOMENTS}
            found.setdefault(group, {})[task] = {f"{kind}_{when}": value for when, value in moments.items()}
    found["edits"] = {f"auc_{when}": record[when]["test_edits"]["auc_manipulated"] for when in MOMENTS}
    found["false_alarms"] = {f"{100 * float(rate):g} %": entry for rate, entry in record["false_alarms"].items()}
    names = ("auc_before", "auc", "auc_control", "auc_two_sided", "tpr", "tpr_two_sided")
    found["generated"] = {kind: {name: entry[name] for name in names} for kind, entry in record["generated"].items()}
    if "weights" in record:
        found["weights"] = record["weights"]
    return found


def verdicts(runs: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Which bars are met."""
    learned = [run["settings"][task]["srcc_after"] > bar for run in runs for task, bar in LEARNED.items()]
    # A model that gives every picture the same score has no correlation, which is what a control may come to.
    control = [abs(entry["srcc_control"] or 0) < CONTROL for run in runs for entry in run["settings"].values()]
    alarms = [entry["within"] for run in runs for entry in run["false_alarms"].values()]
    after, before = (fmean(run["generated"][FAKE][name] for run in runs) for name in ("auc", "auc_before"))
    return {
        "learned": all(learned),
        "control": all(control),
        "false_alarms": all(alarms),
        "fakes": after > FAKE_AUC and after > before + FAKE_GAIN,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=["exif_ordinal", "blades"], default="exif_ordinal")
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--overrides", nargs="*", default=[])
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time")
    parser.add_argument("--together", action="store_true", help="a run and its control at the same time")
    parser.add_argument("--folder", type=Path, help="keep the runs here, and go on with those that are here")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("results/exif_camera.json"))
    options = parser.parse_args(arguments)
    if options.part:
        run_part(options.recipe, options.seeds[0], options.overrides, options.folder, options.part)
        return 0
    jobs = 2 if options.together else 1
    with ThreadPoolExecutor(options.jobs) as pool:
        found = pool.map(
            lambda seed: one_run(options.recipe, seed, options.overrides, options.folder, jobs), options.seeds
        )
        records = list(found)
    runs = [short(record) for record in records]
    bars = verdicts(runs)
    write_results(
        options.out,
        recipe="benchmarks/exif_camera.py",
        overrides={"recipe": options.recipe, **({"overrides": options.overrides} if options.overrides else {})},
        runs=runs,
        bars={
            "learned": LEARNED, "control": CONTROL, "false_alarms": 3, "fakes": {"auc": FAKE_AUC, "gain": FAKE_GAIN},
        },
        met=bars,
    )  # fmt: skip
    for name, met in bars.items():
        sys.stdout.write(f"{name:13} {'met' if met else 'MISSED'}\n")
    return int(not all(bars.values()))


if __name__ == "__main__":
    sys.exit(main())
