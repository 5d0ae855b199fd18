"""The search end to end on blobs: rewards, candidates, determinism, caching, processes (P8), resumption, baselines."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import thurl.continual.evaluator as evaluator_module
from thurl.continual.baselines import build_baselines, myopic, proxy_hardest
from thurl.continual.candidates import Candidates, ClosedFormProxy
from thurl.continual.closed_form import LDA, RanPAC, SimpleCIL
from thurl.continual.evaluator import Evaluator
from thurl.continual.gradient import Finetune
from thurl.continual.learner import LearnerError, learn_task, start, state_hash, task_accuracies
from thurl.continual.mdp import RewardSettings, SearchSettings, joint_reward
from thurl.continual.metrics import average_accuracy, difficulty
from thurl.continual.prefix_store import Outcome, PrefixStore
from thurl.continual.search import most_trainings, search_sequence, with_targets
from thurl.errors import UsageError

from .conftest import blobs


SMALL = SearchSettings(
    tasks=3, classes_per_task=2, starts=6, clusters=3, simulations=6, depth=2, exploration=0.05, seed=5
)


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())


def learners():
    return [SimpleCIL(), RanPAC(20, 1.0), Finetune(encoder(), epochs=2)]


def pool():
    return blobs(classes=10, spread=1.2)


@pytest.fixture(scope="module")
def found():
    with Evaluator(pool(), learners(), seed=1) as evaluator:
        return search_sequence(evaluator, SMALL)


def test_a_sequence_uses_no_class_twice_and_its_numbers_fit(found):
    used = [index for task in found.tasks for index in task]
    assert len(found.tasks) == 3 and all(len(task) == 2 for task in found.tasks) and len(set(used)) == 6
    rows = list(found.accuracies.values())
    assert found.rewards[-1] == pytest.approx(np.mean([difficulty(matrix)[-1] for matrix in rows]))
    assert 0 < found.cost.trainings <= most_trainings(SMALL, 3) == (6 * (2 + 2 + 1) + 3) * 3
    assert found.cost.trained >= found.cost.trainings - 1 and found.cost.seconds > 0
    assert [step["committed"] for step in found.steps] == [
        max(range(step["children"]), key=lambda c: next((n["visits"] for n in step["nodes"] if n["path"] == [c]), 0))
        for step in found.steps
    ]


@pytest.mark.parametrize("memory", [0, 2**30], ids=["nothing kept", "all kept"])
@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
def test_caching_changes_no_sequence(found, memory, on_disk, tmp_path):
    store = PrefixStore(tmp_path if on_disk else None, memory)
    with Evaluator(pool(), learners(), seed=1, store=store) as evaluator:
        again = search_sequence(evaluator, SMALL)
    assert (again.tasks, again.rewards, again.accuracies) == (found.tasks, found.rewards, found.accuracies)
    assert again.cost.trainings == found.cost.trainings
    if on_disk:
        with Evaluator(pool(), learners(), seed=1, store=PrefixStore(tmp_path)) as evaluator:
            third = search_sequence(evaluator, SMALL)
        assert third.tasks == found.tasks and third.cost.trained == 0


def _shared_in_worker() -> bool:
    context = evaluator_module._worker["context"]
    return any(value.is_shared() for value in context.learners[-1].encoder.parameters())


def test_two_processes_find_what_one_does(found):
    with Evaluator(pool(), learners(), seed=1, workers=2) as evaluator:
        again = search_sequence(evaluator, SMALL)
        # torch moves tensors that are sent to another process into memory of both; two would step on one module.
        assert not any(value.is_shared() for value in evaluator.learners[-1].encoder.parameters())
        assert not evaluator._pool.submit(_shared_in_worker).result()
        # The states come out of the processes bit for bit.
        for index, learner in enumerate(evaluator.learners):
            state = start(learner, evaluator.data, 1000)
            for position, task in enumerate(again.tasks):
                state = learn_task(learner, state, evaluator.data.task(task), 1000 + position)
            assert state_hash(evaluator.state(again.tasks, index)) == state_hash(state)
    assert (again.tasks, again.rewards, again.accuracies) == (found.tasks, found.rewards, found.accuracies)


def test_another_seed_is_another_search(found):
    with Evaluator(pool(), learners(), seed=1) as evaluator:
        assert len({search_sequence(evaluator, replace(SMALL, seed=seed)).tasks for seed in range(4)}) > 1


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from continual.test_search import SMALL, Slow, pool
from thurl.continual.evaluator import Evaluator
from thurl.continual.prefix_store import PrefixStore
from thurl.continual.search import search_sequence

with Evaluator(pool(), [Slow()], seed=1, store=PrefixStore(Path(sys.argv[1]))) as evaluator:
    search_sequence(evaluator, SMALL)
"""


class Slow(SimpleCIL):
    name = "slow"

    def learn(self, state, task, seed):
        time.sleep(0.25)
        return super().learn(state, task, seed)


class Quick(Slow):
    def learn(self, state, task, seed):
        return SimpleCIL.learn(self, state, task, seed)


def test_a_killed_search_goes_on_where_it_was(tmp_path):
    with Evaluator(pool(), [Quick()], seed=1) as evaluator:
        whole = search_sequence(evaluator, SMALL)
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parents[1])]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while len(list(tmp_path.rglob("*.safetensors"))) < 4 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(tmp_path.rglob("[0-9a-f]*.safetensors")))
    assert 4 <= done < whole.cost.trainings
    with Evaluator(pool(), [Quick()], seed=1, store=PrefixStore(tmp_path)) as evaluator:
        again = search_sequence(evaluator, SMALL)
    assert (again.tasks, again.accuracies) == (whole.tasks, whole.accuracies)
    assert again.cost.trained == whole.cost.trainings - done


def test_a_broken_or_orphaned_file_is_made_again(tmp_path, caplog):
    data = pool()
    tasks = ((0, 1), (2, 3))
    with Evaluator(data, [LDA()], seed=1, store=PrefixStore(tmp_path)) as evaluator:
        rows = evaluator.accuracies(tasks, 0)
    files = sorted(tmp_path.rglob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns)
    files[1].write_bytes(b"broken")
    with Evaluator(data, [LDA()], seed=1, store=PrefixStore(tmp_path)) as evaluator, evaluator.counted() as cost:
        assert evaluator.accuracies(tasks, 0) == rows
    assert cost.trained == 1 and "broken and made again" in caplog.text


def test_files_hold_what_is_new(tmp_path):
    store = PrefixStore(tmp_path)
    big = torch.arange(10_000.0)
    store.put("aa", Outcome({"big": big, "n": torch.tensor(1)}, (0.5,), 1.0), None)
    store.put("bb", Outcome({"big": big, "n": torch.tensor(2)}, (0.25, 0.5), 2.0), "aa")
    size = {file.stem: file.stat().st_size for file in tmp_path.rglob("*.safetensors")}
    assert size["aa"] > 40_000 and size["bb"] < 1_000
    again = PrefixStore(tmp_path)
    outcome = again.get("bb")
    assert outcome.accuracies == (0.25, 0.5) and torch.equal(outcome.state["big"], big)
    (tmp_path / "aa" / "aa.safetensors").unlink()
    assert PrefixStore(tmp_path).get("bb") is None


class Failing(SimpleCIL):
    def __init__(self, fault, name="failing"):
        self.fault, self.name = fault, name

    def logits(self, state, data, rows):
        if len(state["classes"]) < 4:
            return super().logits(state, data, rows)
        if self.fault == "raises":
            raise RuntimeError("broken head")
        return super().logits(state, data, rows) * float("nan")


def test_undefined_features_never_choose_a_task():
    class Blind(Finetune):
        name = "blind"

        def features(self, state, data, rows):
            features = super().features(state, data, rows)
            return features * float("nan") if len(state["classes"]) else features

        def logits(self, state, data, rows):
            return torch.zeros(len(rows), len(state["classes"]))

    with Evaluator(pool(), [Blind(encoder(), epochs=1)], seed=1) as evaluator:
        with pytest.raises(LearnerError, match="blind gave features .* after 2 classes"):
            search_sequence(evaluator, SMALL)


@pytest.mark.parametrize(
    "fault, message, workers", [("raises", "RuntimeError .*broken head", 1), ("nan", "NaN or infinite", 2)]
)
def test_a_failing_learner_ends_the_search_with_its_name(fault, message, workers):
    with Evaluator(pool(), [SimpleCIL(), Failing(fault)], seed=1, workers=workers) as evaluator:
        with pytest.raises(LearnerError, match=f"failing.*{message}"):
            search_sequence(evaluator, SMALL)


def test_settings_are_checked_together():
    with pytest.raises(UsageError) as caught:
        SearchSettings(tasks=0, pick="best", discount=2, exploration=-1, target_quantile=3)
    assert len(caught.value.problems) == 5
    with pytest.raises(UsageError) as caught:
        RewardSettings(kind="x", aggregate="y", learning_weight=-1, cvar_share=0, easiest=True, targets=(0.5,))
    assert len(caught.value.problems) == 5
    with Evaluator(blobs(classes=5, groups=[0, 0, 1, 2, 3]), [SimpleCIL()], seed=1) as evaluator:
        with pytest.raises(UsageError, match="need 6; the pool has 5, 4 without aliases"):
            search_sequence(evaluator, SMALL)
    with pytest.raises(UsageError) as caught:
        Evaluator(pool(), [SimpleCIL(), SimpleCIL()], seed=-1, workers=0)
    assert len(caught.value.problems) == 3


def test_rewards():
    a, b = [[0.8], [0.4, 0.6]], [[1.0], [1.0, 1.0]]
    assert joint_reward([a], RewardSettings(kind="neg_aa")) == pytest.approx(0.5)
    assert joint_reward([a], RewardSettings(kind="neg_aa_gain")) == pytest.approx((1 + 0.3) / 2)
    assert joint_reward([a[:1]], RewardSettings(kind="neg_aa_gain")) == pytest.approx((1 + 0.2) / 2)
    hard, easy = difficulty(a)[-1], difficulty(b)[-1]
    assert joint_reward([a, b], RewardSettings()) == pytest.approx((hard + easy) / 2)
    assert joint_reward([a, b], RewardSettings(easiest=True)) == pytest.approx(1 - (hard + easy) / 2)
    for aggregate, value in {"min": easy, "max": hard, "cvar": easy}.items():
        assert joint_reward([a, b], RewardSettings(aggregate=aggregate)) == pytest.approx(value)
    assert joint_reward([a], RewardSettings(targets=(0.9, 0.7))) == pytest.approx(0.8)


def test_the_proxy_is_simplecil():
    data = pool()
    proxy = ClosedFormProxy(data)
    tasks = ((3, 1), (7, 0), (9, 4))
    state, matrix = start(SimpleCIL(), data, 0), []
    for position, task in enumerate(tasks):
        state = learn_task(SimpleCIL(), state, data.task(task), 0)
        matrix.append(task_accuracies(SimpleCIL(), state, data, tasks[: position + 1], "val"))
    np.testing.assert_allclose(np.concatenate(proxy.rows(tasks)), np.concatenate(matrix))
    inside, lost = proxy.responses(tasks[:2], tasks[2])
    assert inside == pytest.approx(proxy.rows([tasks[2]])[0][0]) and lost == pytest.approx(inside - matrix[2][2])


def test_frozen_learners_have_one_vote():
    data = pool()
    with Evaluator(data, [SimpleCIL(), LDA(), RanPAC(20, 1.0), Finetune(encoder())], seed=1) as evaluator:
        assert len(Candidates(evaluator, SMALL)._prototypes((), range(10))) == 2
        assert len(Candidates(evaluator, replace(SMALL, dedupe_frozen=False))._prototypes((), range(10))) == 4
    with Evaluator(data, [SimpleCIL()], seed=1) as evaluator:
        candidates = Candidates(evaluator, replace(SMALL, pick="hardest"))
        found = candidates.sampled(())
        hardest = found[int(candidates.hardness((), found).argmax())]
        assert hardest in candidates.clustered(()) and 1 < len(candidates.clustered(())) <= 3


def aa(built):
    return float(np.mean([average_accuracy(rows)[-1] for rows in built.accuracies.values()]))


def test_hard_easy_and_in_between_are_in_this_order():
    data = blobs(classes=24, dimension=3, spread=0.5, seed=2, per_split=(12, 12, 6))
    settings = replace(SMALL, starts=16, clusters=8, simulations=16, references=12)
    with Evaluator(data, [SimpleCIL(), LDA()], seed=1) as evaluator:
        hard = search_sequence(evaluator, settings)
        easy = search_sequence(evaluator, replace(settings, candidates="random", reward=RewardSettings(easiest=True)))
        wanted = with_targets(evaluator, replace(settings, target_quantile=0.5))
        middle = search_sequence(evaluator, wanted)
        baselines = {built.builder: built for built in build_baselines(evaluator, settings, hard.cost.trainings)}
    random = np.mean([aa(built) for name, built in baselines.items() if name.startswith("random ")])
    assert aa(hard) < random - 0.1 and aa(easy) > random + 0.03
    assert aa(middle) == pytest.approx(wanted.reward.targets[-1], abs=0.05)
    assert aa(hard) < aa(middle) < aa(easy)
    with pytest.raises(UsageError, match="with_targets"):
        search_sequence(evaluator, replace(settings, target_quantile=0.5))


def test_baselines_stay_within_the_budget():
    with Evaluator(pool(), [SimpleCIL(), LDA()], seed=1) as evaluator:
        found = {built.builder: built for built in build_baselines(evaluator, SMALL, 60)}
        assert len(found) == 12 and {"best of random", "best of candidates", "proxy hardest"} <= set(found)
        assert 48 <= found["best of random"].cost.trainings <= 60
        assert found["myopic, equal budget"].cost.trainings <= 60
        assert found["proxy hardest"].cost.trainings == 6
        assert found["best of random"].objective >= np.mean([found[f"random {i}"].objective for i in range(1, 9)])
        near = myopic(evaluator, SMALL)
        candidates = Candidates(evaluator, SMALL)
        first = max(
            candidates.clustered(()),
            key=lambda task: joint_reward([evaluator.accuracies((task,), m) for m in range(2)], SMALL.reward),
        )
        assert near.tasks[0] == first
        hardest = proxy_hardest(evaluator, SMALL)
        assert json.dumps(hardest.tasks) and hardest.builder == "proxy hardest"


def test_the_documented_learner_runs():
    page = (Path(__file__).parents[2] / "docs" / "cldyb.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "class NearestMean" in block]
    assert len(code.splitlines()) < 100
    names = {"torch": torch}
    exec(code, names)
    with Evaluator(pool(), [names["NearestMean"](), LDA()], seed=1) as evaluator:
        found = search_sequence(evaluator, SMALL)
    nearest, discriminant = (np.mean([row[-1] for row in found.accuracies[name]]) for name in ("nearest", "lda"))
    assert nearest == pytest.approx(discriminant, abs=0.2) and nearest > 0.3


def test_aliases_never_meet_in_a_sequence():
    data = blobs(classes=12, groups=[0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    with Evaluator(data, [SimpleCIL()], seed=1) as evaluator:
        found = [search_sequence(evaluator, SMALL), *build_baselines(evaluator, SMALL, 30)]
    for built in found:
        assert sorted(data.groups[index] for task in built.tasks for index in task) == list(range(6))
