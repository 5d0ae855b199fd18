"""Which tensors of an encoder are trained.

`full`: all. `lora`: a low-rank change of the query and value projections (PEFT; arXiv 2106.09685). `adapter`: a
bottleneck beside the feed-forward network of every block, as AdaptFormer has it (arXiv 2205.13535): down, ReLU, up,
times 0.1, with `up` zero at the start. It reads what the network beside it reads, behind the norm, where AdaptFormer
reads before it. `head`: none; the encoder stays as it is. In a plain network of linear layers, each of them counts as
a feed-forward network. New tensors change nothing before the first step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from thurl.errors import UsageError


__all__ = ["MODES", "Bottleneck", "Tuning", "insert", "reset", "tuned_names"]

MODES = ("full", "lora", "adapter", "head")
_OWN = {"rank": "lora", "alpha": "lora", "bottleneck": "adapter"}


@dataclass(frozen=True)
class Tuning:
    """What is trained beside the head.

    Args:
        mode: one of `MODES`.
        rank, alpha: of LoRA, whose change is scaled by alpha / rank; 8 and twice the rank where None.
        bottleneck: width of the adapters; 64 where None.

    Raises:
        UsageError: an unknown mode, a size below 1, or an option that the mode does not have.
    """

    mode: str = "full"
    rank: int | None = None
    alpha: float | None = None
    bottleneck: int | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.mode not in MODES:
            problems.append(f"tune is {self.mode!r}; choose from {', '.join(MODES)}")
        for name, mode in _OWN.items():
            value = getattr(self, name)
            if value is None:
                continue
            if self.mode != mode:
                problems.append(f"{name} is {value}, but only tune={mode} has it; tune is {self.mode!r}")
            elif not value > 0 or (name != "alpha" and not isinstance(value, int)):
                problems.append(f"{name} is {value}; it must be " + ("above 0" if name == "alpha" else "1 or more"))
        if problems:
            raise UsageError(problems)
        if self.mode == "lora":
            rank = 8 if self.rank is None else self.rank
            object.__setattr__(self, "rank", rank)
            object.__setattr__(self, "alpha", 2.0 * rank if self.alpha is None else self.alpha)
        if self.mode == "adapter" and self.bottleneck is None:
            object.__setattr__(self, "bottleneck", 64)

    @property
    def settings(self) -> dict[str, Any]:
        """Mode and the sizes that belong to it, as JSON values; `Tuning` with these is the same again."""
        own = {name: getattr(self, name) for name, mode in _OWN.items() if mode == self.mode}
        return {"tune": self.mode, **own}


class Bottleneck(nn.Module):
    """A network with a bottleneck beside it: `network(x) + scale * up(relu(down(x)))`.

    Args:
        network: reads [..., inputs] and gives [..., outputs].
        inputs, outputs: widths.
        bottleneck: width of the bottleneck.
        scale: of its output.
    """

    def __init__(self, network: nn.Module, inputs: int, outputs: int, bottleneck: int, scale: float = 0.1) -> None:
        super().__init__()
        self.network = network
        self.down = nn.Linear(inputs, bottleneck)
        self.up = nn.Linear(bottleneck, outputs)
        self.scale = scale

    def forward(self, inputs: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
        beside = self.up(nn.functional.relu(self.down(inputs)))
        return self.network(inputs, *more, **named) + self.scale * beside


def insert(encoder: nn.Module, tuning: Tuning) -> nn.Module:
    """Put the new tensors into `encoder`, in place, and freeze all that is not trained.

    Returns:
        `encoder`; `requires_grad` says what is trained.

    Raises:
        UsageError: an encoder without a place for them.
    """
    if tuning.mode == "full":
        return encoder
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    if tuning.mode == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        from thurl.vit import lora_targets

        config = LoraConfig(r=tuning.rank, lora_alpha=tuning.alpha, target_modules=lora_targets(encoder))
        inject_adapter_in_model(config, encoder)
    elif tuning.mode == "adapter":
        for path, network in _networks(encoder):
            linear = [part for part in network.modules() if isinstance(part, nn.Linear)]
            beside = Bottleneck(network, linear[0].in_features, linear[-1].out_features, int(tuning.bottleneck or 0))
            encoder.set_submodule(path, beside)
    return encoder


def reset(encoder: nn.Module, generator: torch.Generator) -> None:
    """Draw the tensors that `insert` added anew; the encoder then gives the features it had without them."""
    with torch.no_grad():
        for _, module in sorted(encoder.named_modules()):
            if isinstance(module, Bottleneck):
                nn.init.kaiming_uniform_(module.down.weight, a=math.sqrt(5), generator=generator)
                for tensor in (module.down.bias, module.up.weight, module.up.bias):
                    tensor.zero_()
        for name, parameter in sorted(encoder.named_parameters()):
            if ".lora_A." in name:
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)
            elif ".lora_B." in name:
                parameter.zero_()


def tuned_names(encoder: nn.Module) -> list[str]:
    """Names in `encoder.state_dict()` of what training changes: trained parameters, and buffers, if any is trained."""
    trained = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    buffers = {name for name, _ in encoder.named_buffers()}
    return [*trained, *(name for name in encoder.state_dict() if name in buffers)] if trained else []


def _networks(encoder: nn.Module) -> list[tuple[str, nn.Module]]:
    """Path and module of the feed-forward network of every block, or every linear layer of a plain network."""
    from thurl.vit import block_mlp, lora_targets, transformer_blocks

    try:
        blocks = transformer_blocks(encoder)
    except UsageError:
        return [(path, encoder.get_submodule(path)) for path in lora_targets(encoder)]
    paths = {id(module): name for name, module in encoder.named_modules()}
    return [(f"{paths[id(block)]}.{path}", network) for block in blocks for path, network in [block_mlp(block)]]
