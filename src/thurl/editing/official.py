"""The released vision transformers of "Learning Where to Edit Vision Transformers" as models of timm and transformers.

Their layout is that of `backbone.transformer.encoder.layer.N.attn.query` and so on; read such a file with
`thurl.training.released_files.read_checkpoint`. Epsilon of all norms is 1e-6. `backbone.pred_head` is an unused copy
of the head and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.training.released_files import read_checkpoint


__all__ = ["convert_official_vit", "official_vit", "save_official_vit"]

_ROOT = "backbone.transformer."
_EMBEDDINGS = ("cls_token", "position_embeddings", "patch_embeddings.weight", "patch_embeddings.bias")
# By library: the four embeddings in this order, then prefix of a block, final norm, head.
_OUTSIDE = {
    "timm": (("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"), "blocks", "norm", "head"),
    "transformers": (
        (
            "vit.embeddings.cls_token",
            "vit.embeddings.position_embeddings",
            "vit.embeddings.patch_embeddings.projection.weight",
            "vit.embeddings.patch_embeddings.projection.bias",
        ),
        "vit.layers",
        "vit.layernorm",
        "classifier",
    ),
}
# Inside a block. timm has query, key and value as one matrix, in this order.
_INSIDE = {
    "timm": {
        "attention_norm": "norm1",
        "ffn_norm": "norm2",
        "attn.out": "attn.proj",
        "ffn.fc1": "mlp.fc1",
        "ffn.fc2": "mlp.fc2",
    },
    "transformers": {
        "attention_norm": "layernorm_before",
        "ffn_norm": "layernorm_after",
        "attn.query": "attention.q_proj",
        "attn.key": "attention.k_proj",
        "attn.value": "attention.v_proj",
        "attn.out": "attention.o_proj",
        "ffn.fc1": "mlp.fc1",
        "ffn.fc2": "mlp.fc2",
    },
}


def convert_official_vit(weights: Mapping[str, torch.Tensor], library: str) -> dict[str, torch.Tensor]:
    """A released state dictionary under the names of timm's `VisionTransformer` or transformers'
    `ViTForImageClassification`.

    Args:
        weights: of the release, on any device.
        library: `timm` or `transformers`.

    Raises:
        UsageError: another library.
        DataError: weights that are missing or left over.
    """
    if library not in _INSIDE:
        raise UsageError(f"library {library!r}: must be one of {', '.join(_INSIDE)}")
    left = {name: tensor for name, tensor in weights.items() if not name.startswith("backbone.pred_head.")}
    depth = _depth(left)
    embeddings, blocks, norm, head = _OUTSIDE[library]
    moved = {f"{_ROOT}embeddings.{old}": new for old, new in zip(_EMBEDDINGS, embeddings, strict=True)}
    for part in ("weight", "bias"):
        moved[f"{_ROOT}encoder.encoder_norm.{part}"] = f"{norm}.{part}"
        moved[f"head.{part}"] = f"{head}.{part}"
        for layer in range(depth):
            for old, new in _INSIDE[library].items():
                moved[f"{_ROOT}encoder.layer.{layer}.{old}.{part}"] = f"{blocks}.{layer}.{new}.{part}"
    joint = {}
    if library == "timm":
        for layer in range(depth):
            for part in ("weight", "bias"):
                names = [f"{_ROOT}encoder.layer.{layer}.attn.{one}.{part}" for one in ("query", "key", "value")]
                joint[f"{blocks}.{layer}.attn.qkv.{part}"] = names
    wanted = {*moved, *(name for names in joint.values() for name in names)}
    if wanted != left.keys():
        missing, extra = sorted(wanted - left.keys()), sorted(left.keys() - wanted)
        raise DataError(
            f"not the released weights of a vision transformer: {len(missing)} missing ({', '.join(missing[:3])}), "
            f"{len(extra)} left over ({', '.join(extra[:3])})"
        )
    converted = {new: left[old].clone() for old, new in moved.items()}
    return {**converted, **{name: torch.cat([left[one] for one in parts]) for name, parts in joint.items()}}


def official_vit(weights: Mapping[str, torch.Tensor], heads: int, library: str = "timm") -> Any:
    """A released vision transformer, in eval mode; all sizes but the number of heads are read from the weights.

    Args:
        heads: 12 for ViT-B/16, 6 for ViT-S/16; it does not show in the weights.
        library: `timm` gives a `VisionTransformer`, `transformers` a `ViTForImageClassification`.

    Raises:
        UsageError: another library, a number of heads that does not divide the width.
        DataError: not such weights.
        MissingRequirementError: timm is not installed.
    """
    converted = convert_official_vit(weights, library)
    patches = weights[f"{_ROOT}embeddings.patch_embeddings.weight"]
    width, channels, patch = patches.shape[0], patches.shape[1], patches.shape[2]
    if heads < 1 or width % heads:
        raise UsageError(f"heads {heads}: must divide the width {width} of the model")
    positions = weights[f"{_ROOT}embeddings.position_embeddings"].shape[1] - 1
    side = patch * round(positions**0.5)
    hidden = weights[f"{_ROOT}encoder.layer.0.ffn.fc1.weight"].shape[0]
    classes = weights["head.weight"].shape[0]
    model: Any
    if library == "timm":
        try:
            from timm.models.vision_transformer import VisionTransformer
        except ImportError:
            raise MissingRequirementError("models of timm need it: pip install 'thurl[vision]'") from None
        model = VisionTransformer(
            img_size=side, patch_size=patch, in_chans=channels, num_classes=classes, embed_dim=width,
            depth=_depth(weights), num_heads=heads, mlp_ratio=(hidden + 0.5) / width,  # timm rounds down
        )  # fmt: skip
    else:
        from transformers import ViTConfig, ViTForImageClassification

        config = ViTConfig(
            image_size=side, patch_size=patch, num_channels=channels, num_labels=classes, hidden_size=width,
            num_hidden_layers=_depth(weights), num_attention_heads=heads, intermediate_size=hidden,
            layer_norm_eps=1e-6, hidden_act="gelu",
        )  # fmt: skip
        model = ViTForImageClassification(config)
    try:
        model.load_state_dict(converted)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise DataError(f"the weights do not fit together: {reason}; download them again") from None
    return model.eval()


def save_official_vit(path: Path, folder: Path, heads: int = 12) -> None:
    """Turn a released file into a folder of transformers with the released test transform: the shorter side to 256 for
    224 pixels (bilinear), the middle of it, mean and standard deviation 0.5.

    Args:
        path: `.pth` of plain tensors, opened without running anything, or safetensors.
        folder: made if need be.
        heads: see `official_vit`.

    Raises:
        UsageError: a folder that holds a model already, and what `official_vit` raises.
        DataError, MissingRequirementError: as `official_vit` and `read_checkpoint`.
    """
    if (folder / "config.json").exists():
        raise UsageError(f"{folder} holds a model already; choose another folder")
    content = read_checkpoint(path)
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise DataError(f"{path}: no mapping from names to tensors; give the file of a released vision transformer")
    model = official_vit(content, heads, "transformers")
    from transformers import CLIPImageProcessor

    side = model.config.image_size
    processor = CLIPImageProcessor(
        size={"shortest_edge": round(side * 256 / 224)},
        crop_size={"height": side, "width": side},
        resample=2,
        image_mean=[0.5] * model.config.num_channels,
        image_std=[0.5] * model.config.num_channels,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _depth(weights: Mapping[str, torch.Tensor]) -> int:
    start = f"{_ROOT}encoder.layer."
    return len({name.removeprefix(start).split(".")[0] for name in weights if name.startswith(start)})
