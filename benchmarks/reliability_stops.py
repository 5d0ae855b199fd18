"""Full disks, SIGTERM, NaN losses and dead ranks at seeded moments of tiny recipes, counted.

    python benchmarks/reliability_stops.py --seed 1
    python benchmarks/reliability_stops.py --recipes coto_llm --kinds disk sigterm

Each recipe is shortened (`SHORT` of `reliability_kills.py`, and `SMALL` below) and runs once undisturbed. Then, per
case, the same command runs in a fresh folder, is stopped, and is started again:

- `disk`: the folder is a file system (tmpfs, so the program needs root) with room for a seeded share of what the
  undisturbed run leaves; before the second start it gets more. Expected: code 1, and a message with path and cause.
- `sigterm`: SIGTERM after a seeded optimizer step. Expected: code 143 and a checkpoint; between two trainings
  the signal ends the process as any other (-15).
- `nan`: the loss is NaN at a seeded step (`poison` of `stopped_runs.py`). Expected: code 1, and a message with step
  and fix.
- `rate`: a learning rate of 1e30, without a second start. Expected: the same message.
- `sigterm 2`: two ranks under torchrun, which gets the signal. Expected: both ranks say that they were stopped.
- `dead`: two ranks, one is killed (SIGKILL) after a seeded step. Expected: the other ends within a minute.

Always: no traceback of ours (a rank that lost its peer may show the one of torch), no checkpoint that is not whole, no
NaN in what was saved, and after the second start the files of the undisturbed run, byte by byte. Outcomes:

- `expected`: all of this;
- `code`: another exit code; `message`: a traceback, or words that lack what they must say;
- `hung`: more than `--limit` seconds; `lost`: a checkpoint that is not whole, or NaN in a saved file;
- `different`: the second start fails or leaves other files;
- `missed`: the run ended well before it was struck, or was not hurt; it counts for nothing.

Exit status 1 when a case is anything but expected or missed.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from reliability_kills import SHORT, products
from stopped_runs import Place, Run, broken_checkpoints, logged_steps, not_finite_files, preload

from thurl.training.results import write_results


KINDS = ("disk", "sigterm", "nan", "rate", "sigterm 2", "dead")
OUTCOMES = ("expected", "code", "message", "hung", "lost", "different", "missed")
TWO_RANK_KINDS = ("sigterm 2", "dead")
TWO_RANKS = ("coto_llm",)
DEAD_SECONDS = 60.0
"""Until the launcher has ended after a rank died; torchrun gives the others 30 seconds."""
RATES = {
    "afine": ("naturalness.training.learning_rate=1e30",),
    # No answer can be read after so short a warm start, and without rewards only the decay moves the weights.
    "visualquality_r1": ("training.learning_rate=1e30", "training.weight_decay=0.1"),
}
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
"""Further changes: little data, few checks. One recipe per way of training: supervised with CoTo, `MethodTrainer`,
GRPO, meta-training, stages, distillation."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=sorted(SMALL), default=list(SMALL))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--disks", type=int, default=2, help="sizes per recipe")
    parser.add_argument("--shares", nargs=2, type=float, default=(0.1, 0.95), help="least and greatest, of a disk")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and sizes")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one run")
    parser.add_argument("--out", type=Path, default=Path("results/reliability_stops.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    preload()
    cases: list[dict[str, Any]] = []
    for recipe in options.recipes:
        for ranks in (1, 2):
            kinds = [kind for kind in KINDS if kind in options.kinds and ranks == (2 if kind in TWO_RANK_KINDS else 1)]
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
                    size = used * draw.uniform(*options.shares)
                    record = strike(kind, recipe, draw, expected, size, steps, options.limit)
                    outcome = judge(kind, record)
                    if outcome == "expected":
                        del record["last_words"]
                    cases.append({"kind": kind, "recipe": recipe, "number": number, "outcome": outcome, **record})
                    sys.stdout.write(f"{cases[-1]}\n")
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
    kind: str, recipe: str, draw: random.Random, expected: dict[str, str], size: float, steps: int, limit: float
) -> dict[str, Any]:
    """One run stopped and started again; what `judge` needs to know of it."""
    changes = SHORT[recipe] + SMALL[recipe]
    ranks = 2 if kind in TWO_RANK_KINDS else 1
    step = draw.randint(1, steps - 1)
    record: dict[str, Any] = {}
    with Place(int(size) if kind == "disk" else None) as place:
        says: tuple[str, ...] = ()
        if kind == "disk":
            record["mebibytes"], says = round(size / 2**20, 3), (str(place.path), "No space left on device")
            first = Run(recipe, place.path, changes)
        elif kind == "nan":
            step = 3 + step % 2  # after the first checkpoint, and in the shortest of the trainings
            record["step"], says = step, (f"Step {step} ", "Lower ", "learning_rate")
            first = Run(recipe, place.path, changes, spoilt=step)
        elif kind == "rate":
            says = ("Step ", "Lower ", "learning_rate")
            first = Run(recipe, place.path, (*changes, *RATES.get(recipe, ("training.learning_rate=1e30",))))
        else:
            record["step"] = step
            first = Run(recipe, place.path, changes, ranks=ranks)
            if first.wait_for_step(step, limit):
                if kind == "dead":
                    first.kill_rank(draw.randrange(ranks))
                else:
                    says = ("was stopped", *(f"[rank {rank}]" for rank in range(ranks) if ranks > 1))
                    first.terminate()
        began = time.monotonic()
        code = first.wait(DEAD_SECONDS if kind == "dead" else limit)
        words = first.words()
        record.update(
            code=code,
            seconds=round(time.monotonic() - began, 1),
            # Outside of training the signal ends the process, which says nothing.
            unsaid=[] if code == -signal.SIGTERM else [text for text in says if text not in words],
            traceback="Traceback (most recent call last)" in words and kind != "dead",
            broken=broken_checkpoints(place.path),
            not_finite=not_finite_files(place.path),
            last_words=_without_paths(words, place.path),
        )
        if kind == "disk":
            record["struck"] = _struck(words, place.path)
        if code in (None, 0) or kind == "rate":
            return record
        place.enlarge()
        second = Run(recipe, place.path, changes, ranks=ranks)
        record["second_code"], record["resumed"] = second.wait(limit), "Resuming from" in second.words()
        if record["second_code"] != 0:
            record["last_words"] = _without_paths(second.words(), place.path)
        found = products(place.path)
        names = expected.keys() | found.keys()
        record["changed"] = sorted(name for name in names if expected.get(name) != found.get(name))
    return record


def judge(kind: str, record: Mapping[str, Any]) -> str:
    """The outcome of a case, the worst of what is wrong with it; see the top of this file."""
    code = record["code"]
    if code is None or ("second_code" in record and record["second_code"] is None):
        return "hung"
    if record["broken"] or record["not_finite"]:
        return "lost"
    if code == 0 and kind != "nan":  # that one is always struck
        return "missed"
    if record.get("second_code", 0) != 0 or record.get("changed"):
        return "different"
    # torchrun has codes of its own.
    allowed = {"sigterm": (143, -signal.SIGTERM)}.get(kind, (1,))
    if code not in allowed:
        return "code"
    return "message" if record["traceback"] or record["unsaid"] else "expected"


def _struck(words: str, place: Path) -> str:
    """What there was no room for, as the message says: a checkpoint, a file by its name, or the folder of the run."""
    if "The checkpoint of step" in words:
        return "checkpoint"
    path = words.partition(": No space left on device")[0].rpartition(" ")[2]
    return "folder" if path == str(place) else Path(path).name


def _without_paths(words: str, place: Path) -> str:
    """The end of what was printed, without what differs from machine to machine."""
    root = str(Path(__file__).resolve().parents[1])
    return words.replace(str(place), "OUTPUT_DIR").replace(root, ".").replace(sys.prefix, "PREFIX")[-500:]


if __name__ == "__main__":
    sys.exit(main())
