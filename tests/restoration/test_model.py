"""The network: any size, its input at the start, gradients everywhere, critics that are no part of it."""

import pytest
import torch
from torch import nn

from thurl.restoration.config import RestorationConfig
from thurl.restoration.critics import FrozenCritic, embedding_critic, feature_critic, score_critic
from thurl.restoration.losses import charbonnier, cosine_distance, feature_distance, l1
from thurl.restoration.model import RestorationModel, _local_mean
from thurl.restoration.tiling import ramp, restore_tiled, tile_starts


TINY = {"hidden_sizes": [8, 12], "depths": [1, 1], "patch_size": 2}


def model(trained=False, **options):
    torch.manual_seed(0)
    found = RestorationModel(RestorationConfig(**{**TINY, **options}))
    if trained:  # the last layer starts at 0
        nn.init.normal_(found.head.weight, std=0.05)
    return found


def pictures(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("patch_size", [1, 2, 4])
@pytest.mark.parametrize("height, width", [(1, 1), (3, 17), (16, 16), (37, 50)])
def test_any_size_and_at_first_the_input_itself(height, width, patch_size):
    x = pictures(2, 3, height, width)
    assert torch.equal(model(patch_size=patch_size)(x).restored, x)
    changed = model(trained=True, patch_size=patch_size)(x).restored
    assert changed.shape == x.shape and changed.isfinite().all() and not torch.equal(changed, x)


@pytest.mark.parametrize("height, width", [(1, 1), (24, 19)])
def test_with_a_contrast_window_brightness_goes_through(height, width):
    x = pictures(2, 3, height, width)
    for window, equal in ((7, True), (None, False)):
        net = model(trained=True, contrast_window=window).eval()
        with torch.no_grad():
            plain, brighter = net(x).restored, net(x + 0.3).restored
        assert torch.allclose(brighter, plain + 0.3, atol=1e-4) == equal
    whole = _local_mean(x, 2 * max(height, width) + 1)
    torch.testing.assert_close(whole, x.mean((2, 3), keepdim=True).expand_as(x))


def test_padding_does_not_depend_on_the_batch():
    x, net = pictures(3, 3, 21, 18), model(trained=True).eval()
    with torch.no_grad():
        together = net(x).restored
        alone = torch.cat([net(one[None]).restored for one in x])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_every_parameter_gets_a_gradient():
    net = model(trained=True)
    loss = net(pictures(2, 3, 18, 20), pictures(2, 3, 18, 20, seed=2)).terms["pixel"]
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in net.parameters())


def test_checkpointing_gives_the_same_gradients():
    x, y = pictures(2, 3, 16, 16), pictures(2, 3, 16, 16, seed=2)
    gradients = []
    for on in (False, True):
        net = model(trained=True).train()
        if on:
            net.gradient_checkpointing_enable()
        net(x, y).terms["pixel"].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    torch.testing.assert_close(*gradients)


def test_saved_and_loaded(tmp_path):
    net = model(trained=True, pixel_loss="l1")
    net.save_pretrained(tmp_path)
    again = RestorationModel.from_pretrained(tmp_path)
    x = pictures(1, 3, 20, 20)
    assert torch.equal(again(x).restored, net(x).restored) and again.config.pixel_loss == "l1"


def test_half_precision():
    x = pictures(1, 3, 16, 16)
    net = model(trained=True)
    wide = net(x).restored
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(x, x)
    assert output.terms["pixel"].dtype == torch.float32
    torch.testing.assert_close(output.restored.float(), wide, atol=0.05, rtol=0.05)


def test_shapes_and_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\)"):
        model()(torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match="must be equal"):
        model()(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 9))
    for options in (
        {"depths": [1]},
        {"decoder_depths": [1, 1]},
        {"patch_size": 0},
        {"pixel_loss": "l3"},
        {"contrast_window": 4},
    ):
        with pytest.raises(ValueError):
            model(**options)


# --- losses ----------------------------------------------------------------------------------------------------------


def test_pixel_losses_have_their_values():
    a, b = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.3)
    assert l1(a, b).item() == pytest.approx(0.3)
    assert charbonnier(a, b, 0.4).item() == pytest.approx(0.5 - 0.4)
    assert charbonnier(a, a).item() == pytest.approx(0, abs=1e-9)
    x, y = torch.rand(1, 3, 2, 2, dtype=torch.float64, requires_grad=True), torch.rand(1, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: charbonnier(x, y), (x,))
    equal = torch.zeros(1, 3, 2, 2, requires_grad=True)
    charbonnier(equal, torch.zeros(1, 3, 2, 2)).backward()
    assert equal.grad.isfinite().all(), "the slope at equal pictures is 0, not undefined"


def test_feature_losses_have_their_values():
    a = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])  # (1, 2 channels, 2 positions), directions x and y
    b = torch.tensor([[[3.0, 1.0], [0.0, 0.0]]])  # both x
    assert feature_distance([a], [a]).item() == 0
    assert feature_distance([a], [b]).item() == pytest.approx(2**0.5 * 0.5)  # half the positions differ, by 1 each
    assert feature_distance([5 * a], [b]).item() == pytest.approx(2**0.5 * 0.5), "the length does not count"
    assert cosine_distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="0 and 1 layers"):
        feature_distance([], [a])


# --- critics ---------------------------------------------------------------------------------------------------------


def critic(kind):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()).double()
    if kind == "features":
        return feature_critic(net, lambda x: [net(x)])
    if kind == "identity":
        return embedding_critic(net, lambda x: net(x).mean((2, 3)))
    if kind == "naturalness":
        return score_critic(net, lambda x: net(x).mean((1, 2, 3)), reference=False)
    return score_critic(net, lambda x, y: (net(x) - net(y)).square().mean((1, 2, 3)), reference=True)


@pytest.mark.parametrize("kind", ["features", "identity", "naturalness", "afine"])
def test_critics_judge_and_stay_as_they_are(kind):
    net, judge = model(trained=True).train(), critic(kind)
    net.set_critics({kind: judge})
    before = {name: value.clone() for name, value in judge.network.state_dict().items()}
    names = {name for name, _ in net.named_parameters()}
    x, y = pictures(2, 3, 16, 16), pictures(2, 3, 16, 16, seed=2)
    terms = net(x, y).terms
    assert set(terms) == {"pixel", kind} and net(x).terms is None
    terms[kind].backward()
    assert any(bool(p.grad.abs().sum() > 0) for p in net.parameters()), "the loss must reach the network"
    assert all(p.grad is None and not p.requires_grad for p in judge.network.parameters())
    after = judge.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before) and not judge.network.training
    assert {name for name, _ in net.named_parameters()} == names and not any(kind in name for name in net.state_dict())
    if kind != "naturalness":
        assert judge(y, y).item() == pytest.approx(0, abs=1e-6)


def test_critics_compute_in_full_precision_and_may_not_take_the_models_name():
    judge = critic("features")
    assert next(judge.network.parameters()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert judge(torch.rand(1, 3, 8, 8).bfloat16(), torch.rand(1, 3, 8, 8)).dtype == torch.float32
    with pytest.raises(ValueError, match="named `pixel`"):
        model().set_critics({"pixel": judge})
    assert isinstance(judge, FrozenCritic)


# --- tiles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("length, tile, overlap", [(10, 8, 1), (100, 32, 8), (33, 32, 24), (64, 64, 8), (5, 64, 8)])
def test_tiles_cover_the_side_and_overlap(length, tile, overlap, multiple):
    starts = tile_starts(length, tile, overlap, multiple)
    assert starts[0] == 0 and starts[-1] + tile >= length > starts[-1]
    assert all(0 < b - a <= tile - overlap and b % multiple == 0 for a, b in zip(starts, starts[1:], strict=False))
    assert len(starts) == 1 or starts[-1] + overlap < length, "no tile lies in another one"
    with pytest.raises(ValueError, match="longer than their overlap"):
        tile_starts(10, 4, 4)
    with pytest.raises(ValueError, match="by 8 or more"):
        tile_starts(10, 9, 4, 8)


def test_fading():
    assert ramp(6, 2, 3).tolist() == pytest.approx([1 / 3, 2 / 3, 1, 3 / 4, 1 / 2, 1 / 4])
    assert ramp(12, 8, 0).tolist() == pytest.approx([0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1])
    assert ramp(4, 0, 0).tolist() == [1] * 4
    for length, tile, overlap in ((200, 32, 31), (200, 32, 20), (33, 32, 24), (100, 32, 8)):
        total = torch.zeros(length)
        for start in tile_starts(length, tile, overlap):
            part = ramp(min(tile, length - start), overlap * (start > 0), overlap * (start + tile < length))
            total[start : start + tile] += part
        assert (total > 0.1).all(), "every pixel comes from somewhere"


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_picture_of_tiles_is_the_whole_picture(batch_size):
    """A network that looks 11 pixels far, on a grid of 2; a quarter of the overlap is 12."""
    net, x = model(trained=True, patch_size=1).eval(), pictures(3, 79, 130)
    calls = []

    def restore(batch):
        calls.append(batch.shape)
        return net(batch).restored

    with torch.no_grad():
        whole = net(x[None]).restored[0]
        tiled = restore_tiled(restore, x, tile=70, overlap=48, multiple=2, batch_size=batch_size)
        assert max(shape[-1] for shape in calls) <= 70 and max(shape[0] for shape in calls) == batch_size
        torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=1e-5)
        off_grid = restore_tiled(restore, x, tile=69, overlap=48, multiple=1, batch_size=batch_size)
    assert (off_grid - whole).abs().max() > 1e-2, "tiles must keep to the grid"
    same = restore_tiled(lambda batch: batch, x, tile=32, overlap=7, batch_size=2)
    torch.testing.assert_close(same, x)
