"""FID and KID: golden value, singular covariances, the fast bootstrap against the slow one, and the FID network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torchvision.models import inception as tv

from thurl.errors import DataError, MissingRequirementError
from thurl.iqa.face_restoration.frechet import (
    feature_moments,
    frechet_bootstrap,
    frechet_distance,
    kernel_distance,
)
from thurl.iqa.face_restoration.inception import fid_network, inception_features, torchvision_network
from thurl.iqa.face_restoration.statistics import FeatureStatistics, load_statistics, save_statistics


GOLDEN = load_file(Path(__file__).parents[2] / "golden" / "ntire_modules_tiny.safetensors")
A, B = GOLDEN["fid.features_a"], GOLDEN["fid.features_b"]


def fid(a, b):
    return frechet_distance(*feature_moments(a), *feature_moments(b))


def test_fid_is_the_official_one():
    assert fid(A, B) == pytest.approx(float(GOLDEN["fid.expected"][0]), rel=1e-6)
    assert fid(A, A) == pytest.approx(float(GOLDEN["fid.self_expected"][0]), abs=1e-6)
    assert frechet_bootstrap(A, *feature_moments(B), resamples=2)[0] == pytest.approx(fid(A, B), rel=1e-12)


def test_fid_of_one_dimension_is_the_closed_form():
    m1, v1, m2, v2 = 1.0, 4.0, -2.0, 9.0
    value = frechet_distance(np.array([m1]), np.array([[v1]]), np.array([m2]), np.array([[v2]]))
    assert value == pytest.approx((m1 - m2) ** 2 + (v1**0.5 - v2**0.5) ** 2)


def test_singular_covariances_are_exact():
    rng = np.random.default_rng(0)
    few = 100 * rng.normal(size=(30, 200))
    assert abs(fid(few, few)) < 1e-6
    rotation = np.linalg.qr(rng.normal(size=(200, 200)))[0]
    other = 100 * rng.normal(size=(40, 200))
    assert fid(few @ rotation, other @ rotation) == pytest.approx(fid(few, other), rel=1e-9)
    assert fid(few, other) == pytest.approx(fid(other, few), rel=1e-9)


def test_fewer_pictures_give_a_larger_fid():
    rng = np.random.default_rng(0)
    reference = feature_moments(rng.normal(size=(5000, 32)))
    values = [np.mean([frechet_distance(*feature_moments(rng.normal(size=(n, 32))), *reference) for _ in range(5)])
              for n in (50, 200, 1000)]  # fmt: skip
    assert values[0] > values[1] > values[2]


def test_the_bootstrap_is_that_of_drawing_rows_again():
    reference = feature_moments(B)
    point, interval = frechet_bootstrap(A, *reference, resamples=50, level=0.8, seed=3)
    rng = np.random.default_rng(3)
    slow = [frechet_distance(*feature_moments(A[rng.integers(0, 40, 40)]), *reference) for _ in range(50)]
    assert interval.std == pytest.approx(np.std(slow, ddof=1), rel=1e-5)
    assert interval.shift == pytest.approx(np.mean(slow) - point, rel=1e-5)
    low, high = np.quantile(np.array(slow) - np.mean(slow), [0.1, 0.9])
    assert (interval.low, interval.high) == pytest.approx((point + low, point + high), rel=1e-5)
    assert interval.low < point < interval.high
    assert frechet_bootstrap(A, *reference, resamples=50, level=0.8, seed=3)[1] == interval


def test_kernel_distance_is_the_unbiased_estimate():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(12, 3)) + 0.5
    kernel = lambda u, v: (u @ v / 3 + 1) ** 3  # noqa: E731
    within = [sum(kernel(s[i], s[j]) for i in range(12) for j in range(12) if i != j) / 132 for s in (x, y)]
    across = sum(kernel(u, v) for u in x for v in y) / 144
    value, spread = kernel_distance(x, y, subsets=2)
    assert value == pytest.approx(sum(within) - 2 * across)
    assert spread == pytest.approx(0, abs=1e-9)  # both subsets are everything


def test_kernel_distance_does_not_depend_on_the_number_of_pictures():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(3000, 8))
    small = [kernel_distance(rng.normal(size=(30, 8)), reference, subsets=20, seed=i)[0] for i in range(40)]
    assert abs(np.mean(small)) < 3 * np.std(small) / 40**0.5
    shifted, _ = kernel_distance(rng.normal(size=(500, 8)) + 1, reference, subsets=20)
    assert shifted > 10 * abs(np.mean(small))


def test_wrong_features_are_errors():
    with pytest.raises(DataError, match="two rows"):
        feature_moments(A[:1])
    with pytest.raises(DataError, match="not finite"):
        feature_moments(np.full((3, 2), np.nan))
    with pytest.raises(DataError, match="length 6 and 5"):
        frechet_distance(*feature_moments(A), *feature_moments(B[:, :5]))
    with pytest.raises(DataError, match="positive semi-definite"):
        frechet_distance(np.zeros(2), -np.eye(2), np.zeros(2), np.eye(2))
    with pytest.raises(DataError):
        kernel_distance(A, B[:, :5])
    with pytest.raises(DataError):
        frechet_bootstrap(A, *feature_moments(B), resamples=1)


def test_statistics_files_keep_everything(tmp_path):
    mean, cov = feature_moments(A)
    save_statistics(tmp_path / "s.npz", FeatureStatistics(mean, cov, 40, "net", "here", A.astype(np.float32)))
    loaded = load_statistics(tmp_path / "s.npz")
    np.testing.assert_array_equal(loaded.cov, cov)
    np.testing.assert_array_equal(loaded.features, A.astype(np.float32))
    assert (loaded.count, loaded.extractor) == (40, "net")
    with pytest.raises(MissingRequirementError):
        load_statistics(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no numbers")
    with pytest.raises(DataError):
        load_statistics(tmp_path / "text.npz")
    with pytest.raises(DataError, match="are needed"):
        FeatureStatistics(mean, cov[:3, :3], 1, "net", "here")


# --- the network -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    official = fid_network()
    state = {name: value for name, value in official.state_dict().items() if not name.startswith("fc.")}
    plain = torchvision_network()
    plain.load_state_dict(state, strict=False)
    return official, plain


def test_the_network_has_the_names_of_the_ported_weights(networks):
    official, plain = networks
    state = official.state_dict()
    assert state["fc.weight"].shape == (1008, 2048)
    assert not any(name.startswith("AuxLogits") for name in state)
    assert {n for n in state if not n.startswith("fc")} == {n for n in plain.state_dict() if not n.startswith("fc")}
    counters = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    fid_network(counters)  # the released file is from before these existed
    with pytest.raises(DataError, match="Conv2d_1a_3x3.conv.weight is missing"):
        fid_network({name: value for name, value in state.items() if name != "Conv2d_1a_3x3.conv.weight"})


@pytest.mark.parametrize("name", ["Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6e", "Mixed_7b"])
def test_pooling_leaves_the_padding_out(networks, name):
    official, plain = networks
    block, other = official.get_submodule(name), plain.get_submodule(name)
    channels = block.branch_pool.conv.in_channels
    flat = torch.full((1, channels, 7, 7), 2.0)
    pooled = block.branch_pool.conv.out_channels
    with torch.no_grad():
        ours, theirs = block(flat)[:, -pooled:], other(flat)[:, -pooled:]
    # A constant stays constant up to the border, where torchvision's block mixes in zeros.
    torch.testing.assert_close(ours, ours[..., 3:4, 3:4].expand_as(ours))
    torch.testing.assert_close(ours[..., 3, 3], theirs[..., 3, 3])
    assert (theirs - ours)[..., 0, 0].abs().max() > 1e-4
    # Away from the border the blocks are one.
    x = torch.rand(1, channels, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(block(x)[..., 4, 4], other(x)[..., 4, 4])


def test_the_last_block_pools_by_maximum(networks):
    official, plain = networks
    block = official.Mixed_7c
    x = torch.rand(1, 2048, 5, 5)
    with torch.no_grad():
        maximum = torch.nn.functional.max_pool2d(x, 3, 1, 1)
        torch.testing.assert_close(block(x)[:, -192:], block.branch_pool(maximum))
        torch.testing.assert_close(block(x)[:, :-192], plain.Mixed_7c(x)[:, :-192])


def test_features_are_those_of_the_whole_network(networks):
    _, plain = networks
    torch.manual_seed(1)
    pictures = torch.rand(1, 3, 64, 64) * 2 - 1
    rows = inception_features(plain, pictures)
    assert rows.shape == (1, 2048)
    seen = []
    plain.dropout.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].flatten(1)))
    assert isinstance(plain, tv.Inception3)
    with torch.no_grad():
        plain(torch.nn.functional.interpolate(pictures, size=(299, 299), mode="bilinear", align_corners=False))
    torch.testing.assert_close(rows, seen[0])
