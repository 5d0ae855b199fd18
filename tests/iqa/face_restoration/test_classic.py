"""Classic measures against scikit-image and slow versions, their limits, and orders that are known beforehand."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import gamma
from skimage.color import rgb2lab, rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from thurl.errors import DataError
from thurl.iqa.face_restoration.naturalness import (
    _fit,
    brisque_distance,
    brisque_features,
    fit_pristine,
    niqe_distance,
    niqe_features,
)
from thurl.iqa.face_restoration.signal import (
    blockiness,
    clipping,
    colourfulness,
    laplacian_variance,
    noise_sigma,
    tenengrad,
)
from thurl.iqa.face_restoration.similarity import box_downsample, colour_shift, luma, ms_ssim, psnr, ssim, to_lab

from .conftest import as_tensor, blurred, noisy, procedural


@pytest.fixture(scope="module")
def pair():
    scene = procedural(0)
    return scene, noisy(scene, 12)


# --- against scikit-image --------------------------------------------------------------------------------------------


def test_psnr_ssim_and_colour_are_those_of_scikit_image(pair):
    a, b = pair
    x, y = as_tensor(a), as_tensor(b)
    assert psnr(x, y).item() == pytest.approx(peak_signal_noise_ratio(a, b), rel=1e-12)
    settings = {"gaussian_weights": True, "use_sample_covariance": False, "sigma": 1.5, "data_range": 1.0}
    expected = structural_similarity(a / 255, b / 255, channel_axis=2, **settings)
    assert ssim(x, y).item() == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(luma(x)[0, 0].numpy() * 255, rgb2ycbcr(a)[..., 0], atol=1e-9)
    np.testing.assert_allclose(to_lab(x)[0].permute(1, 2, 0).numpy(), rgb2lab(a), atol=1e-6)


def test_ms_ssim_is_the_product_over_scales(pair):
    a, b = (luma(as_tensor(p)) for p in pair)
    full, weights = 1.0, (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    from thurl.iqa.face_restoration.similarity import _ssim_parts

    for level, weight in enumerate(weights):
        whole, contrast = _ssim_parts(a, b)
        full *= float((whole if level == 4 else contrast) ** weight)
        a, b = (torch.nn.functional.avg_pool2d(p, 2) for p in (a, b))
    assert ms_ssim(*(luma(as_tensor(p)) for p in pair)).item() == pytest.approx(full)
    assert ms_ssim(*[luma(as_tensor(pair[0]))] * 2).item() == pytest.approx(1.0)


def test_batches_are_single_pictures():
    scenes, others = [procedural(i) for i in range(3)], [noisy(procedural(i), 5 + 5 * i) for i in range(3)]
    x, y = as_tensor(*scenes), as_tensor(*others)
    for function in (psnr, ssim, ms_ssim, colour_shift):
        single = torch.cat([function(x[i : i + 1], y[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(function(x, y), single, rtol=1e-10, atol=0)
    for function in (tenengrad, laplacian_variance, noise_sigma, blockiness, colourfulness, clipping):
        single = torch.cat([function(y[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(function(y), single, rtol=1e-10, atol=0)


def test_measures_of_similarity_have_gradients(pair):
    x, y = as_tensor(pair[0])[..., :176, :176], as_tensor(pair[1])[..., :176, :176].requires_grad_()
    for function in (psnr, ssim, ms_ssim, colour_shift):
        (gradient,) = torch.autograd.grad(function(x, y).sum(), y)
        assert gradient.isfinite().all() and gradient.abs().max() > 0, function


def test_equal_pictures_and_small_ones(pair):
    x = as_tensor(pair[0])
    assert math.isinf(psnr(x, x).item())
    assert ssim(x, x).item() == pytest.approx(1)
    assert colour_shift(x, x).item() == 0
    for function in (ssim, ms_ssim):
        with pytest.raises(DataError, match="10x10"):
            function(x[..., :10, :10], x[..., :10, :10])
    with pytest.raises(DataError, match="sizes must be equal"):
        psnr(x, x[..., :100])
    for function in (tenengrad, laplacian_variance, noise_sigma, blockiness, brisque_features, niqe_features):
        with pytest.raises(DataError, match="1x1"):
            function(x[..., :1, :1])


def test_box_means_of_an_input_of_another_size(pair):
    x = as_tensor(pair[0])
    small = box_downsample(x, 2)
    torch.testing.assert_close(small, torch.nn.functional.avg_pool2d(x, 2))
    torch.testing.assert_close(box_downsample(small, 8, (192, 192)), box_downsample(x, 8), rtol=1e-9, atol=1e-12)
    with pytest.raises(DataError, match="nothing is left"):
        box_downsample(x[..., :4, :4], 8)


# --- one picture alone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [2.0, 5.0, 15.0])
def test_the_noise_level_is_found(sigma):
    rng = np.random.default_rng(0)
    flat = 0.5 + torch.from_numpy(rng.normal(0, sigma / 255, (2, 3, 256, 256)))
    torch.testing.assert_close(noise_sigma(flat), torch.full((2,), sigma, dtype=torch.float64), rtol=0.03, atol=0)
    assert noise_sigma(torch.full((1, 3, 64, 64), 0.3, dtype=torch.float64)).item() == 0


def test_jpeg_blocks_are_found_wherever_the_grid_lies():
    scene = procedural(1)
    values = []
    for quality in (100, 50, 20, 5):
        stream = io.BytesIO()
        Image.fromarray(scene).save(stream, "JPEG", quality=quality)
        decoded = as_tensor(np.asarray(Image.open(stream)))
        values.append(blockiness(decoded).item())
        assert blockiness(decoded[..., 3:, 5:]).item() == pytest.approx(values[-1], abs=0.15 * values[-1] + 0.02)
    assert values == sorted(values) and values[-1] > 0.5
    assert abs(blockiness(as_tensor(scene)).item()) < 0.1
    assert blockiness(torch.full((1, 3, 64, 64), 0.5, dtype=torch.float64)).item() == 0


def test_colourfulness_and_clipping_have_known_values():
    grey = torch.full((1, 3, 8, 8), 0.5, dtype=torch.float64)
    assert colourfulness(grey).item() == 0
    red = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    red[:, 0] = 1
    assert colourfulness(red).item() == pytest.approx(0.3 * math.hypot(255, 127.5))
    assert clipping(red).item() == 1
    assert clipping(grey).item() == 0
    grey[..., 0, :] = 1
    assert clipping(grey).item() == pytest.approx(1 / 8)


# --- orders that are known (20 procedural pictures) ------------------------------------------------------------------


@pytest.fixture(scope="module")
def treatments():
    """Originals, inputs and restorations of 20 pictures: equal, blurred by 1 and 3 pixels, noisy, other colours."""
    gt = [procedural(i) for i in range(20)]
    shifted = []
    for scene in gt:
        # Chroma moves, luma stays.
        ycbcr = np.asarray(Image.fromarray(scene).convert("YCbCr")).astype(int) + np.array([0, 12, -12])
        shifted.append(np.asarray(Image.fromarray(np.clip(ycbcr, 0, 255).astype(np.uint8), "YCbCr").convert("RGB")))
    return {
        "gt": as_tensor(*gt),
        "lq": as_tensor(*[blurred(scene, 4) for scene in gt]),
        "equal": as_tensor(*gt),
        "blur 1": as_tensor(*[blurred(scene, 1) for scene in gt]),
        "blur 3": as_tensor(*[blurred(scene, 3) for scene in gt]),
        "noise": as_tensor(*[noisy(scene, 10, seed) for seed, scene in enumerate(gt)]),
        "shifted": as_tensor(*shifted),
    }


def consistency(t, kind):
    return psnr(box_downsample(t[kind], 8), box_downsample(t["lq"], 8))


def test_fidelity_ranks_as_known(treatments):
    t = treatments
    for measure in (psnr, lambda a, b: ssim(luma(a), luma(b)), lambda a, b: ms_ssim(luma(a), luma(b))):
        equal, one, three = (measure(t[kind], t["gt"]) for kind in ("equal", "blur 1", "blur 3"))
        assert (equal > one).all() and (one > three).all()
        assert (measure(t["noise"], t["gt"]) < equal).all()


def test_sharpness_and_noise_rank_as_known(treatments):
    t = treatments
    for measure in (tenengrad, laplacian_variance):
        noise, equal, one, three = (measure(t[kind]) for kind in ("noise", "equal", "blur 1", "blur 3"))
        assert (noise > equal).all() and (equal > one).all() and (one > three).all()
    assert (noise_sigma(t["noise"]) > noise_sigma(t["equal"])).all()
    assert (noise_sigma(t["equal"]) > noise_sigma(t["blur 3"])).all()


def test_agreement_with_the_input_ranks_as_known(treatments):
    t = treatments
    # The input is a blur of 4 pixels: the more like it, the more consistent.
    values = [consistency(t, kind) for kind in ("blur 3", "blur 1", "equal")]
    assert (values[0] > values[1]).all() and (values[1] > values[2]).all()


def test_shifted_colours_are_seen_by_the_measures_of_colour_only(treatments):
    t = treatments
    assert (colour_shift(t["shifted"], t["lq"]) > 5 * colour_shift(t["equal"], t["lq"])).all()
    assert (consistency(t, "shifted") < consistency(t, "equal") - 1).all()
    for measure in (tenengrad, laplacian_variance):
        torch.testing.assert_close(measure(t["shifted"]), measure(t["equal"]), rtol=0.05, atol=0.0)
    assert (ssim(luma(t["shifted"]), luma(t["gt"])) > 0.99).all()


# --- natural scene statistics ----------------------------------------------------------------------------------------


def slow_fit(x):
    """Moments of an asymmetric generalised Gaussian, one value at a time."""
    shapes = np.arange(0.2, 10.001, 0.001)
    ratios = gamma(2 / shapes) ** 2 / (gamma(1 / shapes) * gamma(3 / shapes))
    left, right = np.sqrt(np.mean(x[x < 0] ** 2)), np.sqrt(np.mean(x[x > 0] ** 2))
    skew = left / right
    ratio = np.mean(np.abs(x)) ** 2 / np.mean(x**2) * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shape = shapes[np.argmin((ratios - ratio) ** 2)]
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * scale, right * scale


def test_the_fit_is_that_of_the_slow_version():
    rng = np.random.default_rng(0)
    rows = np.stack([rng.standard_gamma(k, 400) * rng.choice([-1.0, 1.6], 400) for k in (0.4, 1.0, 2.0)])
    shape, left, right = _fit(torch.from_numpy(rows))
    for i, row in enumerate(rows):
        assert (shape[i].item(), left[i].item(), right[i].item()) == pytest.approx(slow_fit(row), rel=1e-9)


def test_the_fit_finds_the_shape_of_known_distributions():
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(np.stack([rng.normal(size=200_000), rng.laplace(size=200_000)]))
    shape, left, right = _fit(rows)
    assert shape[0].item() == pytest.approx(2, rel=0.05) and shape[1].item() == pytest.approx(1, rel=0.05)
    torch.testing.assert_close(left, right, rtol=0.02, atol=0)


def test_patches_are_cut_row_by_row_and_flat_ones_are_undefined():
    scene = procedural(2, 200)  # 2x2 patches of 96, 8 pixels over
    rows, sharpness = niqe_features(as_tensor(scene))
    assert rows.shape == (1, 4, 36) and sharpness.shape == (1, 4) and rows.isfinite().all()
    changed = scene.copy()
    changed[:96, 96:192] = 128
    other, other_sharpness = niqe_features(as_tensor(changed))
    moved = (other - rows).abs().amax(dim=2)[0]
    assert moved.argmax() == 1 and (sharpness - other_sharpness).abs()[0].argmax() == 1  # first row, second column
    flat = torch.full((1, 3, 192, 192), 0.5, dtype=torch.float64)
    model = pristine(range(6))
    assert niqe_distance(niqe_features(flat)[0], model).isnan().all()
    assert brisque_distance(brisque_features(flat), model).isnan().all()


def natural(seed, side=288):
    """Noise with the spectrum of photographs: closer to their statistics than drawn shapes."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side))) + 1 / side
    spectrum = np.fft.fft2(rng.normal(size=(side, side))) / frequency
    grey = np.fft.ifft2(spectrum).real
    grey = 128 + 45 * (grey - grey.mean()) / grey.std()
    return np.clip(grey, 0, 255).round().astype(np.uint8)[..., None].repeat(3, axis=2)


def pristine(seeds):
    patches, sharpness, whole = [], [], []
    for seed in seeds:
        pixels = as_tensor(natural(seed))
        rows, sharp = niqe_features(pixels)
        patches.append(rows[0].numpy())
        sharpness.append(sharp[0].numpy())
        whole.append(brisque_features(pixels)[0].numpy())
    return fit_pristine(patches, sharpness, np.array(whole))


def test_distances_grow_with_distortion():
    model = pristine(range(12))
    assert model.pictures == 12 and model.patches > 36
    for distort, strengths in ((blurred, (0.7, 1.5, 3.0)), (noisy, (3, 8, 20))):
        for distance in (lambda x: niqe_distance(niqe_features(x)[0], model),
                         lambda x: brisque_distance(brisque_features(x), model)):  # fmt: skip
            unseen = [natural(seed) for seed in range(100, 104)]
            means = [distance(as_tensor(*unseen)).mean().item()]
            means += [distance(as_tensor(*[distort(p, s) for p in unseen])).mean().item() for s in strengths]
            assert means == sorted(means), (distort, means)


def test_too_few_pristine_pictures_are_refused():
    with pytest.raises(DataError, match="more than 36 patches"):
        pristine([0])
    with pytest.raises(DataError):
        fit_pristine([], [], np.empty((0, 36)))
