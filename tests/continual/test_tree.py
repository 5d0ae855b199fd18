"""Tree search against golden traces, and P7: look-ahead finds a planted reward that greedy never finds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from thurl.continual.tree import Tree, normalised_return, tree_search
from thurl.errors import UsageError


GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "cldyb_mcts.json").read_text())


def name(path):
    return ",".join(map(str, path))


class Table:
    """Rewards by path, roll-outs from a list."""

    def __init__(self, rewards, branching, actions, fanout=()):
        self.rewards, self.branching, self.actions, self.fanout = rewards, branching, list(actions), dict(fanout)
        self.used = 0

    def children(self, path):
        return self.fanout.get(name(path), self.branching)

    def reward(self, path):
        return self.rewards[name(path)]

    def rollout(self, path, count):
        self.used += 1
        return self.actions[self.used - 1] % count


@pytest.mark.parametrize("case", GOLDEN, ids=[case["name"] for case in GOLDEN])
def test_golden(case):
    spec, expected = case["spec"], case["expected"]
    problem = Table(spec["rewards"], spec["branching"], spec["rollout_actions"], spec.get("fanout") or {})
    tree = tree_search(
        problem,
        depth=spec["depth"],
        simulations=spec["simulations"],
        exploration=spec["c"],
        discount=spec["gamma"],
    )
    assert {name(path): count for path, count in tree.visits.items()} == expected["visits"]
    for path in tree.visits:
        assert tree.value(path) == pytest.approx(expected["values"][name(path)], abs=1e-12)
    for ours, theirs in zip(tree.trace, expected["trace"], strict=True):
        assert (list(ours.leaf), list(ours.path)) == (theirs["leaf"], theirs["path"])
        assert ours.value == pytest.approx(theirs["ret"], abs=1e-12)
    assert problem.used == expected["rollout_actions_used"]
    assert tree.best() == expected["best_by_visits"]
    assert tree.best("value") == expected["best_by_value"]


class Trap:
    """P7: a root action that pays at once and then nothing, one that pays later, and noise."""

    def __init__(self, seed):
        generator = np.random.default_rng(seed)
        self.generator = np.random.default_rng(seed + 10_000)
        trap, planted = generator.permutation(4)[:2]
        self.trap, self.planted = int(trap), int(planted)
        self.rewards = {}
        for first in range(4):
            self.rewards[(first,)] = {trap: 0.6, planted: 0.4}.get(first, generator.uniform(0.2, 0.5))
            for second in range(4):
                for path in [(first, second), *((first, second, third) for third in range(4))]:
                    low, high = (0.1, 0.1) if first == trap else (0.6, 1.0) if first == planted else (0.2, 0.5)
                    self.rewards[path] = generator.uniform(low, high)

    def children(self, path):
        return 4

    def reward(self, path):
        return self.rewards[path]

    def rollout(self, path, count):
        return int(self.generator.integers(count))


def test_look_ahead_finds_the_planted_action():
    # Bar of the method's description: 38 of 40 seeds, greedy 0 of 40.
    found = greedy = 0
    for seed in range(40):
        problem = Trap(seed)
        found += tree_search(problem, depth=3, simulations=24, exploration=0.3).best() == problem.planted
        greedy += max(range(4), key=lambda action: problem.rewards[(action,)]) == problem.planted
    assert found >= 38
    assert greedy == 0


def test_without_look_ahead_the_trap_wins():
    problem = Trap(0)
    assert tree_search(problem, depth=1, simulations=24, exploration=0.3).best() == problem.trap


def test_returns_count_all_steps_from_the_root():
    assert normalised_return([0.2, 0.4, 0.9]) == pytest.approx(0.5)
    assert normalised_return([1.0, 0.0], 0.5) == pytest.approx(2 / 3)


def test_dead_ends_end_a_path():
    problem = Table({"0": 0.1, "1": 0.9, "0,0": 0.5}, 2, [0] * 9, {"": 2, "0": 1, "1": 0, "0,0": 0})
    tree = tree_search(problem, depth=3, simulations=6, exploration=0.1)
    assert tree.best() == 1 and tree.trace[1].path == (1,)
    empty = tree_search(Table({}, 0, []), depth=2, simulations=2, exploration=0.1)
    with pytest.raises(UsageError, match="nothing to commit"):
        empty.best()


def test_an_early_stop_commits_the_same():
    for seed in range(10):
        whole = tree_search(Trap(seed), depth=3, simulations=60, exploration=0.1)
        short = tree_search(Trap(seed), depth=3, simulations=60, exploration=0.1, early_stop=True)
        assert short.best() == whole.best()
        assert short.stopped_early and len(short.trace) < 60


def test_scaled_values_do_not_depend_on_the_range_of_rewards():
    def paths(factor):
        problem = Trap(3)
        problem.rewards = {path: 0.3 + factor * value for path, value in problem.rewards.items()}
        return [
            step.path for step in tree_search(problem, depth=3, simulations=40, exploration=1.0, scale="minmax").trace
        ]

    assert paths(1.0) == paths(0.001)


def test_a_kept_subtree_goes_on_counting():
    problem = Trap(1)
    tree = tree_search(problem, depth=3, simulations=24, exploration=0.3)
    child = tree.best()
    below = tree.subtree(child)
    assert below.visits[()] == tree.visits[(child,)] and below.value(()) == tree.value((child,))
    assert Tree().subtree(0).visits == {(): 0}


def test_bad_options_are_named_together():
    with pytest.raises(UsageError) as caught:
        tree_search(Trap(0), depth=0, simulations=0, exploration=float("nan"), discount=0, scale="max")
    assert len(caught.value.problems) == 5
    with pytest.raises(UsageError, match="commit"):
        Tree().best("luck")


@pytest.mark.parametrize("simulations, told", [(2, 2), (3, 3), (12, 4)])
def test_what_is_prepared_is_asked_for_in_any_case(simulations, told):
    generator = np.random.default_rng(3)
    rewards = {f"{a}": generator.random() for a in range(4)}
    rewards |= {f"{a},{b}": generator.random() for a in range(4) for b in range(4)}
    prepared = []
    options = {"depth": 2, "simulations": simulations, "exploration": 0.1}
    tree = tree_search(Table(rewards, 4, range(99)), **options, prepare=prepared.extend)
    assert prepared == [(number,) for number in range(told)] and set(prepared) <= set(tree.visits)
    plain = tree_search(Table(rewards, 4, range(99)), **options)
    assert tree.trace == plain.trace
    # Below a committed child only those that were never visited are new; an early stop may skip even those.
    below, later = tree.subtree(0), []
    known = [path for path in below.visits if path and below.visits[path]]
    tree_search(Table(rewards, 4, range(99)), **{**options, "depth": 1}, tree=below, prepare=later.extend)
    assert later == [(n,) for n in range(4) if (n,) not in known][:simulations]
    tree_search(Table(rewards, 4, range(99)), **options, tree=below, early_stop=True, prepare=lambda paths: 1 / 0)
