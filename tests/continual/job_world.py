"""Two processes of one group train different jobs, as under `accelerate launch`, and one process trains them alone.

    python job_world.py FOLDER

Writes rank<n>.json and alone.json: hashes of states, and what accelerate and the environment say afterwards.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from torch import nn


HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "rl")]

from forked_worlds import run_world  # noqa: E402

import thurl.continual.fitting_job  # noqa: E402, F401
from continual.conftest import blobs  # noqa: E402
from thurl.continual.gradient import Finetune, LoRA  # noqa: E402
from thurl.continual.learner import learn_task, start, state_hash  # noqa: E402


def learners():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU())
    return LoRA(encoder, rank=2), Finetune(encoder)


def trained(learner, tasks):
    data, hashes = blobs(), []
    state = start(learner, data, 3)
    for position, task in enumerate(tasks):
        state = learn_task(learner, state, data.task(task), 3 + position)
        hashes.append(state_hash(state))
    return hashes


JOBS = (((0, 3), (5, 1), (6, 2)), ((4, 7),))
"""Of each process; the second one begins when the first has ended."""


def in_a_group(folder):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    rank = accelerator.process_index
    if rank == 1:  # takes no part in what the first process does
        until = time.monotonic() + 60
        while not (folder / "rank0.json").exists() and time.monotonic() < until:
            time.sleep(0.05)
    hashes = trained(learners()[rank], JOBS[rank])
    sums = accelerator.reduce(torch.tensor([rank + 1.0]), reduction="sum") if rank == 1 else None
    write(
        folder / f"rank{rank}.json",
        hashes=hashes,
        processes=PartialState().num_processes,
        rank=PartialState().process_index,
        accumulation=accelerator.gradient_state.num_steps,
        environment=[os.environ["RANK"], os.environ["WORLD_SIZE"]],
    )
    if rank == 0:
        sums = accelerator.reduce(torch.tensor([rank + 1.0]), reduction="sum")
    return int(sums.item() != 3.0)


def by_itself(folder):
    first, second = learners()
    # In the other order, and each of them twice.
    found = [trained(second, JOBS[1]), trained(first, JOBS[0]), trained(second, JOBS[1]), trained(first, JOBS[0])]
    write(folder / "alone.json", hashes=found, known=bool(PartialState._shared_state))
    return int("deepspeed" in sys.modules)  # it prints when it is imported


def write(path, **record):
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record))
    part.rename(path)


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    sys.exit(sum(map(abs, [*run_world(in_a_group, place, processes=2, limit=180), *run_world(by_itself, place)])))
