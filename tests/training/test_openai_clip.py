"""OpenAI's names of CLIP's image tower: complete, reversible, and features that are those of the same weights."""

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from thurl.training.openai_clip import (
    collected,
    from_openai,
    is_text_name,
    text_config,
    text_names,
    to_openai,
    vision_config,
    vision_names,
)


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 2}
    return CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=24, patch_size=8))


def openai_state(tower):
    own = tower.state_dict()
    return {
        key: to_openai(key, [own[name] for name in ours])
        for key, ours in vision_names(tower.config.num_hidden_layers).items()
    }


def test_every_weight_has_one_place_and_comes_back(tower):
    own, state = tower.state_dict(), openai_state(tower)
    names = vision_names(3)
    placed = [name for ours in names.values() for name in ours]
    assert sorted(placed) == sorted(own)
    assert state["transformer.resblocks.2.attn.in_proj_weight"].shape == (3 * 128, 128)
    for key, tensor in state.items():
        for name, piece in zip(names[key], from_openai(key, tensor), strict=True):
            assert torch.equal(piece, own[name]), name
    # Query, key and value, in this order.
    query = own["encoder.layers.0.self_attn.q_proj.bias"]
    assert torch.equal(state["transformer.resblocks.0.attn.in_proj_bias"][:128], query)


def test_the_configuration_is_read_off_the_shapes(tower):
    found = vision_config(openai_state(tower))
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size"):
        assert getattr(found, name) == getattr(tower.config, name), name
    assert (found.image_size, found.hidden_act, found.layer_norm_eps) == (24, "quick_gelu", 1e-5)


def test_shapes_that_no_clip_has_are_refused(tower):
    state = openai_state(tower)
    for name, shape in {
        "positional_embedding": (11, 128),
        "conv1.weight": (128, 3, 8, 4),
        "transformer.resblocks.0.mlp.c_fc.weight": (192,),
    }.items():
        with pytest.raises(ValueError, match="no CLIP ViT"):
            vision_config({**state, name: torch.zeros(shape)})
    with pytest.raises(ValueError, match=r"visual\.conv1\.weight missing"):
        vision_config({name: tensor for name, tensor in state.items() if name != "conv1.weight"})


def test_names_of_the_text_tower_are_told_apart():
    text = ["positional_embedding", "transformer.resblocks.0.ln_1.weight", "logit_scale", "ln_final.bias"]
    assert all(map(is_text_name, text))
    assert not any(is_text_name(f"visual.{name}") for name in text)


def test_every_weight_of_the_text_tower_has_one_place_and_its_sizes_are_read_off():
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"vocab_size": 40, "max_position_embeddings": 12, "eos_token_id": 39, "bos_token_id": 38}
    tower = CLIPTextModel(CLIPTextConfig(**sizes, **more))
    own, names = tower.state_dict(), text_names(2)
    assert sorted(name for ours in names.values() for name in ours) == sorted(own)
    state = {key: to_openai(key, [own[name] for name in ours]) for key, ours in names.items()}
    assert all(is_text_name(key) for key in state)
    found = text_config(state)
    assert {name: getattr(found, name) for name in sizes | more} == sizes | more
    values, missing, problems = collected(own, names, state)
    assert not missing and not problems and all(torch.equal(values[name], own[name]) for name in own)
    state["ln_final.bias"] = torch.full((128,), torch.inf)
    del state["positional_embedding"]
    _, missing, problems = collected(own, names, state)
    assert missing == ["positional_embedding"] and problems == ["ln_final.bias holds values that are not finite"]
    with pytest.raises(ValueError, match="positional_embedding missing: not the text tower"):
        text_config(state)


def test_projections_are_transposed():
    matrix = torch.arange(6.0).reshape(2, 3)
    for name in ("visual.proj", "text_projection"):
        assert torch.equal(from_openai(name, matrix)[0], matrix.T)
        assert torch.equal(to_openai(name, [matrix.T]), matrix)
    assert torch.equal(from_openai("transformer.resblocks.0.mlp.c_proj.weight", matrix)[0], matrix)
