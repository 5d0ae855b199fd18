"""The metric object: forms of input, variants, direction, and its use as a loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from thurl.data.images import ImageError
from thurl.errors import DataError, MissingRequirementError
from thurl.iqa.afine import AFine, AFineModel, load_afine
from thurl.iqa.afine.metric import VARIANTS


@pytest.fixture(scope="module")
def metric(golden_model):
    return AFine(golden_model)


@pytest.fixture(scope="module")
def pair():
    generator = np.random.default_rng(0)
    ref = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return ref, np.clip(ref.astype(int) + generator.integers(-40, 40, ref.shape), 0, 255).astype(np.uint8)


def tensor(array):
    return torch.from_numpy(array).permute(2, 0, 1)


def test_every_form_of_a_picture_gets_the_same_score(metric, pair, tmp_path):
    ref, dis = pair
    Image.fromarray(ref).save(tmp_path / "ref.png")
    Image.fromarray(dis).save(tmp_path / "dis.png")
    expected = metric(tensor(ref)[None], tensor(dis)[None])
    assert expected.shape == (1,) and not expected.requires_grad
    forms = [
        (str(tmp_path / "ref.png"), tmp_path / "dis.png"),
        (Image.fromarray(ref), (tmp_path / "dis.png").read_bytes()),
        (ref, dis),
        (tensor(ref), tensor(dis) / 255),
        ([tensor(ref)], [dis]),
        (tensor(ref)[None] / 255, tensor(dis)[None] / 255.0),
    ]
    for form in forms:
        assert torch.allclose(metric(*form), expected, atol=1e-4)
    several = metric([ref], [dis, tensor(dis) / 255, ref])
    assert torch.allclose(several[:2], expected.expand(2), atol=1e-4) and several.shape == (3,)


def test_variants_have_a_direction_and_a_range_and_share_the_model(metric, pair):
    ref, dis = pair
    output = metric.components(ref, dis)
    for name, chosen in VARIANTS.items():
        variant = metric.variant(name)
        assert variant.lower_better is True and variant.model is metric.model
        assert variant.metric_mode == ("NR" if name == "afine_nr" else "FR")
        score = variant(dis) if name == "afine_nr" else variant(ref, dis)
        assert torch.allclose(score, output[chosen.field], atol=1e-5)
        assert variant.score_range[0] <= score.item() <= variant.score_range[1]
    assert metric.score_range == (0, 100) and metric.variant("afine").score_range == (-math.inf, math.inf)


def test_scoring_twice_gives_the_same_and_leaves_the_pictures_alone(metric, pair):
    ref, dis = (tensor(array).float() / 255 for array in pair)
    kept = ref.clone(), dis.clone()
    assert torch.equal(metric(ref, dis), metric(ref, dis))
    metric(ref, ref)
    assert torch.equal(ref, kept[0]) and torch.equal(dis, kept[1])


def test_transparency_orientation_and_16_bits(metric, pair, tmp_path):
    ref, dis = pair
    alpha = np.dstack([dis, np.full(dis.shape[:2], 255, np.uint8)])
    alpha[:8, :, 3] = 0  # becomes white
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    white = dis.copy()
    white[:8] = 255
    assert torch.allclose(metric(ref, tmp_path / "alpha.png"), metric(ref, white))

    turned = Image.fromarray(np.ascontiguousarray(np.rot90(dis)))  # orientation 6 turns it back
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    assert torch.allclose(metric(ref, tmp_path / "turned.png"), metric(ref, dis))
    stored = AFine(metric.model, upright=False)
    with pytest.raises(ValueError, match="same size"):
        stored(ref, tmp_path / "turned.png")

    grey = dis[..., 0].astype(np.uint16) * 257
    Image.fromarray(grey).save(tmp_path / "deep.png")
    assert torch.allclose(metric(ref, tmp_path / "deep.png"), metric(ref, np.repeat(dis[..., :1], 3, axis=2)))


def test_wrong_input_is_refused(metric, pair, tmp_path):
    ref, dis = pair
    floats = tensor(dis).float()
    for arguments, message in [
        ((floats, floats), "divide by 255"),
        ((ref, dis[:32]), "same size"),
        ((ref,), "needs a reference"),
        ((ref.astype(float), dis), "uint8"),
        ((torch.rand(4, 8, 8), torch.rand(4, 8, 8)), r"\(3, H, W\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            metric(*arguments)
    with pytest.raises(ValueError, match="without a reference"):
        metric.variant("afine_nr")(ref, dis)
    with pytest.raises(ValueError, match="afine_nr, afine_fr"):
        metric.variant("niqe")
    with pytest.raises(ImageError, match="no such file"):
        metric(ref, tmp_path / "none.png")


def test_models_load_from_folders_and_releases_and_untrained_parts_are_refused(
    golden_weights, golden_model, pair, tmp_path
):
    golden_model.save_pretrained(tmp_path / "model")
    expected = AFine(golden_model)(*pair)
    for path in (tmp_path / "model", golden_weights):
        assert torch.allclose(AFine.from_pretrained(path)(*pair), expected, atol=1e-4)
        half = load_afine(path, dtype=torch.bfloat16)
        assert half.vision.dtype == torch.bfloat16 and half.adapter.k.dtype == torch.float32
    with pytest.raises(MissingRequirementError, match="no A-FINE model"):
        load_afine(tmp_path / "none")
    started = AFineModel(golden_model.config)
    started.config.untrained = ["fidelity_head", "adapter"]
    assert AFine(started, "afine_nr").metric_mode == "NR"
    with pytest.raises(DataError, match="fidelity_head, adapter"):
        AFine(started)
    started.config.untrained = []


# --- as a loss -------------------------------------------------------------------------------------------------------


def scenes(count, seed):
    """Smooth pictures with edges and noise for them, (count, 3, 48, 48) each."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    clean = torch.nn.functional.interpolate(coarse, size=(48, 48), mode="bicubic", align_corners=False)
    clean[:, :, 12:30, 18:36] = torch.rand(count, 3, 1, 1, generator=generator)
    return clean.clamp(0, 1), 0.15 * torch.randn(clean.shape, generator=generator)


class Smoother(torch.nn.Module):
    """A restorer of one layer: a 5x5 filter whose weights sum to 1, at first almost the identity."""

    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(25))
        with torch.no_grad():
            self.logits[12] = 6.0

    def forward(self, pixels):
        kernel = self.logits.softmax(0).reshape(1, 1, 5, 5).repeat(3, 1, 1, 1)
        padded = torch.nn.functional.pad(pixels, (2, 2, 2, 2), mode="replicate")
        return torch.nn.functional.conv2d(padded, kernel, groups=3)


def test_as_a_loss_gradients_reach_the_picture_and_not_the_model(tiny_afine):
    metric = AFine(tiny_afine(), as_loss=True)
    dis = torch.full((1, 3, 48, 48), 3.0, requires_grad=True)  # pixels of a network may be anywhere
    for variant in VARIANTS:
        loss = metric.variant(variant)
        score = loss(dis) if variant == "afine_nr" else loss(scenes(1, 0)[0], dis)
        (gradient,) = torch.autograd.grad(score.sum(), dis)
        assert gradient.isfinite().all() and gradient.abs().max() > 0, variant
    assert not any(parameter.requires_grad for parameter in metric.model.parameters())


def test_a_restorer_learns_to_remove_noise_from_the_score_alone(tiny_afine):
    # Bars: on new scenes less than 0.3 of the noise's energy is left. Control: with the noisy picture as its own
    # reference there is nothing to gain, and more than 0.9 is left.
    loss = AFine(tiny_afine(), as_loss=True)
    left = {}
    for reference in ("clean", "noisy"):
        restorer = Smoother()
        optimizer = torch.optim.Adam(restorer.parameters(), lr=0.15)
        for step in range(50):
            clean, noise = scenes(8, 100 + step)
            optimizer.zero_grad()
            loss(clean if reference == "clean" else clean + noise, restorer(clean + noise)).mean().backward()
            optimizer.step()
        with torch.no_grad():
            clean, noise = scenes(32, 7)
            error = (restorer(clean + noise) - clean).square().mean() / noise.square().mean()
        left[reference] = error.item()
    assert left["clean"] < 0.3
    assert left["noisy"] > 0.9
