"""Detectors out of feature tables: the papers' settings, reproducible training, pseudo-outliers, files of tables."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.mixture import GaussianMixture

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.forensics.exif.features import FeatureTable, load_features, save_features
from thurl.forensics.exif.fitting import fit_binary, fit_one_class


def table(features, encoder="a" * 64, errors=None):
    rows = torch.as_tensor(features, dtype=torch.float32)
    names = [f"picture {number}" for number in range(len(rows))]
    return FeatureTable(rows, names, errors or [""] * len(rows), encoder)


def clouds(n=300, d=10, shift=0.8, seed=0):
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=d)
    return table(rng.normal(size=(n, d)) * 0.3 + centre), table(rng.normal(size=(n, d)) * 0.3 + centre + shift)


# --- one class -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit_length", [True, False])
def test_the_mixture_is_that_of_the_official_settings(unit_length):
    real, _ = clouds()
    detector = fit_one_class(real, unit_length=unit_length, components=3)
    rows = real.features.double().numpy()
    if unit_length:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    reference = GaussianMixture(3, init_params="k-means++", random_state=2024).fit(rows)
    np.testing.assert_allclose(detector.scores(real.features), reference.score_samples(rows), rtol=1e-8)
    ordered = np.sort(reference.score_samples(rows))
    assert detector.in_sample.keys() == {0.01, 0.05}
    np.testing.assert_allclose(detector.in_sample[0.05], ordered[int(300 * 0.05)], rtol=1e-8)


def test_bad_rows_are_left_out_of_the_fit():
    real, _ = clouds()
    holed = real.features.clone()
    holed[5] = torch.nan
    errors = ["" if row != 5 else "no such file" for row in range(300)]
    with_hole = fit_one_class(table(holed, errors=errors), unit_length=True, components=2)
    keep = torch.arange(300) != 5
    without = fit_one_class(table(real.features[keep]), unit_length=True, components=2)
    np.testing.assert_array_equal(with_hole.scores(real.features), without.scores(real.features))
    assert with_hole.training["photographs"] == 299


def test_calibration_on_other_photographs_has_the_rate_that_the_fitted_ones_miss():
    """Heavy-tailed unit vectors with few pictures per parameter, as at the published size (n / (K d) about 3)."""
    rng = np.random.default_rng(0)
    rows = rng.standard_t(3, size=(400 + 1000 + 4000, 24))
    fit, held, new = np.split(rows, [400, 1400])
    detector = fit_one_class(table(fit), unit_length=True, components=5)
    calibration = detector.calibrated(detector.scores(table(held).features), [0.05]).calibration()
    scores = detector.scores(table(new).features)
    official = (scores < detector.in_sample[0.05]).mean()
    ours = calibration.generated(scores, 0.05).mean()
    error = 3 * (0.05 * 0.95 * (1 / 1000 + 1 / 4000)) ** 0.5
    assert official > 0.15 and abs(ours - 0.05) < error


# --- binary ----------------------------------------------------------------------------------------------------------


def test_the_perceptron_learns_and_leaves_random_states_and_terminal_alone(capsys):
    real, fake = clouds(seed=1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    detector = fit_binary(real, fake, use_cpu=True, epochs=5, batch_size=64, learning_rate=1e-2)
    assert torch.equal(torch.rand(3), expected)
    assert "train_runtime" not in capsys.readouterr().out
    new_real, new_fake = clouds(seed=1, n=400)
    scores = np.concatenate([detector.scores(new_real.features[300:]), detector.scores(new_fake.features[300:])])
    right = (scores[:100] > 0).mean() / 2 + (scores[100:] < 0).mean() / 2
    assert right > 0.9
    assert detector.kind == "bc" and detector.scorer.config.hidden_size == 20
    shuffled = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    both = torch.cat([real.features, fake.features])[shuffled]
    control = fit_binary(
        table(both[:300]), table(both[300:]), use_cpu=True, epochs=5, batch_size=64, learning_rate=1e-2
    )
    control_scores = np.concatenate([control.scores(new_real.features[300:]), control.scores(new_fake.features[300:])])
    assert abs((control_scores[:100] > 0).mean() / 2 + (control_scores[100:] < 0).mean() / 2 - 0.5) < 0.2


def test_training_is_reproducible_and_depends_on_the_seed():
    real, fake = clouds(n=60)
    first, second, other = (
        fit_binary(real, fake, use_cpu=True, epochs=2, batch_size=16, seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.scores(real.features), second.scores(real.features))
    assert np.abs(first.scores(real.features) - other.scores(real.features)).max() > 1e-4


def test_pseudo_outliers_are_the_least_likely_photographs():
    real, fake = clouds(n=100)
    far = real.features.clone()
    far[:10] *= -1
    far = table(far)
    one_class = fit_one_class(table(real.features), unit_length=True, components=2)
    plain = fit_binary(far, fake, use_cpu=True, epochs=15, batch_size=32, learning_rate=1e-2)
    with_outliers = fit_binary(
        far,
        fake,
        use_cpu=True,
        epochs=15,
        batch_size=32,
        learning_rate=1e-2,
        pseudo_outlier_quantile=0.1,
        one_class=one_class,
    )
    assert with_outliers.training["pseudo_outliers"] == 10 and plain.training["pseudo_outliers"] == 0
    assert (plain.scores(far.features[:10]) > 0).all()  # trained as photographs
    assert (with_outliers.scores(far.features[:10]) < 0).all()  # trained as generated


def test_what_cannot_be_trained():
    real, fake = clouds(n=20)
    one_class = fit_one_class(real, unit_length=True, components=1)
    with pytest.raises(DataError, match="different encoders"):
        fit_binary(real, dataclasses.replace(fake, encoder="b" * 64))
    with pytest.raises(DataError, match="0 generated faces"):
        fit_binary(real, table(np.zeros((0, 10))))
    for quantile in (-0.1, 1.0):
        with pytest.raises(UsageError, match="pseudo_outlier_quantile"):
            fit_binary(real, fake, pseudo_outlier_quantile=quantile, one_class=one_class)
    with pytest.raises(UsageError, match="needs a one-class detector"):
        fit_binary(real, fake, pseudo_outlier_quantile=0.1)
    with pytest.raises(DataError, match="another encoder"):
        other = dataclasses.replace(one_class, encoder="b" * 64)
        fit_binary(real, fake, pseudo_outlier_quantile=0.1, one_class=other)


# --- files of tables -------------------------------------------------------------------------------------------------


def test_tables_round_trip(tables, tmp_path):
    features = tables["test"].features.clone()
    features[2] = torch.nan
    names = [*tables["test"].names[:-1], "bad\udcffname.jpg"]
    errors = ["" if row != 2 else "truncated" for row in range(len(features))]
    before = dataclasses.replace(tables["test"], features=features, names=names, errors=errors)
    save_features(before, tmp_path / "new" / "f.safetensors")
    after = load_features(tmp_path / "new" / "f.safetensors")
    torch.testing.assert_close(after.features, features, rtol=0, atol=0, equal_nan=True)
    assert after.errors == errors and after.encoder == before.encoder and after.transform == before.transform
    assert after.names == [*names[:-1], "bad\\udcffname.jpg"]


def test_tables_that_were_changed(tables, tmp_path):
    path = tmp_path / "f.safetensors"
    with pytest.raises(MissingRequirementError):
        load_features(path)
    save_file({"features": torch.zeros(2, 3)}, path)
    with pytest.raises(DataError, match="not a feature table"):
        load_features(path)
    for change in ({"names": ["a"]}, {"errors": ["x"] * 60}):
        save_features(dataclasses.replace(tables["test"], **change), path)
        with pytest.raises(DataError, match="do not fit each other"):
            load_features(path)
    save_features(tables["test"], path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="not a feature table"):
        load_features(path)
