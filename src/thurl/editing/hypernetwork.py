"""The hypernetwork g: class token of a failing picture to a soft mask over the neurons that may be edited.

"Learning Where to Edit Vision Transformers" (NeurIPS 2024, arXiv 2411.01948); sizes, activation and clamps from the
official code (GitHub `hustyyq/Where-to-Edit`), whose files `thurl.editing.official_hypernetwork` converts. One learned
query token per row of the mask goes before the class token, then come pre-norm blocks without positions and without a
last norm.

Deliberate differences: every size follows from the base model, weights that are missing are an error, and a network
says which base model it was trained for and refuses another one. `gradient_tokens` is ours, not of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from thurl.errors import DataError, UsageError
from thurl.hub.fetch import hub_folder
from thurl.vision_models.files import check_weights, from_pretrained, read_config


__all__ = ["EDITING_CLAMP", "TRAINING_CLAMP", "MaskHypernetwork", "MaskHypernetworkConfig", "load_hypernetwork"]

TRAINING_CLAMP = 1e-5
"""Soft masks stay that far from 0 and 1 in training."""
EDITING_CLAMP = 1e-7
"""The same where a picture is edited."""
_STEEPNESS = 3.0


class MaskHypernetworkConfig(PreTrainedConfig):
    """Sizes of a hypernetwork and the base model it belongs to. The defaults are those of ViT-B/16.

    Args:
        hidden_size: width D of the base model.
        neurons: M, columns of the mask.
        rows: T, rows of the mask, one for each editable unit.
        blocks: transformer blocks; 3 in the released command.
        heads: attention heads.
        layer_norm_eps: of all norms.
        gradient_tokens: whether the norm of the loss gradient of every neuron is an input, too: row t of it,
            projected, is added to query token t.
        base_model: name of the base model, for people.
        base_fingerprint: of the base model's weights (`thurl.editing.classifier`).
        units: names of the parameters that the rows stand for, in their order.
        meta_training: settings it was trained with, JSON values.
    """

    model_type = "thurl_mask_hypernetwork"

    hidden_size: int = 768
    neurons: int = 3072
    rows: int = 6
    blocks: int = 3
    heads: int = 6
    layer_norm_eps: float = 1e-6
    gradient_tokens: bool = False
    base_model: str | None = None
    base_fingerprint: str | None = None
    units: list[str] | tuple[str, ...] = ()
    meta_training: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.units = list(self.units)
        sizes = {name: getattr(self, name) for name in ("hidden_size", "neurons", "rows", "blocks", "heads")}
        problems = [f"{name} is {value}; it must be 1 or more" for name, value in sizes.items() if value < 1]
        if not problems and self.hidden_size % self.heads:
            problems.append(f"heads is {self.heads}, which does not divide hidden_size {self.hidden_size}")
        if self.units and len(self.units) != self.rows:
            problems.append(f"units names {len(self.units)} parameters for {self.rows} rows; name one for each")
        if problems:
            raise UsageError(problems)
        super().__post_init__(**kwargs)


class MaskHypernetwork(PreTrainedModel):
    """Soft masks of pictures, from their class tokens."""

    config_class = MaskHypernetworkConfig
    base_model_prefix = "hypernetwork"
    main_input_name = "class_token"
    _supports_sdpa = True

    def __init__(self, config: MaskHypernetworkConfig) -> None:
        super().__init__(config)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.rows, config.hidden_size))
        self.gradient_projection = (
            nn.Linear(config.neurons, config.hidden_size, bias=False) if config.gradient_tokens else None
        )
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))
        self.heads = nn.ModuleList(nn.Linear(config.hidden_size, config.neurons) for _ in range(config.rows))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # torch's own start of linear layers, drawn anew because transformers builds models without values
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, MaskHypernetwork):
            init.zeros_(module.query_tokens)

    def forward(
        self,
        class_token: torch.Tensor,
        gradient_norms: torch.Tensor | None = None,
        clamp: float = EDITING_CLAMP,
    ) -> torch.Tensor:
        """Soft mask of each picture.

        Args:
            class_token: (B, D) or (B, 1, D), of the last layer after the final norm.
            gradient_norms: (B, T, M), not negative, of any scale: norm of the loss gradient of each neuron's weights
                (`thurl.editing.meta_step.gradient_norms`); for a network with `gradient_tokens`, and only for one.
            clamp: results lie in [clamp, 1 - clamp].

        Returns:
            (B, T, M).

        Raises:
            UsageError: shapes of another base model, or gradient norms missing or not wanted.
        """
        config = self.config
        token = class_token[:, None] if class_token.dim() == 2 else class_token
        if token.dim() != 3 or tuple(token.shape[1:]) != (1, config.hidden_size):
            raise UsageError(
                f"class_token is {tuple(class_token.shape)}; this network reads (B, {config.hidden_size}) or "
                f"(B, 1, {config.hidden_size})"
            )
        queries = self.query_tokens.expand(len(token), -1, -1)
        if (gradient_norms is None) == (self.gradient_projection is not None):
            rule = "needs" if gradient_norms is None else "does not take"
            raise UsageError(f"a network with gradient_tokens={config.gradient_tokens} {rule} `gradient_norms`")
        if self.gradient_projection is not None and gradient_norms is not None:
            if tuple(gradient_norms.shape) != (len(token), config.rows, config.neurons):
                raise UsageError(
                    f"gradient_norms is {tuple(gradient_norms.shape)}; needed is "
                    f"{(len(token), config.rows, config.neurons)}"
                )
            queries = queries + self.gradient_projection(_scale_free(gradient_norms).to(token.dtype))
        hidden = torch.cat([queries, token], dim=1)
        for block in self.blocks:
            hidden = block(hidden)
        rows = [head(hidden[:, row]) for row, head in enumerate(self.heads)]
        return torch.sigmoid(_STEEPNESS * torch.stack(rows, dim=1)).clamp(clamp, 1 - clamp)

    def require_base(self, fingerprint: str, units: Sequence[str] | None = None, *, force: bool = False) -> None:
        """Check that the network was trained for this base model.

        Args:
            fingerprint: of the base model.
            units: names of the parameters that the rows of a mask stand for.
            force: use it in spite of another base model; rows of other units are refused even so.

        Raises:
            UsageError: it was not.
        """
        config = self.config
        problems = []
        if units is not None and config.units and list(units) != list(config.units):
            problems.append(
                f"the hypernetwork's rows are {', '.join(config.units)}; the edit wants {', '.join(units)}. Edit the "
                "same layers or train another one"
            )
        if config.base_fingerprint != fingerprint and not force:
            what = "says no base model" if config.base_fingerprint is None else f"belongs to {_named(config)}"
            problems.append(
                f"the hypernetwork {what}, the model to be edited is {fingerprint[:12]}: its masks would mean "
                "nothing. Take the one trained for this model, or force it"
            )
        if problems:
            raise UsageError(problems)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *arguments: Any, **options: Any) -> Any:
        """As every model of transformers, but weights that are not there are an error, never random numbers.

        Args:
            options: also `base_fingerprint`, `units` and `force`, see `require_base`; without `base_fingerprint`
                nothing is checked.

        Raises:
            DataError: the folder lacks weights of the network.
            UsageError: it belongs to another base model.
        """
        fingerprint, units = options.pop("base_fingerprint", None), options.pop("units", None)
        force, with_info = options.pop("force", False), options.pop("output_loading_info", False)
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *arguments, output_loading_info=True, **options
        )
        if lacking := sorted(info["missing_keys"]):
            shown = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
            raise DataError(f"{pretrained_model_name_or_path}: weights are missing: {shown}; save the network again")
        if fingerprint is not None:
            model.require_base(fingerprint, units, force=force)
        return (model, info) if with_info else model


def load_hypernetwork(
    folder: str | Path, fingerprint: str, units: Sequence[str], force: bool = False
) -> MaskHypernetwork:
    """A hypernetwork for a base model, in evaluation mode.

    Args:
        folder: also the name of a repository on the Hub.
        fingerprint, units, force: see `MaskHypernetwork.require_base`.

    Raises:
        MissingRequirementError: no such folder or repository, or no safetensors in it.
        DataError: broken weights, or fewer than the network has.
        UsageError: a model of another kind, or a network of another base model.
    """
    folder = hub_folder(folder, ["config.json", "*.safetensors"])
    kind = read_config(folder).get("model_type")
    if kind != MaskHypernetworkConfig.model_type:
        raise UsageError(f"{folder}: holds a {kind}, not the hypernetwork of an edit")
    check_weights(folder)
    network: MaskHypernetwork = from_pretrained(MaskHypernetwork, folder)
    network.require_base(fingerprint, units, force=force)
    return network


class _Block(nn.Module):
    def __init__(self, config: MaskHypernetworkConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.attention_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.attention = nn.ModuleDict({name: nn.Linear(size, size) for name in ("query", "key", "value", "out")})
        self.feed_forward_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.feed_forward = nn.ModuleDict({name: nn.Linear(size, size) for name in ("fc1", "fc2")})
        self.heads = config.heads

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normed = self.attention_norm(hidden)
        parts = [
            self.attention[name](normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        ]
        mixed = functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        hidden = hidden + self.attention["out"](mixed)
        inner = functional.gelu(self.feed_forward["fc1"](self.feed_forward_norm(hidden)))
        return hidden + self.feed_forward["fc2"](inner)


def _scale_free(norms: torch.Tensor) -> torch.Tensor:
    """log(1 + norm / mean norm of the picture): failing pictures have losses of very different sizes."""
    mean = norms.mean(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(norms.dtype).tiny)
    return torch.log1p(norms / mean)


def _named(config: MaskHypernetworkConfig) -> str:
    name = f"{config.base_model}, " if config.base_model else ""
    return f"{name}fingerprint {str(config.base_fingerprint)[:12]}"
