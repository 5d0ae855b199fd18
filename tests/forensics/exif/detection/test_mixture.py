"""The mixture against scikit-learn and the official values, and what it does with too few pictures."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.mixture import GaussianMixture

from thurl.errors import DataError, UsageError
from thurl.forensics.exif.mixture import Mixture, fit_mixture


GOLDEN = load_file(Path(__file__).resolve().parents[3] / "golden" / "exif_gmm.safetensors")


def golden_mixture():
    return Mixture.from_tensors("full", {name: GOLDEN[name] for name in ("weights", "means", "precisions_cholesky")})


def cloud(n=600, d=6, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, d)) * 3
    return centres[rng.integers(0, 3, n)] + rng.normal(size=(n, d)) @ rng.normal(size=(d, d))


def test_log_likelihoods_are_the_official_ones():
    mixture = golden_mixture()
    for name in ("real", "fake"):
        scores = mixture.log_likelihood(GOLDEN[name])
        torch.testing.assert_close(scores, GOLDEN[f"loglik_{name}"], rtol=1e-9, atol=0)
    train = mixture.log_likelihood(GOLDEN["train"]).sort().values
    torch.testing.assert_close(train, GOLDEN["train_loglik_sorted"], rtol=1e-9, atol=0)


def test_golden_notices_a_transposed_precision():
    mixture = golden_mixture()
    turned = Mixture("full", mixture.weights, mixture.means, mixture.precisions_cholesky.mT)
    assert (turned.log_likelihood(GOLDEN["real"]) - GOLDEN["loglik_real"]).abs().max() > 1e-2


@pytest.mark.parametrize("covariance", ["full", "tied", "diag"])
def test_scores_equal_those_of_scikit_learn(covariance):
    rows = cloud()
    reference = GaussianMixture(4, covariance_type=covariance, init_params="k-means++", random_state=2024).fit(rows)
    mixture = fit_mixture(rows, components=4, covariance=covariance)
    new = cloud(seed=1)
    np.testing.assert_allclose(mixture.log_likelihood(new).numpy(), reference.score_samples(new), rtol=1e-8)


def test_scores_at_the_papers_width_equal_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 768)) * np.linspace(0.01, 2, 768)
    reference = GaussianMixture(2, covariance_type="tied", init_params="k-means++", random_state=2024).fit(rows)
    ours = Mixture.from_tensors("tied", {
        "weights": torch.from_numpy(reference.weights_), "means": torch.from_numpy(reference.means_),
        "precisions_cholesky": torch.from_numpy(reference.precisions_cholesky_)})  # fmt: skip
    np.testing.assert_allclose(ours.log_likelihood(rows).numpy(), reference.score_samples(rows), rtol=1e-8)


def test_a_row_does_not_depend_on_the_others(monkeypatch):
    mixture, rows = fit_mixture(cloud(), components=3), torch.from_numpy(cloud(seed=2))
    together = mixture.log_likelihood(rows)
    monkeypatch.setattr("thurl.forensics.exif.mixture._CHUNK", 7)
    torch.testing.assert_close(mixture.log_likelihood(rows), together, rtol=1e-12, atol=0)
    assert mixture.log_likelihood(rows[:0]).shape == (0,)


def test_the_fit_is_the_same_each_time():
    first, second = fit_mixture(cloud(), components=3), fit_mixture(cloud(), components=3)
    assert all(torch.equal(tensor, second.tensors()[name]) for name, tensor in first.tensors().items())


def test_half_precision_features_and_values_that_are_not_finite():
    mixture = fit_mixture(cloud(), components=2)
    rows = torch.from_numpy(cloud(4, seed=3))
    half = rows.to(torch.bfloat16)
    assert torch.equal(mixture.log_likelihood(half), mixture.log_likelihood(half.double()))
    rows[1, 2], rows[2, 0] = float("nan"), float("inf")
    assert mixture.log_likelihood(rows).isnan().tolist() == [False, True, True, False]
    with pytest.raises(DataError, match=r"\(N, 6\)"):
        mixture.log_likelihood(rows[:, :5])


def test_projection_is_part_of_the_mixture():
    rows = cloud(d=12)
    mixture = fit_mixture(rows, components=2, pca=4)
    assert mixture.means.shape == (2, 4) and mixture.width == 12
    from sklearn.decomposition import PCA

    projected = PCA(4, svd_solver="full").fit(rows).transform(rows)
    reference = GaussianMixture(2, init_params="k-means++", random_state=2024).fit(projected)
    np.testing.assert_allclose(mixture.log_likelihood(rows).numpy(), reference.score_samples(projected), rtol=1e-8)


@pytest.mark.parametrize(
    ("n", "fallback", "covariance", "width"),
    [(79, "tied", "tied", 8), (17, "tied", "diag", 8), (79, "diag", "diag", 8), (79, "pca", "full", 2),
     (40, "pca", "diag", 8), (90, "refuse", "full", 8)],
)  # fmt: skip
def test_too_few_pictures_for_full_covariances(n, fallback, covariance, width, caplog):
    rows = np.random.default_rng(0).normal(size=(n, 8))
    with caplog.at_level(logging.WARNING):
        mixture = fit_mixture(rows, components=10, fallback=fallback)
    assert mixture.covariance == covariance and mixture.means.shape[1] == width and mixture.width == 8
    assert ("are needed for full rank" in caplog.text) is (n < 90)
    assert mixture.log_likelihood(rows).isfinite().all()


def test_too_few_pictures_can_be_refused():
    rows = np.random.default_rng(0).normal(size=(89, 8))
    with pytest.raises(DataError, match="90 are needed"):
        fit_mixture(rows, components=10, fallback="refuse")


def test_a_component_with_too_few_pictures_is_told(caplog):
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(200, 8)), rng.normal(size=(4, 8)) + 50])
    with caplog.at_level(logging.WARNING):
        fit_mixture(rows, components=2)
    assert "smallest of 2 components holds 4 pictures" in caplog.text


def test_full_covariances_of_too_few_pictures_would_have_been_noise():
    """Why the fallback is there: in-sample likelihoods far above those of other photographs."""
    rng = np.random.default_rng(0)
    train, other = rng.normal(size=(40, 16)), rng.normal(size=(500, 16))
    bare = GaussianMixture(4, init_params="k-means++", random_state=2024).fit(train)
    gap = bare.score_samples(train).mean() - bare.score_samples(other).mean()
    mixture = fit_mixture(train, components=4)
    ours = float(mixture.log_likelihood(train).mean() - mixture.log_likelihood(other).mean())
    assert gap > 1000 and ours < 30


@pytest.mark.parametrize(
    ("rows", "options", "error", "match"),
    [
        (np.full((30, 3), np.nan), {}, DataError, "30 features hold values"),
        (np.zeros((4, 3)), {}, DataError, "4 pictures for 10 components"),
        (np.zeros(30), {}, DataError, "a table"),
        (np.zeros((30, 3)), {"covariance": "round"}, UsageError, "none of full"),
        (np.zeros((30, 3)), {"fallback": "luck"}, UsageError, "none of tied"),
        (np.zeros((30, 3)), {"pca": 4}, UsageError, "pca=4"),
        (np.zeros((30, 3)), {"components": 0}, UsageError, "at least 1"),
    ],
)
def test_what_cannot_be_fitted(rows, options, error, match):
    with pytest.raises(error, match=match):
        fit_mixture(rows, **options)


def damaged(**changes):
    return {**golden_mixture().tensors(), **changes}


def test_tensors_that_are_no_density():
    chol = GOLDEN["precisions_cholesky"]
    negative, lower, means = chol.clone(), chol.clone(), GOLDEN["means"].clone()
    negative[1, 2, 2] *= -1
    lower[0, 3, 1] = 0.5
    means[0, 0] = float("nan")
    for tensors, match in (
        (damaged(precisions_cholesky=negative), "diagonal"),
        (damaged(precisions_cholesky=lower), "upper triangular"),
        (damaged(means=means), "means holds values that are not finite"),
        (damaged(weights=GOLDEN["weights"] * 1.001), "sum 1"),
        (damaged(weights=torch.tensor([1.2, -0.3, 0.1], dtype=torch.float64)), "positive"),
        (damaged(weights=GOLDEN["weights"].float()), "float64"),
        (damaged(precisions_cholesky=chol[:2]), r"\(3, 8, 8\)"),
        (damaged(means=means[0]), "components, columns"),
        (damaged(pca_mean=torch.zeros(8, dtype=torch.float64)), "belong together"),
        ({"weights": GOLDEN["weights"]}, "means, precisions_cholesky missing"),
    ):
        with pytest.raises(DataError, match=match):
            Mixture.from_tensors("full", tensors)
    with pytest.raises(DataError, match="none of full"):
        Mixture.from_tensors("round", damaged())
