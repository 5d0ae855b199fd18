"""The learning study: does reinforcement learning from comparisons teach a tiny model to rank picture quality?

    python benchmarks/visualquality_r1_tiny.py --seeds 11 12 13 --photos FOLDER

For each seed the tiny recipe runs in a process of its own, with the shuffled-label control: warm start, GRPO, and
SRCC/PLCC on photographs that neither training nor the choice of settings has seen. With `--photos`, each trained
model, not retrained, then rates crops of the photographs of that folder, degraded in the same ways.

Pass, fixed before the runs: start |SRCC| < 0.2, end >= 0.75, control |SRCC| < 0.3 (a constant policy counts as 0),
for every seed, each within 6 minutes on two otherwise idle cores. Exit status 1 when a seed fails.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thurl.data.labels import read_labels
from thurl.data.photos import folder_photos
from thurl.recipe.shipped import find_recipe
from thurl.rl.degraded_photos import write_degraded_photos
from thurl.training.results import write_results


RECIPE = "tiny/visualquality_r1"
BAR = {"srcc_before": 0.2, "srcc_after": 0.75, "srcc_control": 0.3, "seconds": 360.0}
TRANSFER_SEED = 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", required=True, help="one run each")
    parser.add_argument("--photos", type=Path, help="folder of photographs for the transfer test")
    parser.add_argument("--photos-note", default="", help="what these photographs are, for the results file")
    parser.add_argument("--repeats", type=int, default=20, help="transfer crops per kind and level (20: 400 pictures)")
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--out", type=Path, default=Path("results/visualquality_r1_tiny.json"))
    parser.add_argument("--work", type=Path, default=Path("runs/visualquality_r1_tiny"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="further overrides of the recipe")
    options = parser.parse_intermixed_args(arguments)
    recipe = find_recipe(options.recipe)
    runs = []
    for seed in options.seeds:
        folder = options.work / f"seed_{seed}"
        record = run_seed(recipe, seed, folder, options.overrides)
        if options.photos:
            record["transfer"] = transfer(folder, options.photos, options.repeats, recipe, options.overrides)
        record["failures"] = failures(record)
        runs.append(record)
        sys.stdout.write(summary_line(record) + "\n")
        # After every seed, so that an interrupted study keeps what it has.
        write_results(
            options.out,
            recipe=f"recipes/{options.recipe}.yaml" if options.recipe == RECIPE else recipe.name,
            overrides=options.overrides,
            runs=runs,
            bar=BAR,
            passed=sum(not run["failures"] for run in runs),
            transfer_photographs=options.photos_note or None,
        )
    return int(any(run["failures"] for run in runs))


def run_seed(recipe: Path, seed: int, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """One run of the recipe with its control; the record of its results file.

    Starts from nothing: what an earlier run left in `folder` is removed, or its warm start would be used again.
    `seconds` is the wall time of the whole process, start of Python included, less the control's training and
    evaluation. The control's set-up stays in it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    results = folder / "results.json"
    command = [
        *(sys.executable, str(recipe)),
        *(f"training.seed={seed}", f"training.output_dir={folder}", "control.shuffle_mos=true"),
        *(f"control.seed={seed}", f"report.results={results}", f"report.html={folder / 'report.html'}"),
        *overrides,
    ]
    started = time.perf_counter()
    subprocess.run(command, check=True)
    wall = time.perf_counter() - started
    record = json.loads(results.read_text(encoding="utf-8"))["runs"][0]
    record["seconds"] = wall - record["seconds_control"]
    record["seconds_with_control"] = wall
    return record


def transfer(model: Path, photos: Path, repeats: int, recipe: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Rates degraded crops of other photographs with a trained model: SRCC per degradation and overall."""
    from thurl.recipe.validate import load_recipe
    from thurl.rl.evaluation import evaluate_model, jsonable
    from thurl.rl.scorer import QualityScorer

    loaded = load_recipe(recipe, overrides).recipe
    section, source = loaded.evaluation, loaded.evaluation.sources[0]
    with tempfile.TemporaryDirectory() as folder:
        labels = write_degraded_photos(
            Path(folder) / "transfer",
            photos=folder_photos(photos),
            skip_unusable=True,
            repeats=repeats,
            size=source.size,
            crop=source.crop,
            seed=TRANSFER_SEED,
        )
        result = evaluate_model(
            QualityScorer.from_pretrained(model),
            read_labels(labels, format="csv"),
            batch_size=section.batch_size,
            mode=section.mode,
            n_samples=section.n_samples,
            max_new_tokens=section.max_new_tokens,
            seed=section.seed,
        )
    headline = result["datasets"]["transfer"]
    return jsonable(
        {
            "pictures": result["n"],
            "photographs": len({entry["reference"] for entry in result["predictions"]}),
            "srcc": headline["srcc"],
            "srcc_interval": headline["srcc_interval"],
            "plcc": headline["plcc"],
            "parse_rate": result["sample_parse_rate"],
            "per_degradation": {kind: entry["srcc"] for kind, entry in result["kinds"].items()},
        }
    )


def failures(record: dict[str, Any]) -> list[str]:
    """Names of the numbers that miss the bar."""

    def value(name: str) -> float:
        return 0.0 if record[name] is None else record[name]

    missed = [name for name in ("srcc_before", "srcc_control") if not abs(value(name)) < BAR[name]]
    missed += [] if value("srcc_after") >= BAR["srcc_after"] else ["srcc_after"]
    return missed + ([] if record["seconds"] <= BAR["seconds"] else ["seconds"])


def summary_line(record: dict[str, Any]) -> str:
    def text(value: float | None) -> str:
        return "constant" if value is None or not math.isfinite(value) else f"{value:.3f}"

    line = f"seed {record['seed']}: SRCC {text(record['srcc_before'])} -> {text(record['srcc_after'])}"
    line += f", control {text(record['srcc_control'])}, {record['seconds']:.0f} s"
    if "transfer" in record:
        line += f", other photographs {text(record['transfer']['srcc'])}"
    return line + (f"; MISSED: {', '.join(record['failures'])}" if record["failures"] else "")


if __name__ == "__main__":
    sys.exit(main())
