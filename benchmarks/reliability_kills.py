"""kill -9 at seeded random moments of tiny recipes: is the resumed run the uninterrupted one, bit by bit?

    python benchmarks/reliability_kills.py --recipes exif_ordinal face_restoration --kills 2 --seed 1

Each recipe is shortened and runs once undisturbed. Then, per kill, the same command runs in a fresh folder, is killed
with all its processes at a random share of the undisturbed run's time, and is started again. It must end with code 0,
and every file of weights or containers it leaves (checkpoints apart) must have the bytes of the undisturbed run.
A kill that comes after the end, or leaves nothing to compare, is counted as that and not as a success. Without
`--recipes` all recipes run. Exit status 1 when a resumed run fails or differs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thurl.recipe.shipped import find_recipe
from thurl.training.results import write_results


STEPS = ("training.max_steps=6", "training.logging_steps=1", "training.save_strategy=steps", "training.save_steps=2")
EVALUATED = (*STEPS, "training.eval_strategy=steps", "training.eval_steps=2")
RESUME = ("training.resume_from_checkpoint=auto",)
WARM = ("warm_start.pretext_steps=2", "warm_start.format_steps=2", "evaluation.every_steps=null")
SHORT: dict[str, tuple[str, ...]] = {
    "afine": (
        *("training.logging_steps=1", "training.save_strategy=steps", "training.save_steps=2", *RESUME),
        *(f"{stage}.training.max_steps=4" for stage in ("naturalness", "fidelity", "adapter")),
    ),
    "blades": (*EVALUATED, *RESUME, "data.source.count=400", "control.shuffle_settings=false"),
    # The search keeps its own state: the same command goes on.
    "cldyb": ("model.tiny.epochs=2", "learners=[simplecil, {name: er, epochs: 1}]", "search.tasks=2"),
    "coto_llm": (
        *STEPS,
        *RESUME,
        "pretraining.steps=2",
        "evaluation.every_steps=null",
        "control.shuffle_answers=false",
    ),
    "coto_llm_grpo": (
        *(*STEPS, *RESUME, "pretraining.steps=2", "evaluation.every_steps=null", "control.shuffle_answers=false"),
    ),
    "coto_vlm": (*STEPS, *RESUME, *WARM, "control.shuffle_mos=false"),
    "coto_vlm_grpo": (*STEPS, *RESUME, *WARM, "control.shuffle_mos=false"),
    "deepfake_mtl": (*EVALUATED, *RESUME, "training.warmup_steps=1", "evaluation.resamples=20"),
    "distill_rate_utility": (*STEPS, *RESUME, "warm_up.iterations=15", "fit.max_steps=10", "evaluation.images=200"),
    "edit_vit": (*STEPS, *RESUME, "model.digits.epochs=1", "meta.outer_steps=2", "evaluation.max_steps=2"),
    "exif_ordinal": (*EVALUATED, *RESUME, "data.source.count=400", "control.shuffle_settings=false"),
    "face_restoration": (*EVALUATED, *RESUME, "training.warmup_steps=1", "control.unrelated_targets=false"),
    "visualquality_r1": (*STEPS, *RESUME, *WARM, "control.shuffle_mos=false"),
}
PRODUCTS = (".safetensors", ".ddr", ".jsonl")
LOGS = ("log", "metrics", "completions")  # they hold seconds, or lines of both halves


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=sorted(SHORT), default=sorted(SHORT))
    parser.add_argument("--kills", type=int, default=2, help="per recipe")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("results/reliability_kills.json"))
    options = parser.parse_args(arguments)
    runs: list[dict[str, Any]] = []
    for recipe in options.recipes:
        moments = random.Random(f"{options.seed} {recipe}")
        with tempfile.TemporaryDirectory() as place:
            whole = Path(place) / "whole"
            began = time.monotonic()
            code, message = run(recipe, whole)
            if code:
                sys.stderr.write(f"{recipe}: the undisturbed run ends with {code}: {message}\n")
                return 1
            seconds = time.monotonic() - began
            for number in range(options.kills):
                share = moments.uniform(0.1, 1.0)
                record = kill(recipe, Path(place) / str(number), share * seconds, products(whole))
                runs.append({"seed": options.seed, "recipe": recipe, "kill": number, "share": share, **record})
                sys.stdout.write(f"{runs[-1]}\n")
                # After every kill, so that an interrupted campaign keeps what it has.
                write_results(options.out, recipe="recipes/tiny", overrides=[], runs=runs, shortened=SHORT)
    return int(any(run["outcome"] in ("failed", "different") for run in runs))


def kill(recipe: str, folder: Path, after: float, expected: dict[str, str]) -> dict[str, Any]:
    """One run killed `after` seconds and started again; its outcome against the files of the undisturbed run."""
    code, _ = run(recipe, folder, after)
    if code != -signal.SIGKILL:
        return {"outcome": "ended before the kill" if code == 0 else "failed", "checkpoints": 0}
    checkpoints = len(list(folder.glob("**/checkpoint-*")))
    code, message = run(recipe, folder)
    if code:
        return {"outcome": "failed", "checkpoints": checkpoints, "message": message}
    found = products(folder)
    changed = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    outcome = "different" if changed else "equal" if expected else "nothing to compare"
    return {"outcome": outcome, "checkpoints": checkpoints, "changed": changed}


def run(recipe: str, folder: Path, after: float | None = None) -> tuple[int, str]:
    """Exit code and last words of the shortened recipe; killed with all its processes `after` seconds."""
    files = [f"report.results={folder}/results.json", f"report.html={folder}/report.html"]
    command = [sys.executable, str(find_recipe(f"tiny/{recipe}")), f"training.output_dir={folder}", *files]
    if recipe == "cldyb":
        command.append(f"report.png={folder}/report.png")
    with tempfile.TemporaryFile("w+") as words:
        process = subprocess.Popen(
            [*command, *SHORT[recipe]],
            stdout=words,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        words.seek(0)
        return process.returncode, words.read()[-500:]


def products(folder: Path) -> dict[str, str]:
    """SHA-256 of what a run leaves for use; checkpoints and logs are left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.suffix in PRODUCTS
        and not any(part.startswith("checkpoint-") for part in path.parts)
        and not path.name.startswith(LOGS)
    }


if __name__ == "__main__":
    sys.exit(main())
