"""The learning study of A-FINE: do the three stages teach what they should, on content never seen in training?

    python benchmarks/afine_learning.py --seeds 11 12 13 --photos FOLDER --photos-note "what these photographs are"

For each seed the tiny recipe runs on procedural textures (blur, noise) and on crops of the photographs of a folder
(blur, noise, JPEG): new contents, new triplets, a new model. Test contents are in no training set: other textures,
crops of other photographs. For the seeds of `--control` the same run follows on labels turned round by a coin. The
test sets have 600 pairs each, with a perfect and with an imperfect reference; MSE to the reference judges them, too.

Bars, fixed before the runs, the same for both kinds of content; each stage is judged alone:
- naturalness: raw naturalness orders at least 0.93 of the pairs, with both kinds of reference;
- fidelity: with perfect references at least 0.97, and at most 0.02 less than before the stage;
- adapter: with imperfect references D orders at least 0.87, and at least 0.07 more than fidelity alone and than MSE;
  with perfect ones at least 0.97; and the stage lowers the imperfect accuracy by at most 0.02;
- control: naturalness at most 0.70, and D not 0.07 above fidelity alone with imperfect references.
Exit status 1 when a run misses one.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from thurl.data.images import open_image
from thurl.iqa.afine.accuracy import pair_accuracy
from thurl.iqa.afine.triplets import Triplet
from thurl.recipe.afine_data import load_study
from thurl.recipe.afine_report import run_record
from thurl.recipe.afine_run import train_stages
from thurl.recipe.shipped import find_recipe
from thurl.recipe.validate import load_recipe
from thurl.training.progress import quiet_libraries
from thurl.training.results import read_results, write_results


RECIPE = "tiny/afine"
BAR = {
    "naturalness": 0.93,
    "fidelity_perfect": 0.97,
    "fidelity_drop": 0.02,
    "afine_imperfect": 0.87,
    "afine_gain": 0.07,
    "afine_perfect": 0.97,
    "adapter_drop": 0.02,
    "control_naturalness": 0.70,
}
KINDS = {"textures": ["blur", "noise"], "photographs": ["blur", "noise", "jpeg"]}
# Three kinds of distortion instead of two: more to learn. Chosen on another seed, as everything else.
OVERRIDES = {"textures": [], "photographs": ["naturalness.training.max_steps=800"]}
SETS = ("perfect", "imperfect")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="one run per kind of content each")
    parser.add_argument("--control", type=int, nargs="*", default=[], help="seeds that get a run on shuffled labels")
    parser.add_argument("--photos", type=Path, help="folder of photographs; without it textures alone")
    parser.add_argument("--photos-note", default="", help="what these photographs are, for the results file")
    parser.add_argument("--only", choices=list(KINDS), help="one kind of content")
    parser.add_argument("--join", type=Path, nargs="+", default=[], help="results files whose runs come first")
    parser.add_argument("--out", type=Path, default=Path("results/afine_learning.json"))
    parser.add_argument("--work", type=Path, default=Path("runs/afine_learning"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="further overrides of the recipe")
    options = parser.parse_intermixed_args(arguments)
    quiet_libraries()
    documents = [read_results(path) for path in options.join]
    runs = [run for document in documents for run in document["runs"]]
    notes = [document.get("photographs") for document in documents if document.get("photographs")]
    note = options.photos_note or next(iter(notes), None)
    contents = [kind for kind in KINDS if options.only in (None, kind) and (kind == "textures" or options.photos)]
    jobs = [(seed, kind) for seed in options.seeds for kind in contents]
    for seed, kind in jobs:
        photos = options.photos if kind == "photographs" else None
        record = run_seed(
            seed, kind, photos, seed in options.control, options.work / f"{kind}_{seed}", options.overrides
        )
        runs.append(record)
        sys.stdout.write(summary_line(record) + "\n")
        sys.stdout.flush()
        # After every run, so that an interrupted study keeps what it has.
        save(options.out, runs, options.overrides, note)
    if not jobs:
        save(options.out, runs, options.overrides, note)
    return int(any(run["missed"] for run in runs))


def save(path: Path, runs: Sequence[dict[str, Any]], overrides: Sequence[str], note: str | None) -> None:
    write_results(
        path,
        recipe=f"recipes/{RECIPE}.yaml",
        overrides=overrides,
        runs=[
            with_rows(run) for run in sorted(runs, key=lambda run: (list(KINDS).index(run["content"]), run["seed"]))
        ],
        bar=BAR,
        photographs=note,
        passed=sum(not run["missed"] for run in runs),
    )


def run_seed(
    seed: int, kind: str, photos: Path | None, control: bool, folder: Path, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """The recipe with fresh contents; the record of its results file. What an earlier run left is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    source = "distorted_photos" if photos else "textures"
    changes = [f"training.seed={seed}", f"training.output_dir={folder}", f"control.seed={seed}"]
    for place in (*(f"data.train.{i}" for i in (0, 1)), *(f"evaluation.sources.{i}" for i in (0, 1))):
        changes += [f"{place}.format={source}", f"{place}.seed={seed}", f"{place}.kinds=[{', '.join(KINDS[kind])}]"]
        changes += [f"{place}.photos={photos}"] if photos else []
    recipe = load_recipe(find_recipe(RECIPE), [*changes, *OVERRIDES[kind], *overrides]).recipe
    set_seed(seed)
    began = time.perf_counter()
    study = load_study(recipe, folder)
    main_run = train_stages(recipe, study, folder)
    control_run = train_stages(recipe, study.shuffled(seed), folder / "control", name="control") if control else None
    record = run_record(recipe, main_run, control_run)
    record["content"] = kind
    record["mse"] = {test.name: mse_accuracy(test.triplets) for test in study.test}
    record["seconds_in_all"] = time.perf_counter() - began
    record["missed"] = missed(record)
    return record


def mse_accuracy(triplets: Sequence[Triplet]) -> float:
    """Share of pairs that the mean squared error to the reference orders as they are labelled."""
    cache: dict[str, np.ndarray] = {}

    def pixels(path: str) -> np.ndarray:
        if path not in cache:
            cache[path] = np.asarray(open_image(path), dtype=np.float64)
        return cache[path]

    def error(image: str, reference: str) -> float:
        return float(np.square(pixels(image) - pixels(reference)).mean())

    first, second = ([error(getattr(t, side), t.reference) for t in triplets] for side in ("first", "second"))
    return pair_accuracy(first, second, [t.g12 for t in triplets])


def missed(record: dict[str, Any]) -> list[str]:
    """Names of the bars a run misses; a number that is not defined misses its bar."""
    before, nature, fidelity, adapter = (
        record[name] for name in ("before", "after_naturalness", "after_fidelity", "after_adapter")
    )
    mse, last = record["mse"], adapter["imperfect"]
    checks = {f"naturalness_{name}": nature[name]["naturalness"] >= BAR["naturalness"] for name in SETS}
    checks["fidelity_perfect"] = fidelity["perfect"]["fidelity"] >= BAR["fidelity_perfect"]
    checks["fidelity_drop"] = _above(fidelity, nature, "perfect", "fidelity") >= -BAR["fidelity_drop"]
    checks["afine_imperfect"] = last["afine"] >= BAR["afine_imperfect"]
    checks["afine_gain_fidelity"] = last["afine"] - last["fidelity"] >= BAR["afine_gain"]
    checks["afine_gain_mse"] = last["afine"] - mse["imperfect"] >= BAR["afine_gain"]
    checks["afine_perfect"] = adapter["perfect"]["afine"] >= BAR["afine_perfect"]
    checks["adapter_drop"] = _above(adapter, fidelity, "imperfect", "afine") >= -BAR["adapter_drop"]
    # Before training there is nothing that could pass.
    checks["untrained"] = before["imperfect"]["naturalness"] < BAR["naturalness"]
    if "control_adapter" in record:
        table = record["control_adapter"]
        checks |= {f"control_{n}": table[n]["naturalness"] <= BAR["control_naturalness"] for n in SETS}
        gain = table["imperfect"]["afine"] - table["imperfect"]["fidelity"]
        checks["control_gain"] = gain < BAR["afine_gain"]
    return [name for name, passed in checks.items() if not passed]


def _above(new: dict[str, Any], old: dict[str, Any], name: str, quantity: str) -> float:
    return new[name][quantity] - old[name][quantity]


def with_rows(record: dict[str, Any]) -> dict[str, Any]:
    """The record with rows for a table: by content (and control), one per kind of reference, a column per moment."""
    found = {key: value for key, value in record.items() if not key.endswith(tuple(KINDS))}
    moments = {
        "naturalness_before": ("before", "naturalness"),
        "naturalness": ("after_naturalness", "naturalness"),
        "fidelity_before": ("after_naturalness", "fidelity"),
        "fidelity": ("after_fidelity", "fidelity"),
        "afine_before": ("after_fidelity", "afine"),
        "afine": ("after_adapter", "afine"),
    }
    found[record["content"]] = {
        name: {
            "mse": record["mse"][name],
            **{key: record[when][name][score] for key, (when, score) in moments.items()},
        }
        for name in SETS
    }
    found["misses"] = ", ".join(record["missed"]) or "nothing"
    if "control_adapter" in record:
        found[f"control_{record['content']}"] = {name: record["control_adapter"][name] for name in SETS}
    return found


def summary_line(record: dict[str, Any]) -> str:
    parts = [f"{record['content']}, seed {record['seed']}:"]
    for moment in ("before", "after_naturalness", "after_fidelity", "after_adapter", "control_adapter"):
        if moment in record:
            numbers = [f"{record[moment][name][q]:.3f}" for name in SETS for q in ("naturalness", "fidelity", "afine")]
            parts.append(f"{moment} {' '.join(numbers)};")
    parts.append(f"MSE {record['mse']['perfect']:.3f} {record['mse']['imperfect']:.3f}, {record['seconds']:.0f} s")
    return " ".join(parts) + (f"; MISSED: {', '.join(record['missed'])}" if record["missed"] else "")


if __name__ == "__main__":
    sys.exit(main())
