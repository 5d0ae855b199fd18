"""Does the tiny DeepFake recipe learn? The recipe as it is, started by `accelerate launch`, on seeds of its own.

    OMP_NUM_THREADS=1 python benchmarks/deepfake_mtl_tiny.py --seeds 411 412 413

Every seed draws other people, forgeries, weights and batches. `validation` are the faces that the checkpoint was
chosen on, `test` are faces of other people; the control is the untrained network on the test faces, which must not
tell anything apart.

The bars, set after runs with the development seeds 5 and 6 and before the first with others, hold for every seed: AUC
of videos and mean AUC of regions at least `LEARNED` on validation and test faces, both below `UNTRAINED` before
training. Exit status 1 when one is missed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thurl.training.results import write_results


ROOT = Path(__file__).parents[1]
RECIPE = "recipes/tiny/deepfake_mtl.yaml"
LEARNED, UNTRAINED = 0.65, 0.6


def one_run(seed: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The record of one seed; `cpu_seconds` are those of all processes that were started."""
    began = _cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", str(ROOT / "accelerate_configs" / "cpu.yaml"), str(ROOT / RECIPE)]
        command += [f"training.seed={seed}", f"training.output_dir={folder}/run", "evaluation.before=true"]
        command += [f"report.results={folder}/results.json", f"report.html={folder}/report.html", *overrides]
        subprocess.run(command, check=True)
        (record,) = json.loads(Path(folder, "results.json").read_text(encoding="utf-8"))["runs"]
    return short(record) | {"cpu_seconds": _cpu_seconds() - began}


def short(record: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a record that the tables show."""
    found = {"seed": record["seed"], "steps": record["steps"]}
    for when, part in (("before", "before"), ("validation", "validation"), ("test", "test")):
        found |= {f"{kind}_auc_{when}": record[part][f"{kind}_auc"] for kind in ("video", "region")}
    return found


def failures(run: Mapping[str, Any]) -> list[str]:
    """Which numbers of a seed miss their bar."""
    missed = []
    for kind in ("video", "region"):
        missed += [name for part in ("validation", "test") if not run[name := f"{kind}_auc_{part}"] >= LEARNED]
        missed += [name for name in [f"{kind}_auc_before"] if not run[name] < UNTRAINED]
    return missed


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path("results/deepfake_mtl_tiny.json"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="of the recipe")
    options = parser.parse_intermixed_args(arguments)
    runs: list[dict[str, Any]] = []
    for seed in options.seeds:
        run = one_run(seed, options.overrides)
        runs.append({**run, "failures": failures(run)})
        # After every seed, so that an interrupted study keeps what it has.
        write_results(
            options.out,
            recipe=RECIPE,
            overrides=options.overrides,
            runs=runs,
            bars={"learned": LEARNED, "untrained": UNTRAINED},
        )
        sys.stdout.write(f"seed {seed}: {', '.join(runs[-1]['failures']) or 'all bars met'}\n")
    return int(any(run["failures"] for run in runs))


if __name__ == "__main__":
    sys.exit(main())
