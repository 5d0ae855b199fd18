"""The face recognition network of the identity check: AdaFace (arXiv 2204.00964) with its IResNet backbones.

Parameter names are those of the released checkpoints below `model.`, so that their tensors fit as they are. IR-18,
IR-50 and IR-101 differ in the number of blocks only. Input: aligned faces of 112x112 pixels in the channel order blue,
green, red, scaled by (x/255 - 0.5)/0.5 (`face_pixels`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput


__all__ = ["DEPTHS", "AdaFaceConfig", "AdaFaceModel", "AdaFaceOutput", "face_pixels"]

DEPTHS = {"ir_18": (2, 2, 2, 2), "ir_50": (3, 4, 14, 3), "ir_101": (3, 13, 30, 3)}
"""Blocks per stage of the released architectures."""

_SHRINK = 16  # four stages, each of which halves width and height


class AdaFaceConfig(PreTrainedConfig):
    """Configuration; the defaults are IR-50, 43,585,600 parameters.

    Args:
        depths: blocks in each of the four stages (`DEPTHS`).
        widths: channels of the four stages.
        image_size: width and height of the input in pixels, a multiple of 16.
        embedding_size: length of the embedding.
        dropout: share of the features dropped in training before the last linear layer.
    """

    model_type = "thurl_adaface"

    depths: list[int] | tuple[int, ...] = DEPTHS["ir_50"]
    widths: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    image_size: int = 112
    embedding_size: int = 512
    dropout: float = 0.4

    def __post_init__(self, **kwargs: Any) -> None:
        self.depths, self.widths = list(self.depths), list(self.widths)
        if len(self.depths) != 4 or len(self.widths) != 4 or min(self.depths) < 1:
            raise ValueError(f"depths={self.depths}, widths={self.widths}: four of each, at least one block per stage")
        if self.image_size < _SHRINK or self.image_size % _SHRINK:
            raise ValueError(f"image_size={self.image_size}: a multiple of {_SHRINK} is needed")
        super().__post_init__(**kwargs)


@dataclass
class AdaFaceOutput(ModelOutput):
    """What the network returns.

    Attributes:
        embedding: (B, embedding_size), length 1.
        norm: (B, 1), length of the embedding before it was normalised; low for faces that are hard to recognise.
    """

    embedding: torch.FloatTensor | None = None
    norm: torch.FloatTensor | None = None


class AdaFaceModel(PreTrainedModel):
    """Aligned faces to embeddings whose dot product is the cosine similarity of two identities."""

    config_class = AdaFaceConfig
    base_model_prefix = "adaface"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["_Block"]

    def __init__(self, config: AdaFaceConfig):
        super().__init__(config)
        widths = config.widths
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.PReLU(widths[0])
        )
        blocks, inputs = [], widths[0]
        for depth, width in zip(config.depths, widths, strict=True):
            for number in range(depth):
                blocks.append(_Block(inputs, width, 2 if number == 0 else 1))
                inputs = width
        self.body = nn.Sequential(*blocks)
        side = config.image_size // _SHRINK
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Dropout(config.dropout),
            nn.Flatten(),
            nn.Linear(inputs * side * side, config.embedding_size),
            nn.BatchNorm1d(config.embedding_size, affine=False),
        )
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **_: object) -> AdaFaceOutput:
        """Embeddings of aligned faces.

        Args:
            pixel_values: (B, 3, image_size, image_size) from `face_pixels`, any floating dtype.
        """
        x = pixel_values.to(self.output_layer[3].weight.dtype)
        features = self.output_layer(self.body(self.input_layer(x)))
        norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        # A zero vector has no direction; it stays zero, hence similarity 0, instead of turning into NaN.
        return AdaFaceOutput(embedding=features / norm.clamp_min(torch.finfo(norm.dtype).tiny), norm=norm)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Kaiming for convolutions and the linear layer, slopes of 0.25, as the released training code starts."""
        if isinstance(module, nn.Conv2d | nn.Linear):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.PReLU):
            init.constant_(module.weight, 0.25)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            if module.affine:
                init.ones_(module.weight)
                init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)


def face_pixels(faces: NDArray[np.uint8]) -> torch.Tensor:
    """Aligned RGB faces as the network wants them.

    Args:
        faces: (B, H, W, 3) uint8, RGB.

    Returns:
        (B, 3, H, W) float32 in [-1, 1], channels blue, green, red.
    """
    scaled = (faces[..., ::-1].astype(np.float64) / 255.0 - 0.5) / 0.5
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))).float()


class _Block(nn.Module):
    """Pre-activated residual block; the names of its two branches are those of the released checkpoints."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        if inputs == outputs:
            self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)
