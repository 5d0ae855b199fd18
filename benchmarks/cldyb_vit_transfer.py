"""Which learners share weaknesses: one search per learner on the pool and encoder of `cldyb_vit.py`.

    python benchmarks/cldyb_vit_transfer.py DATA --seeds 211 212 213

DATA, pool, encoder and learners as there, with the same seeds. Every learner is then trained again on every other's
sequence, with one fresh seed, and read on pictures no search has seen.

Bar, from before the runs: on each learner's own sequence its AA is within 0.04 of the lowest it has on any of them
(P6, of the mean matrix).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cldyb_judge import Judge, add_run, mean_transfer, own_margin, tell
from cldyb_vit import SEARCH, SEARCHED, digits

from thurl.continual.evaluator import Evaluator
from thurl.continual.learners import learners_of, parse_learner
from thurl.continual.prefix_store import PrefixStore
from thurl.continual.search import search_sequence


INDIVIDUAL = replace(SEARCH, clusters=6, simulations=12, pick="uniform")
"""The hardest for SimpleCIL would be much the same for every learner."""
BARS = {"p6": -0.04}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument(
        "--out", type=Path, default=Path("results/cldyb_vit_transfer.json"), help="other seeds in it stay"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for seed in options.seeds:
        record = run(options.data, seed)
        tell(seed, str(record))
        failures = add_run(options.out, "benchmarks/cldyb_vit_transfer.py", record, BARS, worst)
    sys.stdout.write(f"{', '.join(failures) or 'passed'}\n")
    return int(bool(failures))


def worst(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """P6 of the mean matrix."""
    return {"p6": own_margin(mean_transfer(runs))}


def run(folder: Path, seed: int) -> dict[str, Any]:
    """AA of every learner (columns) on the sequence found for each (rows), and what its search cost."""
    data, encoder, _ = digits(folder, seed)
    learners = learners_of([parse_learner(text) for text in SEARCHED], encoder)
    own, trainings = {}, {}
    with tempfile.TemporaryDirectory() as place:
        store = PrefixStore(Path(place))
        for learner in learners:
            with Evaluator(data, [learner], seed=seed, store=store) as evaluator:
                found = search_sequence(evaluator, replace(INDIVIDUAL, seed=seed))
            own[learner.name], trainings[learner.name] = found.tasks, found.cost.trainings
            tell(seed, f"{learner.name}: {found.cost.trainings} trainings in {found.wall:.0f} s")
        judge = Judge(data, learners, len(learners), [1_000_000 + 10 * seed], store)
        transfer = {
            owner: {name: values["aa"] for name, values in judge.metrics([tasks]).items()}
            for owner, tasks in own.items()
        }
        judge.close()
    return {"seed": seed, "transfer": transfer, "trainings": trainings, "margins": {"p6": own_margin(transfer)}}


if __name__ == "__main__":
    sys.exit(main())
