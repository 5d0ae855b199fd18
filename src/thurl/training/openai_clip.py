"""CLIP's two towers under OpenAI's names, which open_clip and many released checkpoints use, and transformers'.

OpenAI keeps query, key and value of a block in one matrix, in this order; transformers in three. OpenAI's projections
are the transposes of transformers'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from transformers.models.clip.configuration_clip import CLIPTextConfig, CLIPVisionConfig


__all__ = [
    "TEXT_NAMES",
    "collected",
    "from_openai",
    "is_text_name",
    "text_config",
    "text_names",
    "to_openai",
    "vision_config",
    "vision_names",
]

TEXT_NAMES = (
    "positional_embedding",
    "text_projection",
    "logit_scale",
    "token_embedding.",
    "ln_final.",
    "transformer.",
)
"""How the names of the text tower begin; the image tower's begin with `visual.` in the same file."""

_HEAD_SIZE = 64  # of every CLIP tower

_PROJECTIONS = ("proj", "text_projection")

_OUTSIDE = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
}
_OUTSIDE_TEXT = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_IN_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def vision_names(blocks: int) -> dict[str, list[str]]:
    """OpenAI's name, without `visual.`, to the one or three names of a `CLIPVisionModel`.

    The projection `proj` has no place in that model and is not here.

    Args:
        blocks: of the tower.
    """
    names: dict[str, list[str]] = {}
    for theirs, ours in _OUTSIDE.items():
        kinds = [".weight", ".bias"] if theirs.startswith("ln_") else [""]
        names |= {theirs + kind: [ours + kind] for kind in kinds}
    return names | _block_names(blocks)


def text_names(blocks: int) -> dict[str, list[str]]:
    """OpenAI's name to the one or three names of a `CLIPTextModel`.

    `text_projection` and `logit_scale` have no place in that model and are not here.

    Args:
        blocks: of the tower.
    """
    return {theirs: [ours] for theirs, ours in _OUTSIDE_TEXT.items()} | _block_names(blocks)


def _block_names(blocks: int) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for number in range(blocks):
        block, layer = f"transformer.resblocks.{number}", f"encoder.layers.{number}"
        for kind in ("weight", "bias"):
            names[f"{block}.attn.in_proj_{kind}"] = [f"{layer}.self_attn.{part}_proj.{kind}" for part in "qkv"]
            names |= {f"{block}.{theirs}.{kind}": [f"{layer}.{ours}.{kind}"] for theirs, ours in _IN_BLOCK.items()}
    return names


def from_openai(name: str, tensor: torch.Tensor) -> list[torch.Tensor]:
    """A tensor of OpenAI's as the one or three of transformers."""
    if name.rpartition(".")[2] in _PROJECTIONS:
        return [tensor.T.contiguous()]
    return list(tensor.chunk(3)) if ".attn.in_proj_" in name else [tensor]


def to_openai(name: str, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The other way round; `name` is OpenAI's."""
    if name.rpartition(".")[2] in _PROJECTIONS:
        return tensors[0].T.contiguous()
    return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]


def collected(
    own: Mapping[str, torch.Tensor],
    names: Mapping[str, list[str]],
    state: Mapping[str, torch.Tensor],
    *,
    back: Callable[[str, torch.Tensor], list[torch.Tensor]] = from_openai,
    forth: Callable[[str, Sequence[torch.Tensor]], torch.Tensor] = to_openai,
) -> tuple[dict[str, torch.Tensor], list[str], list[str]]:
    """Tensors of a model out of released ones.

    Args:
        own: the model's, for shapes and dtypes.
        names: released name to the one or three names of the model.
        state: the released tensors.
        back, forth: a released tensor to those of the model, and the other way round.

    Returns:
        The tensors under the model's names; released names that are not there; and what is wrong with the others:
        shapes, values that are not finite.
    """
    values: dict[str, torch.Tensor] = {}
    missing, problems = [], []
    for official, ours in names.items():
        if official not in state:
            missing.append(official)
            continue
        tensor = state[official]
        wanted = forth(official, [own[name] for name in ours]).shape
        if tensor.shape != wanted:
            problems.append(f"{official} has the shape {tuple(tensor.shape)}, the model needs {tuple(wanted)}")
        elif tensor.is_floating_point() and not tensor.isfinite().all():
            problems.append(f"{official} holds values that are not finite")
        else:
            parts = back(official, tensor)
            values |= {name: part.to(own[name].dtype) for name, part in zip(ours, parts, strict=True)}
    return values, missing, problems


def is_text_name(name: str) -> bool:
    """Whether a name of a whole CLIP belongs to the text tower, or to both towers as `logit_scale` does."""
    return name.startswith(TEXT_NAMES)


def vision_config(state: Mapping[str, torch.Tensor]) -> CLIPVisionConfig:
    """The configuration that fits the tensors of an image tower.

    The activation cannot be read off tensors: it is OpenAI's `quick_gelu`.

    Args:
        state: names without `visual.`; `conv1.weight`, `positional_embedding` and one block at least.

    Raises:
        ValueError: one of these is missing or has a shape that no CLIP has.
    """
    needed = ("conv1.weight", "positional_embedding", "transformer.resblocks.0.mlp.c_fc.weight")
    if missing := [name for name in needed if name not in state]:
        raise ValueError(
            f"{', '.join(f'visual.{name}' for name in missing)} missing: not the image tower of a CLIP ViT"
        )
    patches, table, first = (state[name] for name in needed)
    side = math.isqrt(max(len(table) - 1, 0)) if table.dim() == 2 else 0
    fits = patches.dim() == 4 and patches.shape[2] == patches.shape[3] and first.dim() == 2 and side > 0
    if not fits or side**2 != len(table) - 1 or patches.shape[0] % _HEAD_SIZE:
        shapes = ", ".join(f"visual.{name} {tuple(state[name].shape)}" for name in needed)
        raise ValueError(f"{shapes}: no CLIP ViT has these shapes (square patches and grid, width a multiple of 64)")
    blocks = {name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")}
    return CLIPVisionConfig(
        hidden_size=patches.shape[0],
        intermediate_size=first.shape[0],
        num_hidden_layers=len(blocks),
        num_attention_heads=patches.shape[0] // _HEAD_SIZE,
        image_size=side * patches.shape[2],
        patch_size=patches.shape[2],
        hidden_act="quick_gelu",
    )


def text_config(state: Mapping[str, torch.Tensor]) -> CLIPTextConfig:
    """The configuration that fits the tensors of a text tower.

    The end token is the last of the vocabulary: OpenAI's code looks for the largest id.

    Args:
        state: `token_embedding.weight`, `positional_embedding` and one block at least, and other names.

    Raises:
        ValueError: one of these is missing or has a shape that no CLIP has.
    """
    needed = ("token_embedding.weight", "positional_embedding", "transformer.resblocks.0.mlp.c_fc.weight")
    if missing := [name for name in needed if name not in state]:
        raise ValueError(f"{', '.join(missing)} missing: not the text tower of a CLIP")
    tokens, table, first = (state[name] for name in needed)
    if any(tensor.dim() != 2 for tensor in (tokens, table, first)) or tokens.shape[1] % _HEAD_SIZE:
        shapes = ", ".join(f"{name} {tuple(state[name].shape)}" for name in needed)
        raise ValueError(f"{shapes}: no CLIP has these shapes (matrices, width a multiple of {_HEAD_SIZE})")
    blocks = {name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")}
    return CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=tokens.shape[1],
        intermediate_size=first.shape[0],
        num_hidden_layers=len(blocks),
        num_attention_heads=tokens.shape[1] // _HEAD_SIZE,
        max_position_embeddings=len(table),
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
        hidden_act="quick_gelu",
    )
