"""kill -9 at seeded random moments of tiny recipes: is the resumed run the uninterrupted one, bit by bit?

    python benchmarks/reliability_kills.py --recipes exif_ordinal face_restoration --kills 3 --seed 1

Each recipe is shortened and runs once undisturbed. Then, per kill, the same command runs in a fresh folder, is killed
with all its processes and is started again. Kills come in turn at a random moment after the first checkpoint and
before it; where a recipe writes none (CLDyB keeps what its search has learned), anywhere. The second run must end with
code 0, and every file of weights, containers, manifests or sequences that it leaves (checkpoints apart) must have the
bytes of the undisturbed run; seconds in a file are not compared. A run that ends before its kill is started anew with
an earlier moment, twice at most. Without `--recipes` all recipes run. Exit status 1 unless every kill struck and ended
equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from thurl.recipe.shipped import find_recipe
from thurl.training.results import write_results


STEPS = ("training.max_steps=6", "training.logging_steps=1", "training.save_strategy=steps", "training.save_steps=2")
EVALUATED = (*STEPS, "training.eval_strategy=steps", "training.eval_steps=2")
RESUME = ("training.resume_from_checkpoint=auto",)
WARM = ("warm_start.pretext_steps=2", "warm_start.format_steps=2", "evaluation.every_steps=null")
FEWER_ANSWERS = ("training.per_device_train_batch_size=64", "evaluation.batch_size=64", "evaluation.n_samples=2")
SHORT: dict[str, tuple[str, ...]] = {
    "afine": (
        *("training.logging_steps=1", "training.save_strategy=steps", "training.save_steps=2", *RESUME),
        *(f"{stage}.training.max_steps=4" for stage in ("naturalness", "fidelity", "adapter")),
        "control.shuffle_labels=false",
        "data.train=[{format: textures, references: perfect, contents: 40, triplets: 200}]",
        "evaluation.sources=[{format: textures, references: perfect, contents: 20, triplets: 60, split: held_out}]",
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
    "coto_vlm_grpo": (*STEPS, *RESUME, *WARM, *FEWER_ANSWERS, "control.shuffle_mos=false"),
    "deepfake_mtl": (*EVALUATED, *RESUME, "training.warmup_steps=1", "evaluation.resamples=20"),
    "distill_rate_utility": (*STEPS, *RESUME, "warm_up.iterations=15", "fit.max_steps=10", "evaluation.images=200"),
    "edit_vit": (*STEPS, *RESUME, "model.digits.epochs=1", "meta.outer_steps=2", "evaluation.max_steps=2"),
    "exif_ordinal": (*EVALUATED, *RESUME, "data.source.count=400", "control.shuffle_settings=false"),
    "face_restoration": (
        *(*EVALUATED, *RESUME, "training.warmup_steps=1", "control.unrelated_targets=false"),
        *("evaluation.repeats=1", "evaluation.cleanups=[bicubic]"),
    ),
    "visualquality_r1": (*STEPS, *RESUME, *WARM, *FEWER_ANSWERS, "control.shuffle_mos=false"),
}
PRODUCTS = (".safetensors", ".ddr", ".jsonl")
SEQUENCES = ("sequence.json", "replay.json")
COUNTS = ("kills", "after_a_checkpoint", "equal", "different", "failed", "files_compared")
LOGS = ("log", "metrics", "completions")  # they hold seconds, or lines of both halves


_running: set[subprocess.Popen[Any]] = set()
_writing = threading.Lock()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=sorted(SHORT), default=sorted(SHORT))
    parser.add_argument("--kills", type=int, default=3, help="per recipe")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--jobs", type=int, default=1, help="recipes at a time")
    parser.add_argument("--out", type=Path, default=Path("results/reliability_kills.json"))
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    kills: list[dict[str, Any]] = []

    def keep(record: dict[str, Any]) -> None:
        with _writing:
            kills.append(record)
            kills.sort(key=lambda kill: (kill["recipe"], kill["kill"]))
            sys.stdout.write(f"{record}\n")
            sys.stdout.flush()
            # After every kill, so that an interrupted campaign keeps what it has.
            record = {"seed": options.seed, "recipes": counted(kills)}
            write_results(options.out, recipe="recipes/tiny", runs=[record], kills=kills, shortened=SHORT)

    pool = ThreadPoolExecutor(options.jobs)
    try:
        for done in [pool.submit(campaign, name, options.kills, options.seed, keep) for name in options.recipes]:
            done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(_running):
            os.killpg(process.pid, signal.SIGKILL)
    return int(any(kill["outcome"] != "equal" for kill in kills))


def campaign(recipe: str, kills: int, seed: int, keep: Callable[[dict[str, Any]], None]) -> None:
    """The undisturbed run of a recipe and its kills; every record goes to `keep`."""
    shares = random.Random(f"{seed} {recipe}")
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        began = time.time()
        code, message = run(recipe, whole)
        ended = time.time()
        saved = [path.stat().st_mtime for path in checkpoints(whole)]
        expected = products(whole)
        for number in range(kills):
            share = shares.random()
            late = bool(saved) and number % 2 == 0
            seconds = ended - min(saved) if late else min([*saved, ended]) - began
            if code or not expected:
                record = {"outcome": "failed", "message": message if code else "the undisturbed run leaves no product"}
            else:
                record = kill(recipe, Path(place) / str(number), share * seconds, late, expected)
            where = "after the first checkpoint" if late else "before the first checkpoint" if saved else "anywhere"
            keep({"recipe": recipe, "kill": number, "moment": where, "share": round(share, 3), **record})


def kill(recipe: str, folder: Path, after: float, late: bool, expected: dict[str, str]) -> dict[str, Any]:
    """One run killed `after` seconds and started again; its outcome against the files of the undisturbed run."""
    for attempt in range(3):
        place = folder / str(attempt)
        code, message = run(recipe, place, after, late)
        if code != 0:
            break
        after *= 0.7  # it was quicker than the undisturbed run
    if code != -signal.SIGKILL:
        return {"outcome": "failed" if code else "ended before the kill", "message": message}
    found = len(checkpoints(place))
    code, message = run(recipe, place)
    if code:
        return {"outcome": "failed", "after_a_checkpoint": found > 0, "message": message}
    left = products(place)
    changed = sorted(name for name in expected.keys() | left.keys() if expected.get(name) != left.get(name))
    return {
        "outcome": "different" if changed else "equal",
        "after_a_checkpoint": found > 0,
        "files": len(expected),
        "changed": changed,
    }


def counted(kills: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Counts per recipe, for the table of the docs; whatever is neither equal nor different counts as failed."""
    recipes: dict[str, Counter[str]] = {}
    for one in kills:
        row = recipes.setdefault(one["recipe"], Counter(dict.fromkeys(COUNTS, 0)))
        outcome = one["outcome"] if one["outcome"] in ("equal", "different") else "failed"
        row.update({"kills": 1, "after_a_checkpoint": int(one.get("after_a_checkpoint", False)), outcome: 1})
        row["files_compared"] += one.get("files", 0)
    return {recipe: dict(row) for recipe, row in recipes.items()}


def run(recipe: str, folder: Path, after: float | None = None, late: bool = False) -> tuple[int, str]:
    """Exit code and last words of the shortened recipe; killed with all its processes `after` seconds.

    `late`: the seconds count from the first whole checkpoint on.
    """
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
        _running.add(process)
        try:
            while late and process.poll() is None and not checkpoints(folder):
                time.sleep(0.05)
            process.wait(after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        finally:
            _running.discard(process)
        words.seek(0)
        return process.returncode, words.read()[-500:]


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of any stage: a checkpoint has its name only when it is complete."""
    return list(folder.glob("**/checkpoint-*"))


def products(folder: Path) -> dict[str, str]:
    """SHA-256 of what a run leaves for use; checkpoints and logs are left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(content(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if (path.suffix in PRODUCTS or path.name in SEQUENCES)
        and not any(part.startswith("checkpoint-") for part in path.parts)
        and not path.name.startswith(LOGS)
    }


def content(path: Path) -> bytes:
    """The bytes of a file without the seconds that CLDyB writes down beside its tensors and sequences.

    Safetensors keeps metadata in the order of a hash table, another one in every process: here they are sorted.
    """
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        size = int.from_bytes(data[:8], "little")
        return canonical(data[8 : 8 + size]) + data[8 + size :]
    return canonical(data) if path.name in SEQUENCES else data


def canonical(document: bytes) -> bytes:
    """JSON with sorted names and without seconds."""
    return json.dumps(timeless(json.loads(document)), sort_keys=True).encode()


def timeless(value: Any) -> Any:
    """JSON without the entries whose names end with `seconds`."""
    if isinstance(value, dict):
        return {name: timeless(entry) for name, entry in value.items() if not name.endswith("seconds")}
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
