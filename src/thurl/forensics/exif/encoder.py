"""The visual tower of both EXIF methods: a ResNet under torchvision's names, with a linear layer as its last.

"Deep Residual Learning for Image Recognition" (arXiv 1512.03385) with the stride in the 3x3 convolution, as
torchvision's `resnet50`, whose weights and parameter names fit here; a test holds the two together. Written out
because neither torchvision's nor transformers' ResNet can be made small enough for pictures of 40 pixels (narrow
stages, a stem without stride and pooling). The released checkpoints store these names below `model.visual.`.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from thurl.forensics.exif.config import ExifEncoderConfig


__all__ = ["EncoderOutput", "ExifEncoder", "encoder_fingerprint"]


@dataclass
class EncoderOutput(ModelOutput):
    """What the encoder returns.

    Attributes:
        features: (B, feature_size), the last linear layer's output, not normalised.
    """

    features: torch.FloatTensor | None = None


class ExifEncoder(PreTrainedModel):
    """Faces to features.

    `forward` takes `pixel_values`, (B, 3, H, W), normalised as the image processor does it; any floating dtype, cast
    to that of the weights.
    """

    config_class = ExifEncoderConfig
    base_model_prefix = "visual"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["_Bottleneck", "_Basic"]

    def __init__(self, config: ExifEncoderConfig):
        super().__init__(config)
        channels = config.stem_channels
        self.conv1 = nn.Conv2d(
            3, channels, config.stem_kernel, config.stem_stride, padding=config.stem_kernel // 2, bias=False
        )
        self.bn1 = _norm(config.norm, channels)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if config.stem_pool else nn.Identity()
        self._stages = []
        block = _Bottleneck if config.block == "bottleneck" else _Basic
        for number, (depth, size) in enumerate(zip(config.depths, config.hidden_sizes, strict=True), start=1):
            stride = 1 if number == 1 else 2
            sizes = [(channels, size, stride), *[(size, size, 1)] * (depth - 1)]
            blocks = [block(*shape, config.norm) for shape in sizes]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            self._stages.append(f"layer{number}")
            channels = size
        self.fc = nn.Linear(channels, config.feature_size)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **_: object) -> EncoderOutput:
        """Features of (B, 3, H, W) pictures."""
        x = pixel_values.to(self.conv1.weight.dtype)
        x = self.maxpool(functional.relu(self.bn1(self.conv1(x))))
        for stage in self._stages:
            x = self.get_submodule(stage)(x)
        return EncoderOutput(features=self.fc(x.mean(dim=(2, 3))))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """torchvision's start for a ResNet, torch's own for the linear layer."""
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)
        elif isinstance(module, nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)


def encoder_fingerprint(encoder: ExifEncoder) -> str:
    """SHA-256 of the visual tower's weights: names, dtypes, shapes and bytes, 64 hexadecimal digits.

    A detector keeps it, since its densities mean nothing with another encoder. The same for an encoder alone and
    inside a larger model, on any device; another for another precision. Counters of batches are left out: they
    change nothing.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _norm(kind: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(math.gcd(8, channels), channels)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, norm: str):
        super().__init__()
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), _norm(norm, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        short = x if self.downsample is None else self.downsample(x)
        return functional.relu(self.residual(x) + short)


class _Bottleneck(_Block):
    def __init__(self, inputs: int, outputs: int, stride: int, norm: str):
        super().__init__(inputs, outputs, stride, norm)
        inner = outputs // 4
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = _norm(norm, inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = _norm(norm, inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = _norm(norm, outputs)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class _Basic(_Block):
    def __init__(self, inputs: int, outputs: int, stride: int, norm: str):
        super().__init__(inputs, outputs, stride, norm)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = _norm(norm, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, padding=1, bias=False)
        self.bn2 = _norm(norm, outputs)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))
