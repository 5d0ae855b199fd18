"""Masked outputs and gradients of small networks, against values computed without PEFT (float64 and float32)."""

import json
from pathlib import Path

import pytest
import torch
from peft import HiraConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

from thurl.coto import apply_coto


GOLDEN = Path(__file__).parents[1] / "golden"


class ResidualMLP(nn.Module):
    """x <- x + fc2(gelu(fc1 x)), `depth` times."""

    def __init__(self, depth, width, hidden):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)}) for _ in range(depth)
        )

    def forward(self, x):
        for layer in self.layers:
            x = x + layer["fc2"](nn.functional.gelu(layer["fc1"](x)))
        return x


def load(name, dtype):
    spec = json.loads((GOLDEN / f"coto_net_{name}.json").read_text())
    tensors = {key: value.to(dtype) for key, value in load_file(GOLDEN / f"coto_net_{name}.safetensors").items()}
    if name == "hira":
        config = HiraConfig(r=spec["r"], target_modules=["fc1", "fc2"])
    else:
        config = LoraConfig(
            r=spec["r"], lora_alpha=spec["alpha"], target_modules=["fc1", "fc2"], use_dora=name == "dora"
        )
    model = get_peft_model(ResidualMLP(spec["L"], spec["d"], spec["h"]).to(dtype), config).to(dtype)
    own = {golden_name(key): parameter for key, parameter in model.named_parameters()}
    assert set(own) == {key.removeprefix("param.") for key in tensors if key.startswith("param.")}
    with torch.no_grad():
        for key, parameter in own.items():
            value = tensors[f"param.{key}"]
            # HiRA of PEFT keeps its factors transposed: it forms W * (A^T B^T)^T.
            parameter.copy_(value if value.shape == parameter.shape else value.T)
    return spec, tensors, model.train(), own


def golden_name(name):
    """`base_model.model.layers.0.fc1.lora_A.default.weight` -> `layers.0.fc1.lora_A`."""
    name = name.removeprefix("base_model.model.").replace("base_layer.", "").replace("hira_", "lora_")
    name = name.replace("lora_magnitude_vector", "magnitude")
    return name.split(".default")[0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=["f64", "f32"])
@pytest.mark.parametrize("name", ["lora", "dora", "hira"])
def test_masked_outputs_losses_and_gradients(name, dtype, tolerance):
    spec, tensors, model, own = load(name, dtype)
    controller = apply_coto(model, total_steps=100)
    assert list(controller.groups) == [f"layers.{index}" for index in range(spec["L"])]
    for number, bits in enumerate(spec["masks"]):
        mask = tuple(bit == "1" for bit in bits)
        controller.mask = lambda step, mask=mask: mask
        controller.begin_step(number)
        assert controller.active == mask
        model.zero_grad()
        output = model(tensors["input.x"])
        torch.testing.assert_close(output, tensors[f"out.{number}"], rtol=tolerance, atol=tolerance)
        loss = ((output - tensors["input.y"]) ** 2).mean()
        assert loss.item() == pytest.approx(spec["loss"][number], rel=tolerance)
        if any(mask):
            loss.backward()
        else:
            assert not loss.requires_grad  # why at least one group has to be on
        trained = {key: parameter for key, parameter in own.items() if parameter.requires_grad}
        assert {key for key, p in trained.items() if p.grad is None} == set(spec["inactive_params"][number])
        checked = 0
        for key, parameter in trained.items():
            expected = tensors.get(f"grad.{number}.{key}")
            assert (expected is None) == (parameter.grad is None), key
            if expected is not None:
                expected = expected if expected.shape == parameter.shape else expected.T
                torch.testing.assert_close(parameter.grad, expected, rtol=tolerance, atol=tolerance)
                checked += 1
        assert checked == len(trained) - len(spec["inactive_params"][number])
        controller.end_step()
