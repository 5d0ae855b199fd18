"""SimpleCIL, RanPAC and LDA: golden numbers, P9 (incremental is one-shot in every order), purity, bad learners."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from thurl.continual.class_data import ClassData
from thurl.continual.closed_form import LDA, RanPAC, SimpleCIL
from thurl.continual.learner import LearnerError, learn_task, start, state_hash, task_accuracies
from thurl.continual.ridge import (
    RIDGE_GRID,
    class_means,
    cosine_logits,
    random_features,
    ridge_losses,
    ridge_weights,
    select_ridge,
)
from thurl.errors import DataError, UsageError

from .conftest import TASKS, blobs, learned


@pytest.fixture(scope="module")
def vectors(request):
    return dict(np.load(request.path.parents[1] / "golden" / "cldyb_closed_form.npz"))


def test_golden_prototypes(vectors):
    x, y, queries = (torch.from_numpy(vectors[name]) for name in ("X", "y", "Xq"))
    for task in range(3):
        means = class_means(x, y, torch.arange(2 * (task + 1)))
        np.testing.assert_allclose(cosine_logits(queries, means), vectors[f"simplecil_logits_{task}"], rtol=1e-9)
    np.testing.assert_allclose(means, vectors["simplecil_weight"], rtol=1e-9)


def test_golden_random_features_and_ridge(vectors):
    x, y, queries, projection = (torch.from_numpy(vectors[name]) for name in ("X", "y", "Xq", "W_rand"))
    gram, targets = torch.zeros(12, 12, dtype=torch.float64), torch.zeros(12, 0, dtype=torch.float64)
    for task in range(3):
        rows = (y // 2) == task
        hidden = random_features(x[rows], projection)
        gram += hidden.T @ hidden
        member = torch.nn.functional.one_hot(y[rows] - 2 * task, 2).double()
        targets = torch.cat([targets, hidden.T @ member], dim=1)
        weights = ridge_weights(gram, targets, float(vectors["ridge"]))
        logits = random_features(queries, projection) @ weights
        np.testing.assert_allclose(logits, vectors[f"ranpac_logits_{task}"], rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(gram, vectors["ranpac_G"], rtol=1e-9)
    np.testing.assert_allclose(targets, vectors["ranpac_Q"], rtol=1e-9)
    np.testing.assert_allclose(weights, vectors["ranpac_Wo"], rtol=1e-9, atol=1e-13)


def test_golden_choice_of_the_ridge(vectors):
    order = torch.from_numpy(vectors["ridge_perm"])
    hidden = random_features(torch.from_numpy(vectors["X"]), torch.from_numpy(vectors["W_rand"]))[order]
    member = torch.nn.functional.one_hot(torch.from_numpy(vectors["y"]), 6).double()[order]
    np.testing.assert_allclose(RIDGE_GRID, vectors["ridge_grid"], rtol=1e-12)
    losses = ridge_losses(hidden, member).numpy()
    small = vectors["ridge_grid"] <= 1e-6
    np.testing.assert_allclose(losses[small], vectors["ridge_losses"][small], rtol=1e-4)
    np.testing.assert_allclose(losses[~small], vectors["ridge_losses"][~small], rtol=1e-9)
    assert select_ridge(hidden, member) == pytest.approx(float(vectors["ridge_selected"]))


def test_both_forms_of_the_ridge_agree():
    # More columns than samples takes the matrix between samples; the direct solve takes neither eigendecomposition.
    generator = torch.Generator().manual_seed(0)
    for samples, width in ((50, 8), (20, 60)):
        hidden = torch.rand(samples, width, generator=generator, dtype=torch.float64)
        member = torch.rand(samples, 3, generator=generator, dtype=torch.float64)
        cut = int(0.8 * samples)
        fit = hidden[:cut]
        direct = []
        for ridge in (1e-2, 1.0, 100.0):
            weights = ridge_weights(fit.T @ fit, fit.T @ member[:cut], ridge)
            direct.append(float((hidden[cut:] @ weights - member[cut:]).square().mean()))
        np.testing.assert_allclose(ridge_losses(hidden, member, (1e-2, 1.0, 100.0)), direct, rtol=1e-9)


def test_incremental_ranpac_is_the_ridge_on_the_union_in_every_order(data):
    learner = RanPAC(width=40, ridge=0.5)
    rows = data.rows(range(8), "test")
    for order in itertools.permutations(TASKS):
        state = learned(learner, data, order)
        classes = [index for task in order for index in task]
        seen = data.rows(classes, "train")
        hidden = learner._hidden(state, data, seen)
        member = (data.labels[seen][:, None] == torch.tensor(classes)).double()
        weights = torch.linalg.solve(hidden.T @ hidden + 0.5 * torch.eye(40, dtype=torch.float64), hidden.T @ member)
        np.testing.assert_allclose(state["weights"], weights, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(
            learner.logits(state, data, rows), learner._hidden(state, data, rows) @ weights, rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("learner", [SimpleCIL(), LDA()], ids=lambda learner: learner.name)
def test_the_order_of_tasks_permutes_columns_only(learner, data):
    rows = data.rows(range(8), "test")
    first = learned(learner, data, TASKS)
    wanted = learner.logits(first, data, rows)[:, torch.argsort(first["classes"])]
    for order in itertools.permutations(TASKS):
        state = learned(learner, data, order)
        found = learner.logits(state, data, rows)[:, torch.argsort(state["classes"])]
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


def test_the_discriminant_is_that_of_scikit_learn(data):
    ridge = 1e-2
    state = learned(LDA(ridge), data, TASKS)
    classes = state["classes"].tolist()
    seen, rows = data.rows(classes, "train"), data.rows(classes, "test")
    theirs = LinearDiscriminantAnalysis(solver="lsqr", priors=np.full(6, 1 / 6))
    theirs.fit(data.frozen(seen).numpy(), [classes.index(label) for label in data.labels[seen]])
    # scikit-learn's covariance without our ridge: at a tiny ridge the decisions are the same.
    tiny = learned(LDA(1e-9), data, TASKS)
    ours = LDA(1e-9).logits(tiny, data, rows).argmax(dim=1)
    assert ours.tolist() == theirs.predict(data.frozen(rows).numpy()).tolist()
    # With it: differences of logits are differences of normal log-densities.
    covariance = state["scatter"].numpy() / int(state["count"]) + ridge * np.eye(6)
    logits = LDA(ridge).logits(state, data, rows).numpy()
    densities = np.stack(
        [multivariate_normal(mean, covariance).logpdf(data.frozen(rows).numpy()) for mean in state["means"].numpy()], 1
    )
    np.testing.assert_allclose(logits[:, 1:] - logits[:, :1], densities[:, 1:] - densities[:, :1], rtol=1e-7)


@pytest.mark.parametrize("learner", [SimpleCIL(), LDA(), RanPAC(30), RanPAC(30, 1.0)], ids=lambda x: str(x.config()))
def test_learning_changes_no_state_and_is_deterministic(learner, data):
    state = learned(learner, data, TASKS[:2])
    before = state_hash(state)
    again = [state_hash(learn_task(learner, state, data.task(TASKS[2]), 9)) for _ in range(2)]
    assert state_hash(state) == before
    assert again[0] == again[1] != before
    assert not learner.config().keys() - {"name", "width", "ridge"}


def test_far_blobs_are_told_apart_and_shuffled_labels_are_not():
    far = blobs(spread=0.05)
    shuffled = ClassData(
        far.classes,
        far.labels,
        [
            split
            for _ in range(8)
            for split, n in zip(("train", "val", "test"), (8, 5, 6), strict=True)
            for _ in range(n)
        ],
        features=far.features[torch.from_numpy(np.random.default_rng(0).permutation(len(far.labels)))],
    )
    for learner in (SimpleCIL(), LDA(), RanPAC(100)):
        assert task_accuracies(learner, learned(learner, far, TASKS), far, TASKS, "test") == [1.0, 1.0, 1.0]
        assert np.mean(task_accuracies(learner, learned(learner, shuffled, TASKS), shuffled, TASKS, "test")) < 0.5


class Wrong(SimpleCIL):
    name = "wrong"

    def __init__(self, fault):
        self.fault = fault

    def learn(self, state, task, seed):
        if self.fault == "raises":
            raise RuntimeError("no memory")
        new = super().learn(state, task, seed)
        if self.fault == "nan state":
            new["means"][0, 0] = float("nan")
        if self.fault == "classes":
            new["classes"] = new["classes"].flip(0)
        if self.fault == "impure":
            state["classes"].resize_(1).fill_(0)
        return new

    def logits(self, state, data, rows):
        logits = super().logits(state, data, rows)
        return {"nan logits": logits * float("nan"), "shape": logits[:, :1]}.get(self.fault, logits)


@pytest.mark.parametrize(
    "fault, message",
    [
        ("raises", "RuntimeError learning task blobs/00, blobs/03 after 0 classes: no memory"),
        ("nan state", "means of its state is NaN"),
        ("classes", "must be int64"),
        ("impure", "changed the state it was given"),
        ("nan logits", "logits that are NaN"),
        ("shape", "logits of shape"),
    ],
)
def test_a_learner_that_fails_is_named(data, fault, message):
    learner = Wrong(fault)
    with pytest.raises(LearnerError, match=message) as caught:
        state = learned(learner, data, TASKS[:1])
        task_accuracies(learner, state, data, TASKS[:1], "val")
    assert "wrong" in str(caught.value) and caught.value.exit_code == 1


def test_equal_logits_go_to_the_class_that_came_first(data):
    class Constant(SimpleCIL):
        def logits(self, state, data, rows):
            return torch.zeros(len(rows), len(state["classes"]))

    state = learned(Constant(), data, [(4, 2)])
    assert task_accuracies(Constant(), state, data, [(4,), (2,)], "test") == [1.0, 0.0]


def test_bad_data_and_settings_are_refused():
    with pytest.raises(UsageError, match="width"):
        RanPAC(0, -1.0)
    with pytest.raises(DataError, match="NaN"):
        blobs(features=torch.full((8 * 19, 6), float("nan")))
    with pytest.raises(DataError, match="b: no test sample"):
        ClassData(["a", "b"], torch.tensor([0, 0, 0, 1, 1]), ["train", "val", "test", "train", "val"])
    with pytest.raises(UsageError) as caught:
        ClassData(["a", "a"], torch.tensor([0, 5]), ["train"], features=torch.zeros(3, 2))
    assert len(caught.value.problems) == 4
    with pytest.raises(UsageError, match="give `features`"):
        start(SimpleCIL(), blobs(features=None), 0)
