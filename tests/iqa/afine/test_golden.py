"""Numbers of the official classes (float32); tolerances as the golden files state them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from thurl.iqa.afine.config import AFineConfig
from thurl.iqa.afine.mathematics import resize_positions, resize_to_multiple, scaled_score
from thurl.ranking import fidelity_loss, preference_probability


GOLDEN = Path(__file__).resolve().parents[2] / "golden"
CASES = json.loads((GOLDEN / "afine_tiny_summary.json").read_text())["cases"]
TOLERANCES = {
    "naturalness_ref_raw": {"atol": 1e-3, "rtol": 1e-4},
    "naturalness_dis_raw": {"atol": 1e-3, "rtol": 1e-4},
    "fidelity_raw": {"atol": 1e-3, "rtol": 1e-4},
    "naturalness_ref": {"atol": 1e-4, "rtol": 0},
    "naturalness_dis": {"atol": 1e-4, "rtol": 0},
    "fidelity": {"atol": 1e-4, "rtol": 0},
    "afine": {"atol": 0, "rtol": 1e-3},
    "afine_scaled": {"atol": 1e-2, "rtol": 0},
}


@pytest.mark.parametrize("case", CASES)
def test_all_stages_equal_the_official_ones(golden_model, golden_pictures, golden_io, case):
    with torch.no_grad():
        output = golden_model(*golden_pictures[case])
    for name, tolerance in TOLERANCES.items():
        assert torch.allclose(output[name], golden_io[f"{case}.{name}"], **tolerance), name
        assert torch.allclose(output[name], torch.tensor([CASES[case][name]]), **tolerance), name


@pytest.mark.parametrize("case", CASES)
def test_features_equal_the_official_ones(golden_model, golden_pictures, golden_io, case):
    pixels = golden_pictures[case][1]
    with torch.no_grad():
        levels = golden_model.features(pixels).levels
        hidden = list(golden_model._hidden_states(resize_to_multiple(pixels, 32)))
        pooled = golden_model.vision.post_layernorm(hidden[-1][:, 0])
    # The class output, of which the scores make no use, shows that the whole tower arrived.
    assert torch.allclose(pooled, golden_io[f"{case}.cls_dis"], atol=1e-4, rtol=0)
    found = 0
    for number, (level, tokens) in enumerate(zip(levels[1:], hidden, strict=True)):
        if f"{case}.feat_dis.{number}" in golden_io:
            official = golden_io[f"{case}.feat_dis.{number}"]
            assert torch.allclose(tokens[:, 1:], official, atol=1e-4, rtol=0)
            assert torch.allclose(level, official.relu(), atol=1e-4, rtol=0)
            found += 1
    assert found == (0 if case == "big160x224" else 2)


def test_position_tables_equal_the_official_ones(golden_model, golden_io):
    table = golden_model.vision.embeddings.position_embedding.weight.detach()
    names = [name for name in golden_io if name.endswith(".pos_embed")]
    assert len(names) == 3
    for name in names:
        official = golden_io[name]
        assert torch.allclose(resize_positions(table, len(official)), official, atol=1e-4, rtol=0), name


def test_the_scalars_of_the_checkpoint_arrive(golden_weights, golden_model):
    raw = load_file(golden_weights)
    assert golden_model.adapter.k.item() == raw["adapter.k"].item()
    for ours, theirs in (("naturalness_map", "natural_scale"), ("fidelity_map", "fidelity_scale")):
        part = getattr(golden_model, ours)
        assert part.centre.item() == raw[f"{theirs}.yita3"].item()
        assert part.width.item() == raw[f"{theirs}.yita4"].item()


# --- protocol --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def protocol():
    return json.loads((GOLDEN / "afine_protocol.json").read_text())


def test_the_third_stage_equals_the_protocol(protocol, tiny_afine):
    case = protocol["stage3_loss"]
    model = tiny_afine(dtype=torch.float64)
    values = {name: torch.tensor(case[name], dtype=torch.float64) for name in case if isinstance(case[name], list)}
    outputs = [
        model.combine(values["natref_raw"], values[f"nat{side}_raw"], values[f"fid{side}_raw"]) for side in (1, 2)
    ]
    for side, output in enumerate(outputs, start=1):
        assert torch.allclose(output.afine, values[f"afine{side}"], rtol=1e-6, atol=0)
    # Lower is better, so the first picture is better with P = Phi((u2 - u1) / sqrt(2)).
    p = preference_probability(outputs[1].afine, outputs[0].afine, 1.0, 1.0, eps=0.0)
    loss = fidelity_loss(p, values["g12"])
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
    found = {
        "fr_yita3": model.fidelity_map.centre,
        "fr_yita4": model.fidelity_map.width,
        "nr_yita3": model.naturalness_map.centre,
        "nr_yita4": model.naturalness_map.width,
        "k": model.adapter.k,
    }
    assert {name: tensor.grad.item() for name, tensor in found.items()} == pytest.approx(case["grads"], rel=1e-6)


def test_the_last_map_equals_the_protocol(protocol):
    scores = torch.tensor(protocol["final_scaling"]["afine"], dtype=torch.float64)
    expected = torch.tensor(protocol["final_scaling"]["afine_scaled"], dtype=torch.float64)
    config = AFineConfig.tiny()
    assert torch.allclose(scaled_score(scores, config.scale_centre, config.scale_width), expected, rtol=1e-6, atol=0)
