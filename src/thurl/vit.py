"""Where things are in a vision transformer: blocks, their feed-forward networks, attention projections, final norm.

Found by structure, not by class name, so that a model may be wrapped, hold adapters, or be one tower of a larger one.
Known layouts: timm's `VisionTransformer` and, of transformers, ViT, DeiT, DINOv2 (also with SwiGLU) and CLIP's vision
tower.
"""

from __future__ import annotations

from torch import nn

from thurl.coto.groups import tower_of
from thurl.errors import UsageError


__all__ = [
    "attention_output",
    "block_mlp",
    "feed_forward_layers",
    "final_norm",
    "lora_targets",
    "named_blocks",
    "transformer_blocks",
]

# Paths in a block: query and value projections, output projection. The feed-forward network is `mlp` in all of them.
_ATTENTIONS = (
    (("attn.qkv",), "attn.proj"),  # timm
    (("attention.q_proj", "attention.v_proj"), "attention.o_proj"),  # ViT, DeiT
    (("attention.attention.query", "attention.attention.value"), "attention.output.dense"),  # DINOv2
    (("self_attn.q_proj", "self_attn.v_proj"), "self_attn.out_proj"),  # CLIP
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
    return [block for _, block in named_blocks(model)]


def named_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The same with the full name of each block.

    Raises:
        UsageError: as `transformer_blocks`.
    """
    stack = _stack(model)
    return [(f"{stack}.{name}", block) for name, block in model.get_submodule(stack).named_children()]


def block_mlp(block: nn.Module) -> tuple[str, nn.Module]:
    """Path and module of the feed-forward network of a block of `transformer_blocks`.

    Raises:
        UsageError: not such a block.
    """
    _known_attention(block)
    return _MLP, block.get_submodule(_MLP)


def feed_forward_layers(block: nn.Module) -> tuple[str, str]:
    """Paths of the first and the last matrix of the feed-forward network of a block.

    The first has one row for each neuron, or two where the network is gated (SwiGLU): row j and row M + j are neuron
    j. The last has one column for each of the M neurons.

    Raises:
        UsageError: not such a block, or a network that is not two plain linear layers.
    """
    path, network = block_mlp(block)
    linear = {name: module for name, module in network.named_children() if isinstance(module, nn.Linear)}
    if len(linear) == 2:
        (first, rows), (last, columns) = linear.items()
        if rows.in_features == columns.out_features and rows.out_features in (
            columns.in_features,
            2 * columns.in_features,
        ):
            return f"{path}.{first}", f"{path}.{last}"
    layers = ", ".join(f"{name} {type(module).__name__}" for name, module in network.named_children())
    raise UsageError(
        f"the feed-forward network of a {type(block).__name__} is not two linear layers but {layers}; merge adapters "
        "into the weights first, other networks are not known"
    )


def attention_output(block: nn.Module) -> str:
    """Path of the projection of the heads' outputs in a block.

    Raises:
        UsageError: not such a block, or the projection is not a plain linear layer.
    """
    path = _known_attention(block)[1]
    if not _has(block, path) or not isinstance(block.get_submodule(path), nn.Linear):
        raise UsageError(
            f"{path} of a {type(block).__name__} is no plain linear layer; merge adapters into the weights first"
        )
    return path


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
    return [f"{name}.{path}" for name, block in named_blocks(model) for path in _known_attention(block)[0]]


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


def _known_attention(block: nn.Module) -> tuple[tuple[str, ...], str]:
    found = _attention(block)
    if found is None:
        raise UsageError(f"a {type(block).__name__} is no block of a vision transformer; {_KNOWN}")
    return found


def _attention(block: nn.Module) -> tuple[tuple[str, ...], str] | None:
    if not isinstance(getattr(block, _MLP, None), nn.Module):
        return None
    for inputs, output in _ATTENTIONS:
        if all(_has(block, path) for path in inputs):
            return inputs, output
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
