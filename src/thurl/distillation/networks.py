"""Networks by name: ConvNet, and the architectures a distilled set is tried on that it was not made with.

ResNet18, VGG11, AlexNet and ViT are torchvision's, with what a small picture needs changed: below 64 pixels the
stems keep the resolution, pooling that would leave less than 2x2 pixels is left out, and VGG11 and AlexNet end in one
linear layer in place of three. Batch norm gives way to `norm`. The paper's ViT: patch 16, width 512, 10 layers,
8 heads, MLP 512, dropout 0.01.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from thurl.distillation.convnet import NORMS, Classifier, ConvNet, norm_layer
from thurl.errors import UsageError


__all__ = ["NETWORKS", "NetworkConfig", "build_network", "draw_network", "matching_problems"]

NETWORKS = ("alexnet", "convnet", "resnet18", "vgg11", "vit")

SMALLEST = {"alexnet": 8, "convnet": 2, "resnet18": 16, "vgg11": 8, "vit": 2}
"""Shortest side each network takes; below, a normalisation would see a single pixel."""


@dataclass(frozen=True)
class NetworkConfig:
    """What fixes a network but for its weights.

    Args:
        channels, height, width: of the pictures.
        classes: outputs, at least 2.
        name: one of `NETWORKS`.
        filters: width of ConvNet's layers; other networks ignore it.
        depth: ConvNet's blocks; None: 3 at 32 pixels, 5 at 128.
        norm: `instance`, `batch` or `none`; AlexNet has none, ViT its own.
        patch: side of ViT's patches, which must divide height and width.

    Raises:
        UsageError: a value outside its range.
    """

    channels: int
    height: int
    width: int
    classes: int
    name: str = "convnet"
    filters: int = 128
    depth: int | None = None
    norm: str = "instance"
    patch: int = 16

    def __post_init__(self) -> None:
        problems = []
        if self.name not in NETWORKS:
            problems.append(f"network: `{self.name}` must be one of {', '.join(NETWORKS)}")
        elif min(self.height, self.width) < SMALLEST[self.name]:
            problems.append(
                f"network: {self.name} takes pictures from {SMALLEST[self.name]} pixels on, "
                f"not {self.height}x{self.width}"
            )
        if self.norm not in NORMS:
            problems.append(f"norm: `{self.norm}` must be one of {', '.join(NORMS)}")
        if self.classes < 2:
            problems.append(f"classes: {self.classes} must be at least 2")
        if self.channels not in (1, 3):
            problems.append(f"channels: {self.channels} must be 1 or 3")
        if self.filters < 1:
            problems.append(f"filters: {self.filters} must be at least 1")
        if self.name == "vit" and (self.patch < 1 or self.height % self.patch or self.width % self.patch):
            problems.append(f"patch: {self.patch} must divide {self.height}x{self.width}")
        if problems:
            raise UsageError(problems)
        if self.name == "convnet":
            with torch.device("meta"):
                _BUILD["convnet"](self)


def build_network(config: NetworkConfig, seed: int) -> Classifier:
    """A network with torch's initial weights; those of a seed are the same whatever was drawn before, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _BUILD[config.name](config)


def draw_network(config: NetworkConfig, generator: torch.Generator) -> Classifier:
    """A network whose seed comes from `generator`."""
    return build_network(config, int(torch.randint(2**62, (1,), generator=generator)))


def matching_problems(config: NetworkConfig) -> list[str]:
    """Why utility losses and experts cannot use a network; empty if they can.

    What a picture gives must depend on nothing but the picture: batches are cut to fit the memory.
    """
    problems = []
    if config.norm == "batch" and config.name != "alexnet":
        problems.append("norm: with `batch` the answer depends on the batch; matching takes `instance` or `none`")
    if config.name == "vit":
        problems.append("network: vit draws its dropout from the global generator; matching takes another network")
    return problems


class _Network(Classifier):
    def __init__(self, features: nn.Module, config: NetworkConfig):
        super().__init__()
        self.features = features
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            training = features.training
            size = features.eval()(torch.zeros(1, config.channels, config.height, config.width)).numel()
            features.train(training)
        self.classifier = nn.Linear(size, config.classes)


def _convnet(config: NetworkConfig) -> Classifier:
    return ConvNet(
        config.channels, config.height, config.width, config.classes, config.filters, config.depth, config.norm
    )


def _resnet18(config: NetworkConfig) -> Classifier:
    from torchvision.models import resnet18

    net = resnet18(weights=None, norm_layer=lambda channels: norm_layer(config.norm, channels))
    small = min(config.height, config.width) < 64
    if small:
        net.conv1 = nn.Conv2d(config.channels, 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
    elif config.channels != 3:
        net.conv1 = nn.Conv2d(config.channels, 64, 7, stride=2, padding=3, bias=False)
    net.fc = nn.Identity()
    return _Network(net, config)


def _vgg11(config: NetworkConfig) -> Classifier:
    from torchvision.models import vgg11_bn

    side = min(config.height, config.width)
    layers: list[nn.Module] = []
    for layer in _trunk(vgg11_bn):
        if isinstance(layer, nn.BatchNorm2d):
            layer = norm_layer(config.norm, layer.num_features)
        elif isinstance(layer, nn.MaxPool2d):
            if side < 4:
                continue
            side //= 2
        layers.append(layer)
    if config.channels != 3:
        layers[0] = nn.Conv2d(config.channels, 64, 3, padding=1)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):  # as torchvision starts VGG
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return _Network(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), config)


def _alexnet(config: NetworkConfig) -> Classifier:
    from torchvision.models import alexnet

    side = min(config.height, config.width)
    layers = _trunk(alexnet)
    if side < 64:
        layers[0] = nn.Conv2d(config.channels, 64, 5, padding=2)
        pools = [layer for layer in layers if isinstance(layer, nn.MaxPool2d)]
        for pool in pools:
            if side < 5:
                layers.remove(pool)
            else:
                side = (side - 3) // 2 + 1
    elif config.channels != 3:
        layers[0] = nn.Conv2d(config.channels, 64, 11, stride=4, padding=2)
    return _Network(nn.Sequential(*layers), config)


def _trunk(make: Callable[..., nn.Module]) -> list[nn.Module]:
    """The layers of `features`, without spending time on the 100 million weights of the layers behind it."""
    with torch.device("meta"):
        trunk = make(weights=None).features
    for layer in trunk.to_empty(device="cpu"):
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return list(trunk)


def _vit(config: NetworkConfig) -> Classifier:
    from torchvision.models import VisionTransformer

    # torchvision's takes square pictures; only the number of positions depends on the side.
    net = VisionTransformer(
        image_size=config.patch,
        patch_size=config.patch,
        num_layers=10,
        num_heads=8,
        hidden_dim=512,
        mlp_dim=512,
        dropout=0.01,
        num_classes=config.classes,
    )
    net.heads = nn.Identity()
    if config.channels != 3:
        net.conv_proj = nn.Conv2d(config.channels, 512, config.patch, stride=config.patch)
    return _Network(_Patches(net, config), config)


class _Patches(nn.Module):
    """ViT on pictures of any shape that its patches cover."""

    def __init__(self, net: nn.Module, config: NetworkConfig):
        super().__init__()
        self.projection, self.encoder = net.conv_proj, net.encoder
        self.class_token = nn.Parameter(torch.zeros(1, 1, 512))
        count = (config.height // config.patch) * (config.width // config.patch) + 1
        self.encoder.pos_embedding = nn.Parameter(torch.empty(1, count, 512).normal_(std=0.02))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.projection(images).flatten(2).transpose(1, 2)
        return self.encoder(torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1))[:, 0]


_BUILD = {"alexnet": _alexnet, "convnet": _convnet, "resnet18": _resnet18, "vgg11": _vgg11, "vit": _vit}
