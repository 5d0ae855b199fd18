"""Full disks, SIGTERM, NaN losses and dead ranks at seeded moments of tiny recipes, counted.

    python benchmarks/reliability_stops.py --seed 1
    python benchmarks/reliability_stops.py --recipes coto_llm --kinds disk sigterm

Each recipe is shortened (`SHORT` of `reliability_kills.py`, and `SMALL` below) and runs once undisturbed. Then, per
case, the same command runs in a fresh folder, is stopped, and is started again:

- `disk`: the folder is a file system (tmpfs, so the program needs root) with room for a seeded share of what the
  undisturbed run leaves; before the second start it gets more. Expected: code 1, and a message with path and cause.
- `sigterm`: SIGTERM after a seeded optimizer step. Expected: code 143 and a checkpoint; between two trainings
  the signal ends the process as any other (-15).
- `nan`: the loss is NaN at a seeded step (`poison` of `stopped_runs.py`). Expected: code 1, and a message with step and fix.
- `rate`: a learning rate of 1e30, without a second start. Expected: the same message.
- `sigterm 2`: two ranks under torchrun, which gets the signal. Expected: both ranks say that they were stopped.
- `dead`: two ranks, one is killed (SIGKILL) after a seeded step. Expected: the other ends within a minute.

Always: no traceback of ours (a rank that lost its peer may show the one of torch), no checkpoint that is not whole, no
NaN in what was saved, and after the second start the files of the undisturbed run, byte by byte. Outcomes:

- `expected`: all of this;
- `code`: another exit code; `message`: a traceback, or words that lack what they must say;
- `hung`: more than `--limit` seconds; `lost`: a checkpoint that is not whole, or NaN in a saved file;
- `different`: the second start fails or leaves other files;
- `missed`: the run ended before it was struck; it counts for nothing.

Exit status 1 when a case is anything but expected or missed.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from reliability_kills import SHORT, products
from stopped_runs import Place, Run, broken_checkpoints, logged_steps, not_finite_files, preload

from thurl.training.results import write_results


KINDS = ("disk", "sigterm", "nan", "rate", "sigterm 2", "dead")
OUTCOMES = ("expected", "code", "message", "hung", "lost", "different", "missed")
TWO_RANKS = ("coto_llm",)
DEAD_SECONDS = 60.0
"""Until the launcher has ended after a rank died; torchrun gives the others 30 seconds."""
_TEXTURES = "{format: textures, references: %s, contents: 40, triplets: 100%s}"
_PHOTOS = "{format: degraded_photos, split: %s, dataset: %s, repeats: %d, size: 48, vary: true}"
_ANSWERS = "{format: commands, commands: [complement], split: %s, rows: %d}"
SMALL: dict[str, tuple[str, ...]] = {
    "coto_llm": (f"data.train=[{_ANSWERS % ('train', 400)}]", f"evaluation.sources=[{_ANSWERS % ('test', 8)}]"),
    "exif_ordinal": ("data.source.count=150", "detector.rates=[0.05]", "evaluation=null"),
    "visualquality_r1": (
        *("training.num_generations=2", "training.per_device_train_batch_size=16"),
        *("evaluation.before=false", "evaluation.n_samples=1"),
        f"data.train=[{_PHOTOS % ('train', 'five', 2)}]",
        f"evaluation.sources=[{_PHOTOS % ('held_out', 'held_out', 1)}]",
    ),
    "edit_vit": ("evaluation=null",),
    "afine": (
        *("control.shuffle_labels=false", "evaluation.sources=[]"),
        f"data.train=[{_TEXTURES % ('perfect', '')}, {_TEXTURES % ('imperfect', ', stages: [naturalness, adapter]')}]",
    ),
    "distill_rate_utility": (
        *("model.samples_per_class=4", "rate.bits_per_class=8000", "training.max_steps=6", "baselines.names=[]"),
        *("evaluation.seeds=[0]", "choice.seeds=[1000]"),
    ),
}
"""Further changes: little data, few checks. One recipe per way of training: supervised with CoTo, `MethodTrainer`, GRPO,
meta-training, stages, distillation."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=sorted(SMALL), default=list(SMALL))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--disks", type=int, default=2, help="sizes per recipe")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and sizes")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one run")
    parser.add_argument("--out", type=Path, default=Path("results/reliability_stops.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    preload()
    cases: list[dict[str, Any]] = []
    for recipe in options.recipes:
        for ranks in (1, 2):
            kinds = [kind for kind in KINDS if kind in options.kinds and ranks == (2 if kind in KINDS[4:] else 1)]
            if not kinds or (ranks == 2 and recipe not in TWO_RANKS):
                continue
            with Place() as place:
                whole = Run(recipe, place.path, SHORT[recipe] + SMALL[recipe], ranks=ranks)
                if whole.wait(options.limit) != 0:
                    sys.stderr.write(f"{recipe}: the undisturbed run ends with {whole.code}: {whole.words()}\n")
                    return 1
                expected, used, steps = products(place.path), place.used(), logged_steps(place.path)
            for kind in kinds:
                for number in range(options.disks if kind == "disk" else 1):
                    draw = random.Random(f"{options.seed} {recipe} {kind} {number}")
                    record = strike(kind, recipe, draw, expected, used, steps, options.limit)
                    case = {"kind": kind, "recipe": recipe, "number": number, "outcome": judge(record), **record}
                    cases.append(case)
                    sys.stdout.write(f"{ {name: value for name, value in case.items() if value not in ([], None)} }\n")
                    sys.stdout.flush()
                    # After every case, so that an interrupted campaign keeps what it has.
                    save(options.out, options.seed, cases)
    return int(any(case["outcome"] not in ("expected", "missed") for case in cases))


def save(path: Path, seed: int, cases: Sequence[dict[str, Any]]) -> None:
    """Counts by kind and recipe, and every case."""
    groups: dict[str, Counter[str]] = {}
    for case in cases:
        count = groups.setdefault(f"{case['kind']}: {case['recipe']}", Counter())
        count.update(("cases", case["outcome"]))
    numbers = {group: {name: count[name] for name in ("cases", *OUTCOMES)} for group, count in groups.items()}
    changes = {recipe: SHORT[recipe] + SMALL[recipe] for recipe in SMALL}
    runs = [{"seed": seed, "groups": numbers}]
    write_results(path, recipe="recipes/tiny", overrides=[], runs=runs, cases=list(cases), shortened=changes)


def strike(
    kind: str, recipe: str, draw: random.Random, expected: dict[str, str], used: int, steps: int, limit: float
) -> dict[str, Any]:
    """One run stopped and started again; what `judge` needs to know of it."""
    changes = SHORT[recipe] + SMALL[recipe]
    ranks = 2 if kind in ("sigterm 2", "dead") else 1
    record: dict[str, Any] = {"must_say": [], "code_expected": [1]}
    # The first quarter of a disk is full before any training: half of the sizes are above it.
    size = int(used * draw.uniform(0.1, 0.95)) if kind == "disk" else None
    step = draw.randint(1, steps - 1)
    with Place(size) as place:
        if kind == "disk":
            record.update(mebibytes=size / 2**20, must_say=[str(place.path), "No space left on device"])
            first = Run(recipe, place.path, changes)
        elif kind == "nan":
            step = draw.randint(3, min(4, steps))  # after the first checkpoint, within every stage
            record.update(step=step, must_say=[f"Step {step} ", "learning_rate", "the loss is nan"])
            first = Run(recipe, place.path, changes, spoilt=step)
        elif kind == "rate":
            record.update(must_say=["Step ", "Lower ", "learning_rate"])
            first = Run(recipe, place.path, (*changes, "training.learning_rate=1e30"))
        else:
            record["step"] = step
            first = Run(recipe, place.path, changes, ranks=ranks)
            if not first.wait_for_step(step, limit):
                return {**record, "missed": first.code == 0, "hung": first.code is None, "code": first.code}
            if kind == "dead":
                first.kill_rank(draw.randrange(ranks))
                record["code_expected"] = None  # any but 0
            else:
                first.terminate()
                record.update(code_expected=[143, -15] if ranks == 1 else None, must_say=["was stopped"])
        began = time.monotonic()
        code = first.wait(DEAD_SECONDS if kind == "dead" else limit)
        if kind == "dead":
            record["seconds"] = time.monotonic() - began
        words = first.words()
        record.update(code=code, hung=code is None, words=words[-600:], missed=code == 0)
        if code == -15:
            record["must_say"] = []  # outside of training nobody speaks
        record["unsaid"] = [text for text in record["must_say"] if text not in words]
        record["traceback"] = "Traceback (most recent call last)" in words and kind != "dead"
        record["broken"] = broken_checkpoints(place.path)
        record["not_finite"] = not_finite_files(place.path)
        if record["missed"] or record["hung"] or kind == "rate":
            return record
        place.enlarge()
        second = Run(recipe, place.path, changes, ranks=ranks)
        record["second_code"] = second.wait(limit)
        record["resumed"] = "Resuming from" in second.words()
        if record["second_code"] != 0:
            record["second_words"] = second.words()[-600:]
        found = products(place.path)
        names = expected.keys() | found.keys()
        record["changed"] = sorted(name for name in names if expected.get(name) != found.get(name))
    return record


def judge(record: dict[str, Any]) -> str:
    """The outcome of a case, the worst of what is wrong with it; see the top of this file."""
    if record["hung"]:
        return "hung"
    if record["missed"]:
        return "missed"
    if record["broken"] or record["not_finite"]:
        return "lost"
    if record.get("second_code", 0) != 0 or record.get("changed"):
        return "different"
    if record["code_expected"] is not None and record["code"] not in record["code_expected"]:
        return "code"
    if record["traceback"] or record["unsaid"]:
        return "message"
    return "expected"


if __name__ == "__main__":
    sys.exit(main())
