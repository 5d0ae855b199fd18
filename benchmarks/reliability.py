"""Damaged and hostile inputs, counted: what is refused with a message, what is read, what crashes, what is lost.

    python benchmarks/reliability.py --cases 2000 --seed 1

Every file thurl reads, in a small valid form (`reliability_samples.py`), is damaged with a seed
(`reliability_mutations.py`) and read by the function that the commands and recipes use. Then come inputs made to do
harm (`reliability_hostile.py`). Outcomes:

- `refused`: a `ThurlError`, whose message is not empty and is what the command line shows, with its exit code;
- `read`: the reader took it: damage need not be visible in a format without a checksum;
- `crashed`: any other exception, which a person would see as a traceback. Must be 0;
- `hung`: more than `--limit` seconds. Must be 0;
- `lost`: a file of the folder is another one afterwards. Must be 0.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from reliability_hostile import HOSTILE
from reliability_mutations import mutated
from reliability_samples import Sample, make_samples

from thurl.errors import ThurlError
from thurl.training.results import write_results


MEMORY = 12 * 2**30
"""Address space of the campaign in bytes; torch alone reserves several gigabytes."""
OUTCOMES = ("refused", "read", "crashed", "hung", "lost")


class Hung(BaseException):
    """A reader took too long; no library catches it."""


@dataclass
class Count:
    """Outcomes of one group, and what went wrong in words."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="damaged files, shared out over all kinds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=int, default=60, help="seconds for one case")
    parser.add_argument("--only", help="a group or a kind of it, as the tables call them")
    parser.add_argument("--out", type=Path, default=Path("results/reliability.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    # A reader that takes all memory ends in an exception here, which is counted, not in the death of the campaign.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    began = time.process_time()
    with tempfile.TemporaryDirectory() as place:
        samples = [one for one in make_samples(Path(place) / "valid") if options.only in (None, one.group, one.name)]
        counts = campaign(samples, options.cases, options.seed, options.limit, Path(place) / "damaged")
        if options.only is None:
            counts["hostile"] = Count()
            for name, case in HOSTILE.items():
                folder = Path(place) / "hostile" / name.replace(" ", "_")
                folder.mkdir(parents=True)
                judge(counts["hostile"], name, folder, lambda at, case=case: case(at), options.limit)
    failures = [f"{group}: {line}" for group, count in counts.items() for line in count.failures]
    record = {
        "seed": options.seed,
        "groups": {group: _numbers(count) for group, count in counts.items()},
        "cpu_seconds": time.process_time() - began,
    }
    if options.only is None:
        write_results(options.out, recipe="benchmarks/reliability.py", runs=[record], failures=failures)
    for group, numbers in record["groups"].items():
        sys.stdout.write(f"{group}: {numbers}\n")
    sys.stdout.write("".join(f"{line}\n" for line in failures))
    return int(bool(failures))


def _numbers(count: Count) -> dict[str, int]:
    return {name: count.outcomes[name] for name in ("cases", *OUTCOMES)}


def campaign(samples: Sequence[Sample], cases: int, seed: int, limit: int, place: Path) -> dict[str, Count]:
    """Damages every sample `cases / len(samples)` times and counts by group.

    Raises:
        RuntimeError: a valid sample is not read.
    """
    counts: dict[str, Count] = {}
    for sample in samples:
        try:
            sample.read(sample.folder)
        except Exception as error:
            raise RuntimeError(f"{sample.group}, {sample.name}: the valid file is not read: {error}") from error
        count = counts.setdefault(sample.group, Count())
        for number in range(-(-cases // len(samples))):
            # A string is hashed by its bytes, so the same case comes again on every machine.
            random_ = random.Random(f"{seed} {sample.group} {sample.name} {number}")
            target = sample.targets[number % len(sample.targets)]
            shutil.copytree(sample.folder, place)
            damage, content = mutated((place / target).read_bytes(), random_)
            (place / target).write_bytes(content)
            judge(count, f"{sample.name}, case {number}, {target} {damage}", place, sample.read, limit)
            shutil.rmtree(place)
    return counts


def judge(count: Count, name: str, folder: Path, read: Callable[[Path], Any], limit: int) -> None:
    """Reads once and counts the outcome; a hostile case makes its own files in `folder`, so nothing is compared."""
    before = digests(folder)
    count.outcomes["cases"] += 1
    try:
        outcome, problem = attempt(folder, read, limit)
    except Hung:
        outcome, problem = "hung", f"more than {limit} seconds"
    if outcome in ("crashed", "hung"):
        count.failures.append(f"{name}: {outcome}: {problem}")
    elif before and digests(folder) != before:
        outcome = "lost"
        count.failures.append(f"{name}: lost: files were changed by reading")
    count.outcomes[outcome] += 1


def attempt(folder: Path, read: Callable[[Path], Any], limit: int) -> tuple[str, str]:
    """Outcome, and for a crash what a developer needs to know of it."""

    def late(*_: Any) -> None:
        raise Hung

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(limit)
    try:
        read(folder)
    except ThurlError as error:
        return ("refused", "") if str(error).strip() else ("crashed", "an error without a message")
    except Exception as error:  # also MemoryError and RecursionError
        frames = traceback.extract_tb(error.__traceback__)
        last = ([frame for frame in frames if "thurl" in frame.filename] or frames)[-1]
        return "crashed", f"{type(error).__name__}: {str(error)[:150]!r} at {Path(last.filename).name}:{last.lineno}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return "read", ""


def digests(folder: Path) -> dict[str, str]:
    """Content of every file below."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    sys.exit(main())
