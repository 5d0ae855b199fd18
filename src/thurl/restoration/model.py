"""Restoration network: a U-Net of residual blocks that adds a correction to its input.

Skip connections as in U-Net (Ronneberger et al., arXiv 1505.04597), residual blocks that normalise over the channels
of a position, as in ConvNeXt (arXiv 2201.03545) and NAFNet (arXiv 2204.04676). Nothing depends on the batch or on the
size of the picture, so a tile on the network's grid is restored as the whole picture is, but for its border. The last
layer starts at 0: an untrained network gives its input back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from thurl.restoration.config import RestorationConfig
from thurl.restoration.losses import charbonnier, l1
from thurl.training.method_output import MethodOutput


__all__ = ["Critic", "RestorationModel", "RestorationOutput"]

Critic = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Restored and target pictures, (B, 3, H, W) in [0, 1], to a scalar loss that is smaller the better they are."""


@dataclass
class RestorationOutput(MethodOutput):
    """What the network returns.

    Attributes:
        restored: (B, 3, H, W), the size of the input; about [0, 1], not clipped.
    """

    restored: torch.Tensor | None = None


class RestorationModel(PreTrainedModel):
    """Degraded to restored pictures of any size.

    Losses: with a `target`, `forward` returns the term `pixel` and one per entry of `critics`. Critics judge, they are
    not part of the model: neither saved, nor trained, nor moved to another device or precision with it.
    """

    config_class = RestorationConfig
    base_model_prefix = "network"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["_Block"]

    def __init__(self, config: RestorationConfig):
        super().__init__(config)
        sizes, inner = config.hidden_sizes, config.expansion
        pixels = 3 * config.patch_size**2
        self.stem = nn.Conv2d(pixels, sizes[0], 3, padding=1)
        self.encoder = nn.ModuleList(
            nn.Sequential(*(_Block(size, inner) for _ in range(depth)))
            for size, depth in zip(sizes, config.depths, strict=True)
        )
        steps = list(zip(sizes[:-1], sizes[1:], strict=True))
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in steps)
        self.up = nn.ModuleList(nn.Conv2d(coarse, 4 * fine, 1) for fine, coarse in steps)
        self.decoder = nn.ModuleList(
            nn.Sequential(*(_Block(size, inner) for _ in range(depth)))
            for size, depth in zip(sizes[:-1], config.decoder_depths or (), strict=True)
        )
        self.head = nn.Conv2d(sizes[0], pixels, 3, padding=1)
        self._critics: dict[str, Critic] = {}
        self.post_init()

    @property
    def critics(self) -> Mapping[str, Critic]:
        """Further loss terms by name."""
        return dict(self._critics)

    def set_critics(self, critics: Mapping[str, Critic]) -> None:
        """Replace the further loss terms.

        Raises:
            ValueError: a critic named `pixel`, which is the network's own term.
        """
        if "pixel" in critics:
            raise ValueError("a critic is named `pixel`, which is the network's own term; choose another name")
        self._critics = dict(critics)  # in a plain dict: no part of the model

    def forward(
        self, pixel_values: torch.Tensor, target: torch.Tensor | None = None, **_: object
    ) -> RestorationOutput:
        """Restore, and judge where there is a target.

        Args:
            pixel_values: (B, 3, H, W), pixels in [0, 1]; any floating dtype, cast to that of the weights.
            target: (B, 3, H, W), the clean pictures.

        Raises:
            ValueError: other shapes.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3 or 0 in pixel_values.shape:
            raise ValueError(f"pixel_values has the shape {tuple(pixel_values.shape)}; it must be (B, 3, H, W)")
        restored = self._restore(pixel_values.to(self.stem.weight.dtype))
        if target is None:
            return RestorationOutput(restored=restored)
        if target.shape != pixel_values.shape:
            raise ValueError(
                f"target {tuple(target.shape)} and pixel_values {tuple(pixel_values.shape)} must be equal"
            )
        config = self.config
        pixel = (
            l1(restored, target)
            if config.pixel_loss == "l1"
            else charbonnier(restored, target, config.charbonnier_eps)
        )
        terms = {"pixel": pixel, **{name: critic(restored, target) for name, critic in self._critics.items()}}
        return RestorationOutput(terms=terms, restored=restored)

    def _restore(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        seen = x - (_MIDDLE if self.config.contrast_window is None else _local_mean(x, self.config.contrast_window))
        padded = _pad(seen / _SPREAD, self.config.multiple)
        hidden = self.stem(functional.pixel_unshuffle(padded, self.config.patch_size))
        skips = []
        for level, blocks in enumerate(self.encoder):
            hidden = blocks(hidden)
            if level < len(self.down):
                skips.append(hidden)
                hidden = self.down[level](hidden)
        for level in reversed(range(len(self.up))):
            hidden = skips[level] + functional.pixel_shuffle(self.up[level](hidden), 2)
            hidden = self.decoder[level](hidden)
        correction = _SPREAD * functional.pixel_shuffle(self.head(hidden), self.config.patch_size)
        return x + correction[..., :height, :width]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            if module is self.head:
                init.zeros_(module.weight)
            else:
                gain = _FIRST_SCALE if isinstance(module, _Correction) else 1.0
                init.normal_(module.weight, std=gain * module.weight[0].numel() ** -0.5)
            init.zeros_(module.bias)
        elif isinstance(module, _ChannelNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


_MIDDLE, _SPREAD = 0.5, 0.25
"""Of pixels: inside the network they are centred and scaled to about unit variance, as its layers expect."""

_FIRST_SCALE = 0.1
"""Of a block's last layer: small, so that deep networks start near the identity; not 0, so that all weights move."""


class _ChannelNorm(nn.Module):
    """Normalisation over the channels of each position."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        centred = wide - wide.mean(dim=1, keepdim=True)
        scaled = centred * (centred.square().mean(dim=1, keepdim=True) + 1e-6).rsqrt()
        return (scaled * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _Correction(nn.Conv2d):
    """The last layer of a block; a class of its own for its start."""


class _Block(GradientCheckpointingLayer):
    """`x + conv(gelu(conv(norm(x))))`."""

    def __init__(self, channels: int, expansion: float):
        super().__init__()
        inner = max(1, round(channels * expansion))
        self.norm = _ChannelNorm(channels)
        self.first = nn.Conv2d(channels, inner, 3, padding=1)
        self.second = _Correction(inner, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(functional.gelu(self.first(self.norm(x))))


def _local_mean(x: torch.Tensor, side: int) -> torch.Tensor:
    """Mean over the part of a square window that lies inside the picture, along one axis after the other."""
    half = side // 2
    x = functional.avg_pool2d(x, (side, 1), stride=1, padding=(half, 0), count_include_pad=False)
    return functional.avg_pool2d(x, (1, side), stride=1, padding=(0, half), count_include_pad=False)


def _pad(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Right and bottom to a multiple; mirrored, or the last pixel where the picture is smaller than its border."""
    height, width = x.shape[-2:]
    right, bottom = -width % multiple, -height % multiple
    if not right and not bottom:
        return x
    mode = "reflect" if right < width and bottom < height else "replicate"
    return functional.pad(x, (0, right, 0, bottom), mode=mode)
