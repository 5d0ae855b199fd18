"""Two ways to the same picture: small and large ones upsampled, hidden layers kept or made again."""

from __future__ import annotations

import pytest
import torch

from thurl.distillation import mixing, synthesis
from thurl.distillation.neighbours import neighbours


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (4, 4), (8, 8)])
def test_small_pictures_are_upsampled_like_large_ones(size, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 4, *size, generator=generator)
    kernel = torch.randn(3, 8, 8, generator=generator)
    target = (2 * size[0] - 1, 2 * size[1])
    at_once = synthesis.upsample(features, kernel, target)
    monkeypatch.setattr(synthesis, "_SMALL", 0)
    assert at_once.shape == (3, 4, *target)
    torch.testing.assert_close(at_once, synthesis.upsample(features, kernel, target), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(3, 3), (9, 9)])
def test_training_after_inference(size):
    """Tables that are kept between calls are made outside of inference mode, whose tensors no gradient may use."""
    synthesis._uses.cache_clear()
    synthesis._phases.cache_clear()
    kernel = synthesis.bicubic_kernel()[None]
    features = torch.ones(1, 1, *size)
    target = (2 * size[0], 2 * size[1])
    with torch.inference_mode():
        synthesis.upsample(features, kernel, target)
    kernel.requires_grad_()
    synthesis.upsample(features, kernel, target).sum().backward()
    assert kernel.grad.abs().sum() > 0


def test_a_constant_stays_constant():
    kernel = synthesis.bicubic_kernel()[None]
    for size in ((3, 3), (9, 9)):
        large = synthesis.upsample(torch.full((1, 1, *size), 5.0), kernel, (2 * size[0], 2 * size[1]))
        torch.testing.assert_close(large, torch.full_like(large, 5.0))


@pytest.mark.parametrize("widths", [(4, 7, 3), (5, 6, 9, 1), (2, 3)])
def test_layers_in_blocks_are_layers_at_once(widths, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, widths[0], 37, generator=generator)
    network = []
    for inside, outside in zip(widths, widths[1:], strict=False):
        network += [torch.randn(2, outside, inside, generator=generator), torch.randn(2, outside, generator=generator)]
    weights = torch.randn(2, widths[-1], 37, generator=generator)
    results = []
    for kept in (2**20, -1):
        monkeypatch.setitem(mixing._KEPT, "cpu", kept)
        monkeypatch.setitem(mixing._BLOCK, "cpu", 100)
        inputs = [tensor.clone().requires_grad_() for tensor in (features, *network)]
        mixed = mixing.mix(inputs[0], inputs[1:])
        assert ("_Mix" in type(mixed.grad_fn).__name__) == (kept < 0)
        results.append([mixed, *torch.autograd.grad((mixed * weights).sum(), inputs)])
    for whole, blocks in zip(*results, strict=True):
        torch.testing.assert_close(blocks, whole, atol=1e-4, rtol=1e-4)


def test_large_hidden_layers_are_not_kept(monkeypatch):
    features = torch.randn(1, 4, 1000, requires_grad=True)
    network = [torch.randn(1, 64, 4), torch.randn(1, 64), torch.randn(1, 3, 64), torch.randn(1, 3)]
    kept = []
    for limit in (2**20, -1):
        monkeypatch.setitem(mixing._KEPT, "cpu", limit)
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            mixing.mix(features, network)
        kept.append(max(sizes))
    assert kept[0] >= 64 * 1000 * 4 and kept[1] == 4 * 1000 * 4


def test_windows_have_derivatives_of_every_order():
    padded = torch.randn(2, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    offsets = ((0, 0), (1, 2), (0, 1))
    found = neighbours(padded, offsets, (3, 3))
    for k, (row, column) in enumerate(offsets):
        assert torch.equal(found[:, k], padded[:, :, row : row + 3, column : column + 3])
    assert torch.autograd.gradcheck(lambda x: neighbours(x, offsets, (3, 3)), padded)
    assert torch.autograd.gradgradcheck(lambda x: neighbours(x, offsets, (3, 3)).square(), padded)


def test_pictures_are_1x1_layers_and_two_residual_3x3_ones():
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 4, 1), (3, 5, 1), (3, 3, 3), (3, 3, 3)]
    weights = [torch.randn(1, out, into, k, k, generator=generator) for out, into, k in shapes]
    network = [part for weight in weights for part in (weight, torch.randn(1, weight.shape[1], generator=generator))]
    features = torch.randn(1, 4, 2, 6, 7, generator=generator)
    conv = torch.nn.functional.conv2d
    (w1, b1), (w2, b2), (w3, b3), (w4, b4) = [(network[i][0], network[i + 1][0]) for i in range(0, 8, 2)]
    x = conv(conv(features[0].transpose(0, 1), w1, b1).relu(), w2, b2)
    for weight, bias, last in ((w3, b3, False), (w4, b4, True)):
        x = x + conv(torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), weight, bias)
        x = x if last else x.relu()
    torch.testing.assert_close(synthesis.synthesise(features, network)[0], x, atol=1e-4, rtol=1e-4)
