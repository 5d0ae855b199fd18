"""Networks: names and sizes of the official ConvNet, other architectures at every size, seeds."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from thurl.distillation.convnet import ConvNet, default_depth
from thurl.distillation.networks import NETWORKS, NetworkConfig, build_network
from thurl.errors import UsageError


def test_convnet_has_the_official_keys_and_sizes(golden):
    weights = load_file(golden / "ddruo_losses.safetensors")
    net = ConvNet(3, 16, 16, 3, filters=8, depth=2)
    net.load_state_dict({key[4:]: value for key, value in weights.items() if key.startswith("net.")}, strict=True)
    # The count that papers give for ConvNet-3 on CIFAR-10.
    assert sum(p.numel() for p in ConvNet(3, 32, 32, 10).parameters()) == 320_010


@pytest.mark.parametrize(("side", "depth"), [(8, 1), (16, 2), (28, 3), (32, 3), (64, 4), (128, 5)])
def test_depth_follows_the_size(side, depth):
    assert default_depth(side, side) == depth


def test_grey_mnist_is_padded_to_32():
    net = ConvNet(1, 28, 28, 10, filters=4)
    assert net.features[0].padding == (3, 3) and net.classifier.in_features == 4 * 4 * 4
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 16, 16), (3, 32, 48), (3, 64, 64)])
def test_every_network_takes_every_size(name, channels, height, width):
    config = NetworkConfig(channels, height, width, 7, name=name, filters=8)
    net = build_network(config, 0).eval()
    images = torch.randn(3, channels, height, width)
    with torch.no_grad():
        logits, embedded = net(images), net.embed(images)
    assert logits.shape == (3, 7) and embedded.ndim == 2
    # The answer depends on the picture: no normalisation has seen a single pixel and wiped it out.
    assert float(logits.std(dim=0).max()) > 1e-6


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_norm_is_what_was_asked_for(norm):
    kinds = {type(m) for m in build_network(NetworkConfig(3, 16, 16, 2, name="resnet18", norm=norm), 0).modules()}
    assert (torch.nn.GroupNorm in kinds) == (norm == "instance")
    assert (torch.nn.BatchNorm2d in kinds) == (norm == "batch")


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone():
    config = NetworkConfig(3, 8, 8, 2, filters=4)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second, other = (build_network(config, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same) and not torch.equal(first.classifier.weight, other.classifier.weight)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "convnet9"}, "must be one of alexnet"),
        ({"name": "resnet18", "height": 8}, "takes pictures from 16 pixels on"),
        ({"classes": 1}, "classes: 1"),
        ({"depth": 5}, "leave a pixel of 16x16"),
        ({"name": "vit", "patch": 5}, "must divide 16x16"),
        ({"norm": "layer"}, "norm: `layer`"),
    ],
)
def test_what_cannot_be_built_is_refused(values, message):
    with pytest.raises(UsageError, match=message):
        NetworkConfig(**{"channels": 3, "height": 16, "width": 16, "classes": 4, **values})
