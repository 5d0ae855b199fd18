"""Training runs of the digits experiment, each stored when it is finished.

A run is a setting, a seed, a copy and a task. What it leaves (the adapter as PEFT saves it, and a record) lies in a
folder of its name, and the record is written last: a benchmark that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy, linear

from coto_digits.network import TARGETS, Digits, TinyViT, digits, of_task
from thurl.coto import CoToConfig, apply_coto
from thurl.coto.adapters import Adapter, read_adapter
from thurl.training.results import write_atomically


PRETRAIN = {"steps": 900, "lr": 1e-3}
BATCH = 32
LAYER_P = {
    "high late": {r"blocks\.[01]\.": 0.5, r"blocks\.[23]\.": 0.25, r"blocks\.[45]\.": 0.0},
    "low late": {r"blocks\.[01]\.": 0.0, r"blocks\.[23]\.": 0.25, r"blocks\.[45]\.": 0.5},
}
"""Initial p by layer: whose adapters stay off longest."""


@dataclass(frozen=True)
class Setting:
    """How an adapter is trained. The defaults are those the pass bar was defined with."""

    method: str = "lora"
    steps: int = 800
    lr: float = 5e-3
    rank: int = 4
    shots: int = 300
    dropout: float = 0.0
    spread: float = 1.0
    """A starts as PEFT's A times this."""
    p0: float = 0.1
    ratio: float = 0.75
    schedule: str = "linear"
    layers: str | None = None
    """A key of `LAYER_P`, instead of p0."""

    @property
    def name(self) -> str:
        """What differs from the defaults, for file names."""
        parts = [self.method, str(self.steps), f"lr{self.lr:g}"]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("method", "steps", "lr") and value != field.default:
                parts.append(f"{field.name}{value}".replace(" ", "-"))
        return "_".join(parts)

    def coto(self, seed: int) -> CoToConfig | None:
        """CoTo's own settings, None for LoRA."""
        if self.method == "lora":
            return None
        initial = self.p0 if self.layers is None else LAYER_P[self.layers]
        return CoToConfig(initial_p=initial, stage1_ratio=self.ratio, schedule=self.schedule, seed=seed)


class SummedLinear(LoraLinear):
    """PEFT's layer computed as one product with W + s B A: the same function, and two thirds of the time.

    PEFT's own forward makes three products and two more passes over the activations. For one LoRA without dropout.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        a, b = self.lora_A["default"].weight, self.lora_B["default"].weight
        base = self.base_layer
        return linear(x, torch.addmm(base.weight, b, a, alpha=self.scaling["default"]), base.bias)


class Unfinished(Exception):
    """A record is wanted that is not in the store, which only reads."""


class Store:
    """Finished pre-training, training and measuring in a folder.

    Args:
        folder: made if it is not there.
        forward: how adapted layers compute in training: `peft` (as PEFT does), `compiled` (the same, each block
            through `torch.compile`) or `summed` (`SummedLinear`, where there is no dropout). All are the same up to
            rounding.
        read_only: raise `Unfinished` instead of making a record.
        say: told the name of every record that was made.
    """

    def __init__(
        self,
        folder: Path,
        *,
        forward: str = "summed",
        read_only: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ):
        self.folder, self.forward, self.read_only, self.say = folder, forward, read_only, say

    def record(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The record of this name, made if it is not there."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            if self.read_only:
                raise Unfinished(name)
            record = make()
            write_atomically(path, json.dumps(record, indent=1) + "\n")
            self.say(name)
        return json.loads(path.read_text(encoding="utf-8"))

    def base(self, seed: int) -> dict[str, torch.Tensor]:
        """Weights of the network that learnt this seed's upright digits."""
        path = self.folder / f"base-{seed}.safetensors"
        if not path.is_file():
            torch.manual_seed(seed)
            model = TinyViT()
            train(model, digits(seed)["upright"], int(PRETRAIN["steps"]), PRETRAIN["lr"], seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            save_file(model.state_dict(), partial)
            partial.replace(path)
            self.say(path.stem)
        return load_file(path)

    def adapter(
        self, setting: Setting, seed: int, copy: int = 0, task: str = "rotated"
    ) -> tuple[Adapter, dict[str, Any]]:
        """A trained adapter and its record: `cpu_seconds` of training, `training_loss`."""
        name = f"adapters/{setting.name}/{task}-{seed}-{copy}"

        def make() -> dict[str, Any]:
            data = of_task(digits(seed)["tuning"], task)
            data = data[0][: setting.shots], data[1][: setting.shots]
            own_seed = 1000 * seed + copy + 500 * (task == "inverted")
            model, record = tuned(self.base(seed), data, setting, own_seed, self.forward)
            model.save_pretrained(self.folder / name)
            return {"setting": asdict(setting), "forward": self.forward, **record}

        record = self.record(name, make)
        return read_adapter(self.folder / name), record


def load(weights: dict[str, torch.Tensor]) -> TinyViT:
    """The network with these weights."""
    model = TinyViT()
    model.load_state_dict(weights)
    return model


def tuned(
    base: dict[str, torch.Tensor], data: Digits, setting: Setting, seed: int, forward: str = "summed"
) -> tuple[torch.nn.Module, dict[str, float]]:
    """A `PeftModel` with a trained adapter; initial values, order of the data and masks come from `seed`."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=setting.rank, lora_alpha=2 * setting.rank, target_modules=list(TARGETS), lora_dropout=setting.dropout
    )
    model = get_peft_model(load(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                parameter.mul_(setting.spread)
    coto_config = setting.coto(seed)
    coto = None if coto_config is None else apply_coto(model, coto_config, total_steps=setting.steps)
    if forward == "summed" and setting.dropout == 0:
        for module in model.modules():
            if type(module) is LoraLinear:
                module.__class__ = SummedLinear  # the gate of CoTo calls the forward of the class
    if forward == "compiled":
        torch._dynamo.config.recompile_limit = 64  # graphs per block: on or off, input with gradient or not, per rank
        for block in model.base_model.model.blocks:
            block.compile()
    started = time.process_time()
    last = train(model, data, setting.steps, setting.lr, seed, coto)
    seconds = time.process_time() - started
    if coto is not None:
        coto.detach()
    return model.eval(), {"cpu_seconds": seconds, "training_loss": last}


def train(model: Any, data: Digits, steps: int, lr: float, seed: int, coto: Any = None) -> float:
    """AdamW with a cosine to 0, batches of 32 from shuffled passes; mean loss of the last 20 steps."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    pictures, labels = data
    generator = torch.Generator().manual_seed(seed)
    passes = 1 + steps * BATCH // len(labels)
    rows = torch.cat([torch.randperm(len(labels), generator=generator) for _ in range(passes)])
    model.train()
    losses = []
    for step in range(steps):
        chosen = rows[step * BATCH : (step + 1) * BATCH]
        if coto is not None:
            coto.begin_step(step)
        loss = cross_entropy(model(pictures[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if coto is not None:
            coto.end_step()
        losses.append(loss.detach())
    return torch.stack(losses[-20:]).mean().item()
