"""Encoders of pictures: the interface, a fingerprint of the weights, and a small one that trains in seconds."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from thurl.errors import DataError, MissingRequirementError, UsageError


__all__ = ["MLPEncoder", "MLPEncoderConfig", "fingerprint", "flat_input", "load_mlp_encoder", "pooled",
           "pretrain"]  # fmt: skip


class MLPEncoderConfig(PreTrainedConfig):
    """Sizes of an `MLPEncoder`.

    Args:
        side: pictures are scaled to `side` x `side` grey pixels.
        hidden_sizes: widths of the layers; the last one is the dimension of the features.
    """

    model_type = "thurl_mlp_encoder"

    def __init__(self, side: int = 8, hidden_sizes: Sequence[int] = (96, 32), **more: Any) -> None:
        self.side = side
        self.hidden_sizes = list(hidden_sizes)
        super().__init__(**more)
        if side < 1 or not self.hidden_sizes or min(self.hidden_sizes) < 1:
            raise UsageError(
                f"side {side} and hidden_sizes {self.hidden_sizes} must be 1 or more, with one layer at least"
            )


class MLPEncoder(PreTrainedModel):
    """Layers of `hidden_sizes`, a ReLU after each; the smallest encoder that can be contaminated and forget."""

    config_class = MLPEncoderConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"

    def __init__(self, config: MLPEncoderConfig) -> None:
        super().__init__(config)
        sizes = [config.side**2, *config.hidden_sizes]
        layers = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*layers)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)

    def forward(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPooling:
        """Features of pictures, float [B, side * side] in [0, 1]: `pooler_output`, [B, hidden_sizes[-1]]."""
        return BaseModelOutputWithPooling(pooler_output=self.layers(pixel_values))


def load_mlp_encoder(folder: str | os.PathLike[str]) -> MLPEncoder:
    """An encoder saved by `save_pretrained`, from this machine alone.

    Raises:
        MissingRequirementError: no such folder, or no weights in it.
        UsageError: a model of another kind.
    """
    place = Path(folder)
    try:
        kind = json.loads((place / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise MissingRequirementError(f"{folder}: no encoder: {error}; save one with `save_pretrained`") from error
    if kind != MLPEncoderConfig.model_type:
        raise UsageError(
            f"{folder}: a {kind!r} model; this loads {MLPEncoderConfig.model_type!r}. The features of any other "
            "encoder are taken from a file (thurl.continual.features.encode)"
        )
    if not (place / "model.safetensors").is_file():
        raise MissingRequirementError(f"{folder}: no model.safetensors; save the encoder again")
    return MLPEncoder.from_pretrained(place, local_files_only=True).eval()


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


def fingerprint(encoder: nn.Module) -> str:
    """SHA-256 of kind, configuration and weights: the same for a saved and loaded encoder, another after a change."""
    digest = hashlib.sha256(type(encoder).__name__.encode())
    config = getattr(encoder, "config", None)
    if isinstance(config, PreTrainedConfig):
        kept = {key: value for key, value in config.to_diff_dict().items() if key not in _UNSTABLE}
        digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# Written by save_pretrained, without effect on a feature.
_UNSTABLE = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")


def pretrain(
    encoder: MLPEncoder,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    epochs: int = 40,
    learning_rate: float = 0.02,
    batch_size: int = 64,
    seed: int = 0,
) -> float:
    """Train the encoder in place as a classifier (SGD, momentum 0.9); the head is thrown away.

    Args:
        inputs: float [N, side * side].
        labels: int64 [N] from 0.

    Returns:
        accuracy on the training samples in [0, 1].

    Raises:
        DataError: the loss is not a number at the end.
    """
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(encoder.config.hidden_sizes[-1], int(labels.max()) + 1)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * 0.01)
        head.bias.zero_()
    optimizer = torch.optim.SGD([*encoder.parameters(), *head.parameters()], lr=learning_rate, momentum=0.9)
    encoder.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs), generator=generator).split(batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(pooled(encoder, inputs[rows])), labels[rows]).backward()
            optimizer.step()
    encoder.eval()
    with torch.no_grad():
        logits = head(pooled(encoder, inputs))
    if not bool(logits.isfinite().all()):
        raise DataError(f"pre-training diverged at a learning rate of {learning_rate}; lower it")
    return float((logits.argmax(dim=1) == labels).double().mean())
