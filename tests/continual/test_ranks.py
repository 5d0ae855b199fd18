"""Two processes of a launcher search together: the same sequence as one, every job once, one error for all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from thurl.continual.baselines import build_baselines
from thurl.continual.closed_form import LDA, SimpleCIL
from thurl.continual.evaluator import Evaluator
from thurl.continual.prefix_store import PrefixStore
from thurl.continual.ranks import Ranks, divided
from thurl.continual.search import search_sequence
from thurl.errors import ThurlError, UsageError

from .conftest import blobs
from .test_search import SMALL, learners, pool


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from accelerate import PartialState
from continual.test_ranks import disagree, fail_on_one, search_together
PartialState(cpu=True)
folder = Path(sys.argv[2])
search_together(folder)
disagree(folder)
fail_on_one(folder)
"""


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What two processes of the launcher left: one launch for all tests, since starting takes longest."""
    folder = tmp_path_factory.mktemp("ranks")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", str(script), str(Path(__file__).parents[1]), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    return folder, done


def record(built):
    return {"tasks": built.tasks, "accuracies": built.accuracies, "rewards": built.rewards,
            "trainings": built.cost.trainings, "trained": built.cost.trained}  # fmt: skip


def search_together(folder, store=None, ranks=None):
    """The search and the baselines; what each process found and how many states it wrote goes into a file."""
    with Evaluator(pool(), learners(), seed=1, store=store, ranks=ranks) as evaluator:
        found = search_sequence(evaluator, SMALL)
        others = build_baselines(evaluator, SMALL, found.cost.trainings)
        text = json.dumps({"search": record(found), "others": [record(item) for item in others]})
        (folder / f"rank{evaluator.ranks.rank}of{evaluator.ranks.size}.json").write_text(text)


class OnOne(SimpleCIL):
    """Fails on the second process alone."""

    name = "on_one"

    def learn(self, state, task, seed):
        if os.environ["RANK"] == "1" and len(state["classes"]) == 2:
            raise RuntimeError("no memory left")
        return super().learn(state, task, seed)


def fail_on_one(folder):
    with Evaluator(pool(), [OnOne()], seed=1, store=PrefixStore(folder / "store")) as evaluator:
        try:
            evaluator.evaluate([((0, 1), (i, i + 1)) for i in (2, 4, 6, 8)])
        except ThurlError as error:
            (folder / f"error{evaluator.ranks.rank}.txt").write_text(f"{type(error).__name__}: {error}")
            raise SystemExit(1) from error


def disagree(folder):
    ranks = Ranks.of_launch()
    assert ranks.agree(lambda: ranks.rank) == 0
    assert ranks.share(["a", "b", "c"], str.upper) == ["A", "B", "C"]
    problems = []
    for attempt in (
        lambda: ranks.share([ranks.rank], str),
        lambda: ranks.agree(lambda: 1 / 0),
        lambda: ranks.check_shared(folder / f"machine{ranks.rank}"),
        lambda: Evaluator(pool(), learners(), seed=1, workers=2),
    ):
        try:
            attempt()
        except ThurlError as error:
            problems.append(str(error))
    (folder / f"problems{ranks.rank}.json").write_text(json.dumps(problems))


@pytest.mark.distributed
@pytest.mark.timeout(300)
def test_two_ranks_find_what_one_process_does(launched, tmp_path):
    folder, done = launched
    search_together(tmp_path)
    one = json.loads((tmp_path / "rank0of1.json").read_text())
    first, second = (json.loads((folder / f"rank{rank}of2.json").read_text()) for rank in (0, 1))
    # No job was done twice: the numbers of trainings done are equal as well.
    assert first == second == one, done.stderr[-3000:]


@pytest.mark.distributed
@pytest.mark.timeout(300)
def test_a_failure_on_one_rank_ends_all_with_its_name(launched):
    folder, done = launched
    assert done.returncode == 1
    texts = [(folder / f"error{rank}.txt").read_text() for rank in (0, 1)]
    assert texts[0] == texts[1]
    assert texts[0].startswith("LearnerError: learner on_one raised RuntimeError learning task blobs/04, blobs/05")
    # What the other process had to do was done and kept.
    assert len(list((folder / "store").rglob("[0-9a-f]*.safetensors"))) == 3


@pytest.mark.distributed
@pytest.mark.timeout(300)
def test_what_parts_the_ranks_is_said_on_all(launched):
    folder, done = launched
    first, second = (json.loads((folder / f"problems{rank}.json").read_text()) for rank in (0, 1))
    assert [text.replace("machine0", "machine1") for text in first] == second, done.stderr[-3000:]
    same, made, unseen, workers = first
    assert "do not work on the same search" in same and made == "ZeroDivisionError: division by zero"
    assert (
        "process 1 does not see what process 0 writes" in unseen and "workers is 2, but this launch has 2" in workers
    )


def test_work_is_divided_by_its_length():
    assert divided([1, 1, 1, 1, 1], 2) == [[0, 2, 4], [1, 3]]
    assert divided([0.1, 3, 0.1, 3, 0.1, 0.1], 2) == [[0, 1, 4], [2, 3, 5]]
    assert divided([5, 1], 3) == [[0], [1], []]


class Counting(Evaluator):
    """Notes the jobs of each batch."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.batches = []

    def _run(self, jobs):
        if jobs:
            self.batches.append(len(jobs))
        super()._run(jobs)


def test_what_is_certain_trains_side_by_side():
    """Children of the root and the sequences of baselines come in one batch, so that more processes than learners have
    work; the numbers are those of one after the other."""
    data = blobs(classes=12)
    with Counting(data, [SimpleCIL(), LDA()], seed=1) as evaluator:
        search_sequence(evaluator, SMALL)
        assert evaluator.batches[0] == 2 * 3  # learners times children
        done = len(evaluator.batches)
        found = {built.builder: built for built in build_baselines(evaluator, SMALL, 60)}
        assert max(evaluator.batches[done:]) >= 2 * 8
    assert len(found) == 12


def test_one_process_needs_no_group():
    ranks = Ranks()
    assert ranks.share([1, 2], str) == ["1", "2"] and ranks.agree(lambda: 5) == 5
    ranks.check_shared(Path("nowhere"))
    with pytest.raises(UsageError, match="workers is 0"):
        Evaluator(pool(), learners(), seed=1, workers=0)
