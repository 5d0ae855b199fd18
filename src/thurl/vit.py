"""Where things are in a vision transformer: blocks, their feed-forward networks, attention projections, final norm.

Found by structure, not by class name, so that a model may be wrapped, hold adapters, or be one tower of a larger one.
Known layouts: timm's `VisionTransformer` and, of transformers, ViT, DeiT, DINOv2 (also with SwiGLU) and CLIP's vision
tower.
"""

from __future__ import annotations

from torch import nn

from thurl.coto.groups import tower_of
from thurl.errors import UsageError


__all__ = ["block_mlp", "final_norm", "lora_targets", "transformer_blocks"]

# Paths of the query and value projections in a block; the feed-forward network is `mlp` in all of them.
_ATTENTIONS = (
    ("attn.qkv",),  # timm
    ("attention.q_proj", "attention.v_proj"),  # ViT, DeiT
    ("attention.attention.query", "attention.attention.value"),  # DINOv2
    ("self_attn.q_proj", "self_attn.v_proj"),  # CLIP
)
_MLP = "mlp"
# `fc_norm` is timm's where the tokens are averaged; `norm` is an identity then.
_NORMS = ("norm", "fc_norm", "layernorm", "post_layernorm")
_KNOWN = "known are timm's VisionTransformer and transformers' ViT, DeiT, DINOv2 and CLIP vision"


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """Blocks of the vision transformer in `model`, first to last.

    Raises:
        UsageError: there is none, or it is not clear which one is meant.
    """
    return list(model.get_submodule(_stack(model)).children())


def block_mlp(block: nn.Module) -> tuple[str, nn.Module]:
    """Path and module of the feed-forward network of a block of `transformer_blocks`.

    Raises:
        UsageError: not such a block.
    """
    if _attention(block) is None:
        raise UsageError(f"a {type(block).__name__} is no block of a vision transformer; {_KNOWN}")
    return _MLP, block.get_submodule(_MLP)


def lora_targets(model: nn.Module) -> list[str]:
    """Full names of the query and value projections (timm: of the joint `qkv`), or of every linear layer of a network
    that has nothing else to train but linear layers and norms.

    Raises:
        UsageError: neither such a transformer nor such a network.
    """
    if not _stacks(model):
        linear = _plain_layers(model)
        if linear:
            return linear
    stack = _stack(model)
    return [
        f"{stack}.{name}.{path}"
        for name, block in model.get_submodule(stack).named_children()
        for path in _attention(block) or ()
    ]


def final_norm(model: nn.Module) -> nn.Module:
    """The norm after the last block.

    Raises:
        UsageError: there is no such transformer, or none with a final norm.
    """
    place = _stack(model)
    while place:
        place = place.rpartition(".")[0]
        above = model.get_submodule(place)
        for name in _NORMS:
            found = getattr(above, name, None)
            if isinstance(found, nn.Module) and not isinstance(found, nn.Identity):
                return found
    raise UsageError(f"{type(model).__name__} has no norm after its last block; {_KNOWN}")


def _stack(model: nn.Module) -> str:
    """Path of the module that holds the blocks."""
    found = _stacks(model)
    if len(found) > 1:
        found = [path for path in found if path.split(".")[0] == "backbone"] or found
    if len(found) > 1:
        found = [path for path in found if tower_of(path) == "vision"] or found
    if len(found) != 1:
        what = f"has {len(found)} stacks of blocks ({', '.join(found)})" if found else "is no vision transformer"
        raise UsageError(f"{type(model).__name__} {what}; {_KNOWN}")
    return found[0]


def _stacks(model: nn.Module) -> list[str]:
    # Patches of pictures are embedded by a convolution: a transformer of text is none of ours.
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return []
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        and len(module)
        and all(_attention(block) is not None for block in module)
    ]


def _attention(block: nn.Module) -> tuple[str, ...] | None:
    if not isinstance(getattr(block, _MLP, None), nn.Module):
        return None
    for paths in _ATTENTIONS:
        if all(_has(block, path) for path in paths):
            return paths
    return None


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def _plain_layers(model: nn.Module) -> list[str]:
    trained = {
        name: module
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    }
    if not all(isinstance(module, nn.Linear | nn.LayerNorm | nn.BatchNorm1d) for module in trained.values()):
        return []
    return [name for name, module in trained.items() if isinstance(module, nn.Linear)]
