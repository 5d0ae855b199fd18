"""Adapter folders: the golden residual network as PEFT adapters, and random ones of a small network with towers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import HiraConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from thurl.coto.adapters import read_adapter


GOLDEN = Path(__file__).parents[2] / "golden"


class Residual(torch.nn.Module):
    """x + fc2(gelu(fc1 x)), layer after layer, as in the golden files."""

    def __init__(self, depth, width, hidden):
        super().__init__()
        layers = [
            torch.nn.ModuleDict({"fc1": torch.nn.Linear(width, hidden), "fc2": torch.nn.Linear(hidden, width)})
            for _ in range(depth)
        ]
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer["fc2"](torch.nn.functional.gelu(layer["fc1"](x)))
        return x


class Golden:
    """One golden file: base network, two adapters as folders that PEFT wrote, and the expected numbers."""

    def __init__(self, kind, folder):
        self.kind = kind
        self.numbers = json.loads((GOLDEN / f"coto_net_{kind}.json").read_text())
        self.tensors = load_file(GOLDEN / f"coto_net_{kind}.safetensors")
        self.x, self.y = self.tensors["input.x"], self.tensors["input.y"]
        self.depth = self.numbers["L"]
        self.folders = [folder / "first", folder / "second"]
        self.save("param", self.folders[0])
        if kind != "dora":  # the second one has no magnitude
            self.save("param2", self.folders[1])

    def base(self):
        network = Residual(self.depth, self.numbers["d"], self.numbers["h"]).double()
        names = dict(network.named_parameters())
        network.load_state_dict({name: self.tensors[f"param.{name}"] for name in names})
        return network

    def save(self, prefix, folder):
        r, alpha = self.numbers["r"], self.numbers["alpha"]
        if self.kind == "hira":
            config = HiraConfig(r=r, target_modules=["fc1", "fc2"])
        else:
            config = LoraConfig(r=r, lora_alpha=alpha, target_modules=["fc1", "fc2"], use_dora=self.kind == "dora")
        model = get_peft_model(self.base(), config)
        letter = "hira" if self.kind == "hira" else "lora"
        with torch.no_grad():
            for i in range(self.depth):
                for fc in ("fc1", "fc2"):
                    layer = model.base_model.model.layers[i][fc]
                    for side in ("A", "B"):
                        stored = getattr(layer, f"{letter}_{side}")["default"]
                        target = stored if self.kind == "hira" else stored.weight
                        target.copy_(self.tensors[f"{prefix}.layers.{i}.{fc}.lora_{side}"])
                    if self.kind == "dora":
                        magnitude = self.tensors[f"{prefix}.layers.{i}.{fc}.magnitude"]
                        layer.lora_magnitude_vector["default"].weight.copy_(magnitude)
        model.save_pretrained(folder)

    def load(self, folder):
        return PeftModel.from_pretrained(self.base(), folder).double().eval()

    def output(self, folder):
        with torch.no_grad():
            return self.load(folder)(self.x)

    def adapters(self):
        return [read_adapter(folder) for folder in self.folders if folder.exists()]


@pytest.fixture(scope="session", params=["lora", "dora", "hira"])
def golden(request, tmp_path_factory):
    return Golden(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def golden_of(tmp_path_factory):
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = Golden(kind, tmp_path_factory.mktemp(f"golden_{kind}"))
        return made[kind]

    return get


class Towers(torch.nn.Module):
    """Linear layers of different shapes under paths like those of a vision-language model; float64."""

    def __init__(self, text=4, vision=3, width=6, hidden=10):
        super().__init__()

        def stack(depth):
            return torch.nn.ModuleList(
                torch.nn.ModuleDict({"up": torch.nn.Linear(width, hidden), "down": torch.nn.Linear(hidden, width)})
                for _ in range(depth)
            )

        self.model = torch.nn.ModuleDict(
            {"layers": stack(text), "visual": torch.nn.ModuleDict({"layers": stack(vision)})}
        )
        self.merger = torch.nn.Linear(width, width)
        self.double()

    def forward(self, x):
        for layer in self.model["visual"]["layers"]:
            x = x + layer["down"](torch.tanh(layer["up"](x)))
        x = x + self.merger(x)
        for layer in self.model["layers"]:
            x = x + layer["down"](torch.tanh(layer["up"](x)))
        return SimpleNamespace(logits=x)


@pytest.fixture
def towers(tmp_path):
    """Functions that make the base network and random adapters of it."""

    def base():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Towers()

    def make(name, seed, dtype=torch.float64, **options):
        settings = {"r": 3, "lora_alpha": 6, "target_modules": ["up", "down", "merger"], **options}
        config = HiraConfig if settings.pop("hira", False) else LoraConfig
        if config is HiraConfig:
            settings.pop("lora_alpha")
        model = get_peft_model(base(), config(**settings))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_A" in key or "lora_B" in key or "hira" in key:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
                elif "magnitude" in key:
                    parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator, dtype=torch.float64))
        model.to(dtype).save_pretrained(tmp_path / name)
        return read_adapter(tmp_path / name)

    def load(folder):
        return PeftModel.from_pretrained(base(), folder).double().eval()

    def logits(folder, x):
        with torch.no_grad():
            return load(folder)(x).logits

    return SimpleNamespace(base=base, make=make, load=load, logits=logits, folder=tmp_path)
