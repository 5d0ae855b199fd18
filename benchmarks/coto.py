"""LoRA with and without CoTo on small pictures: a pass bar, a swept comparison, and what else was tried.

    python benchmarks/coto.py                      # everything; hours on one core, and it goes on where it was stopped
    python benchmarks/coto.py --only bar           # one of the questions below
    python benchmarks/coto.py --only nothing       # write the results of what is finished

A ViT of 6 layers (width 64) learns 900 upright digits of scikit-learn; then LoRA (r = 4 on all six linear maps of each
layer, frozen head) learns 300 digits rotated by 90 degrees, or inverted. 297 digits, the same for all seeds, are for
validation and in nothing else; 300 others per seed are for the test.

- `bar`: 800 steps at a learning rate of 5e-3 for both methods. The bar and these settings were written down before any
  of these seeds was run, after three other seeds of an earlier run; a run that misses it is reported as such.
- `sweep`: the learning rate of each method, number of steps and task, by validation accuracy on the exploration seeds.
  (At first the inverted task had the rate of the rotated one. Three of its first four adapters ended with a training
  loss above 1, so it got a sweep of its own.)
- `swept`: both methods at their learning rates on the fresh seeds: accuracy, pruning, and two tasks merged; `pairs`:
  all that is measured between two adapters of one task.
- `matched`: CoTo with 151 % of the steps, so that an adapter gets as many updates as LoRA's; `coto longer` in `swept`.
- `short`, `long`: the same with 250 steps (swept), and with 2000 (at the learning rate of 800).
- `explore`: one thing at a time is changed, at 250 and at 800 steps, on exploration seeds and validation digits only.
  The list was written before any of it was run. `rates`: the same at half and at twice the learning rate.
- `again`: what looked best of it in accuracy, chosen on these validation digits, on the fresh seeds;
  `coto chosen` in `swept`.
- `time`: CPU seconds of both methods in turn, with PEFT's own forward pass.

Seeds 0 to 5 were used when the experiment was designed and are not used here. Results: `results/coto.json` (fresh
seeds, test digits), `results/coto_explored.json` (exploration seeds, validation digits; every setting that was tried).
CPU time is the process's; on a busy machine only large differences mean something.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from coto_digits.questions import QUESTIONS, Plan
from coto_digits.reporting import write_explored, write_fresh
from coto_digits.training import Store


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*QUESTIONS, "nothing"], default=list(QUESTIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13, 14, 15], help="fresh ones")
    parser.add_argument("--explore-seeds", type=int, nargs="+", default=[6, 7])
    parser.add_argument("--steps", type=int, default=800, help="of the bar, and of most other questions")
    parser.add_argument("--work", type=Path, default=Path("runs/coto"), help="finished parts; the next call uses them")
    parser.add_argument("--forward", choices=["peft", "compiled", "summed"], default="summed", help="see `Store`")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of both result files")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    plan = Plan(tuple(options.seeds), tuple(options.explore_seeds), options.steps)
    store = Store(options.work, forward=options.forward, say=_say)
    for name in options.only:
        if name != "nothing":
            _say(f"--- {name}")
            QUESTIONS[name](store, plan)
    finished = Store(options.work, read_only=True)
    runs = write_fresh(finished, plan, options.out / "coto.json")
    write_explored(finished, plan, options.out / "coto_explored.json")
    return int(any(run.get("failures") for run in runs))


def _say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
