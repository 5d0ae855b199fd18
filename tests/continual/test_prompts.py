"""Prompts of a frozen transformer: selection, an explicit forward pass, gradients, independence of the batch."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection, ViTConfig, ViTModel

from thurl.continual.encoders import MLPEncoder, MLPEncoderConfig
from thurl.continual.prompts import PromptedEncoder, select_prompts
from thurl.errors import UsageError


SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
         "image_size": 16, "patch_size": 8, "initializer_range": 0.3}  # fmt: skip


def timm_vit(**options):
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    return timm.create_model("vit_tiny_patch16_224", **{**sizes, **options})


def of_timm(model, inputs, prompts):
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(inputs)))
    tokens = torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], dim=1)
    for block in model.blocks:
        tokens = block(tokens)
    return model.norm(tokens)


def of_vit(model, inputs, prompts):
    tokens = model.embeddings(inputs)
    tokens = torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], dim=1)
    for layer in model.layers:
        tokens = layer(tokens)
    return model.layernorm(tokens)


def of_clip(model, inputs, prompts):
    tower = model if hasattr(model, "pre_layrnorm") else model.vision_model
    tokens = tower.pre_layrnorm(tower.embeddings(inputs))
    tokens = torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], dim=1)
    for layer in tower.encoder.layers:
        tokens = layer(tokens, None)
    return tower.post_layernorm(tokens)


MODELS = {
    "timm": (timm_vit, of_timm),
    "vit": (lambda: ViTModel(ViTConfig(**SMALL), add_pooling_layer=False), of_vit),
    "clip": (lambda: CLIPVisionModel(CLIPVisionConfig(**SMALL)), of_clip),
    "clip projected": (lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL, projection_dim=6)), of_clip),
}


@pytest.fixture(params=list(MODELS))
def prompted(request):
    torch.manual_seed(0)
    make, explicit = MODELS[request.param]
    encoder = PromptedEncoder(make().eval(), pool=6, length=2, chosen=3)
    with torch.no_grad():
        encoder.prompts.uniform_(-1, 1)
        inputs = torch.randn(5, 3, 16, 16)
        # Queries of small random networks are much alike; keys apart from their mean tell them apart.
        query = encoder.query(inputs)
        encoder.keys.copy_(torch.cat([query - query.mean(0), torch.rand(1, 16)]))
    return encoder.train(), explicit, inputs


def test_selection_by_hand_and_its_ties():
    keys = torch.tensor([[0.0, 2.0], [1.0, 0.0], [9.0, 9.0], [0.0, 1.0], [-1.0, 0.0]])
    chosen, cosines = select_prompts(torch.tensor([[0.0, 3.0], [-1.0, 0.0]]), keys, 3)
    assert chosen.tolist() == [[0, 3, 2], [4, 0, 3]]  # equal cosines: the first key
    torch.testing.assert_close(cosines, torch.tensor([[1.0, 1.0, 0.5**0.5], [1.0, 0.0, 0.0]]))


def test_features_are_those_of_an_explicit_forward_pass(prompted):
    encoder, explicit, inputs = prompted
    with torch.no_grad():
        none = encoder.prompts.new_zeros(5, 0, 16)
        query = explicit(encoder.backbone, inputs, none)[:, 0]
        torch.testing.assert_close(encoder.query(inputs), query)
        found, cosines = encoder.encode(inputs)
        for row, one in enumerate(inputs):
            similar = torch.cosine_similarity(query[row], encoder.keys)
            best = similar.argsort(descending=True)[:3]
            torch.testing.assert_close(cosines[row], similar[best])
            prompts = encoder.prompts[best].reshape(1, 6, 16)
            tokens = explicit(encoder.backbone, one[None], prompts)
            torch.testing.assert_close(found[row], tokens[0, 1:7].mean(0), rtol=1e-4, atol=1e-5)


def test_a_sample_does_not_depend_on_its_batch(prompted):
    encoder, _, inputs = prompted
    with torch.no_grad():
        together = encoder(inputs)
        chosen, _ = select_prompts(encoder.query(inputs), encoder.keys, 3)
        for row, one in enumerate(inputs):
            torch.testing.assert_close(encoder(one[None])[0], together[row], rtol=1e-4, atol=1e-5)
            assert torch.equal(select_prompts(encoder.query(one[None]), encoder.keys, 3)[0][0], chosen[row])
        torch.testing.assert_close(encoder(inputs.flip(0)), together.flip(0), rtol=1e-4, atol=1e-5)
    # The samples are not all alike: a choice for the whole batch would be another one for some of them.
    assert len({tuple(sorted(row)) for row in chosen.tolist()}) > 1


def test_gradients_reach_chosen_prompts_and_keys_alone(prompted):
    encoder, _, inputs = prompted
    features, cosines = encoder.encode(inputs)
    used = select_prompts(encoder.query(inputs), encoder.keys, 3)[0].unique()
    others = [index for index in range(6) if index not in used]
    features.square().sum().backward()
    assert encoder.keys.grad is None  # keys learn by their similarity
    moved = encoder.prompts.grad.flatten(1).abs().sum(1)
    assert bool((moved[used] > 0).all()) and not moved[others].any()
    cosines.sum().backward()
    moved = encoder.keys.grad.abs().sum(1)
    assert bool((moved[used] > 0).all()) and not moved[others].any()
    assert all(value.grad is None and not value.requires_grad for value in encoder.backbone.parameters())
    assert not any(module.training for module in encoder.backbone.modules()) and encoder.training


def test_the_backbone_is_as_it_was(prompted):
    encoder, _, inputs = prompted
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in encoder.modules()]
    before = encoder.query(inputs)
    encoder(inputs)
    with pytest.raises((RuntimeError, ValueError, AssertionError)):
        encoder(inputs[:, :2])
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in encoder.modules()]
    assert torch.equal(encoder.query(inputs), before)


def test_what_has_no_tokens_is_refused():
    for other in (MLPEncoder(MLPEncoderConfig()), nn.Linear(4, 4)):
        with pytest.raises(UsageError, match=f"prompts are tokens of a vision transformer.*{type(other).__name__}"):
            PromptedEncoder(other)
    with pytest.raises(UsageError, match="no class token"):
        PromptedEncoder(timm_vit(class_token=False, global_pool="avg"))
    with pytest.raises(UsageError) as caught:
        PromptedEncoder(timm_vit(), pool=3, length=0, chosen=4)
    assert len(caught.value.problems) == 2
