"""Does the small restoration network beat its degraded input and clean-ups without learning?

    python benchmarks/face_restoration_tiny.py --seeds 11 12 13

For each seed the tiny recipe runs in a process of its own: training photographs, squares, degradations, first weights
and the degradations of the held-out photographs all follow the seed. The control is the beginning of the same
run with unrelated targets. Clean-ups have the strength that is best on the validation photographs of the same seed.

Pass, fixed before the runs: on the held-out photographs, for every seed, the model has a higher PSNR and a higher SSIM
than the degraded input and than each clean-up (bicubic down and up, Gaussian, median, non-local means), and the
control is worse than the degraded input in both. Exit status 1 when a seed fails.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from thurl.recipe.shipped import find_recipe
from thurl.training.results import write_results


RECIPE = "tiny/face_restoration"
METRICS = ("psnr", "ssim")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", required=True, help="one run each")
    parser.add_argument("--out", type=Path, default=Path("results/face_restoration_tiny.json"))
    parser.add_argument("--work", type=Path, default=Path("runs/face_restoration_tiny"))
    parser.add_argument("--jobs", type=int, default=1, help="seeds at the same time; their seconds then say little")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="further overrides of the recipe")
    options = parser.parse_intermixed_args(arguments)
    recipe = find_recipe(RECIPE)
    runs: list[dict[str, Any]] = []
    with ThreadPoolExecutor(options.jobs) as pool:  # threads that wait for processes
        records = pool.map(
            lambda seed: run_seed(recipe, seed, options.work / f"seed_{seed}", options.overrides), options.seeds
        )
        for record in records:
            runs.append({**record, "failures": failures(record)})
            sys.stdout.write(summary_line(runs[-1]) + "\n")
            # After every seed, so that an interrupted study keeps what it has.
            write_results(
                options.out,
                recipe=f"recipes/{RECIPE}.yaml",
                overrides=options.overrides,
                runs=runs,
                bar="PSNR and SSIM: model above degraded and above each clean-up, control below degraded",
                passed=sum(not run["failures"] for run in runs),
            )
    return int(any(run["failures"] for run in runs))


def run_seed(recipe: Path, seed: int, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """One run of the recipe with its control; the record of its results file."""
    shutil.rmtree(folder, ignore_errors=True)
    results = folder / "results.json"
    command = [
        *(sys.executable, str(recipe)),
        *(f"training.seed={seed}", f"training.output_dir={folder}", f"evaluation.seed={seed}"),
        *("control.unrelated_targets=true", f"report.results={results}", f"report.html={folder / 'report.html'}"),
        *overrides,
    ]
    subprocess.run(command, check=True)
    return json.loads(results.read_text(encoding="utf-8"))["runs"][0]


def failures(record: dict[str, Any]) -> list[str]:
    """What misses the bar, as `metric: who`. An undefined number misses it."""
    missed = []
    for metric in METRICS:
        values = {name: math.nan if value is None else value for name, value in record[metric].items()}
        others = [name for name in values if name not in ("untrained", "model", "control")]
        missed += [f"{metric}: {name}" for name in others if not values["model"] > values[name]]
        if not values["control"] < values["degraded"]:
            missed.append(f"{metric}: control")
    return missed


def summary_line(record: dict[str, Any]) -> str:
    parts = []
    for metric, digits in (("psnr", 2), ("ssim", 4)):
        values = {name: value for name, value in record[metric].items() if value is not None}
        parts.append(f"{metric.upper()} " + ", ".join(f"{name} {value:.{digits}f}" for name, value in values.items()))
    line = f"seed {record['seed']}: " + "; ".join(parts)
    return line + (f"; MISSED: {', '.join(record['failures'])}" if record["failures"] else "")


if __name__ == "__main__":
    sys.exit(main())
