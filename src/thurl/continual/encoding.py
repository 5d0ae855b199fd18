"""What an encoder has to give, the encoder around a model of any library, and pictures as short vectors. Light: a
process that only trains learners needs no more than torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from thurl.errors import DataError, UsageError


__all__ = ["VisionEncoder", "flat_input", "pooled"]


class VisionEncoder(nn.Module):
    """A vision model of any library that gives features.

    Args:
        backbone: the model.
        output: what of its output are the features: "cls" the first of `last_hidden_state`, "projected"
            `image_embeds`, "pooled" `pooler_output`, "features" the output itself.
        size: channels, height and width of the pictures it reads.
        description: what decides the features beside the weights, as JSON values; part of the fingerprint.
    """

    def __init__(self, backbone: nn.Module, output: str, size: Sequence[int], description: Mapping[str, Any]) -> None:
        super().__init__()
        self.backbone = backbone
        self.output = output
        self.size = tuple(size)
        self.description = {**description, "output": output, "size": list(size)}

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features [B, D] of normalised pictures, float [B, *size].

        Raises:
            UsageError: pictures of another size.
        """
        if tuple(pixel_values.shape[1:]) != self.size:
            raise UsageError(
                f"inputs are {tuple(pixel_values.shape)}; this encoder reads pictures of {('B', *self.size)}"
            )
        found = self.backbone(pixel_values)
        if self.output == "cls":
            return found.last_hidden_state[:, 0]
        if self.output == "projected":
            return found.image_embeds
        return found.pooler_output if self.output == "pooled" else found


def pooled(encoder: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Features [B, D] of an encoder that returns them, or a transformers output with `pooler_output`.

    Raises:
        UsageError: the encoder has no pooled output.
    """
    output = encoder(inputs)
    if isinstance(output, torch.Tensor):
        return output
    features = getattr(output, "pooler_output", None)
    if features is None:
        raise UsageError(
            f"{type(encoder).__name__} gives no pooled output; wrap it so that it returns [B, D] features"
        )
    return features


def flat_input(picture: Image.Image | np.ndarray[Any, Any], side: int) -> torch.Tensor:
    """A picture as `MLPEncoder` reads it, float32 [side * side] in [0, 1].

    A PIL picture or an 8-bit array is scaled (grey, box filter); a float array must have side * side values already.

    Raises:
        DataError: a float array of another size, or with NaN or infinite values.
    """
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8:
        picture = Image.fromarray(picture)
    if isinstance(picture, Image.Image):
        small = picture.convert("L").resize((side, side), Image.Resampling.BOX)
        return torch.from_numpy(np.asarray(small, dtype=np.float32).reshape(-1) / 255)
    if picture.size != side * side or not np.isfinite(picture).all():
        raise DataError(f"an array of {picture.shape} is no picture of {side}x{side} finite values")
    return torch.from_numpy(picture.astype(np.float32).reshape(-1))
