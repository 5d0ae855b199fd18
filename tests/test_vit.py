"""Structure of vision transformers: what is found is what the network computes with."""

from __future__ import annotations

import copy

import peft
import pytest
import timm
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from thurl.continual.encoders import MLPEncoder, MLPEncoderConfig
from thurl.errors import UsageError
from thurl.vit import block_mlp, final_norm, lora_targets, transformer_blocks


SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
WIDE = {**SMALL, "intermediate_size": 48}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "vocab_size": 40, "max_position_embeddings": 16, "eos_token_id": 39}  # fmt: skip


def small_timm(name="vit_tiny_patch16_224", **options):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0}
    return timm.create_model(name, **{**sizes, **options})


MODELS = {
    "timm": small_timm,
    "timm averages": lambda: small_timm(global_pool="avg"),
    "vit": lambda: ViTModel(ViTConfig(**WIDE), add_pooling_layer=False),
    "deit": lambda: DeiTModel(DeiTConfig(**WIDE), add_pooling_layer=False),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SMALL)),
    "dinov2 swiglu": lambda: Dinov2Model(Dinov2Config(**SMALL, use_swiglu_ffn=True)),
    "clip vision": lambda: CLIPVisionModel(CLIPVisionConfig(**WIDE)),
    "clip projected": lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**WIDE, projection_dim=8)),
    "clip": lambda: CLIPModel(CLIPConfig(text_config=TEXT, vision_config=WIDE, projection_dim=8)),
}


class Wrapper(nn.Module):
    """A part in front, and the model under another name."""

    def __init__(self, model):
        super().__init__()
        self.backbone = model
        self.head = nn.Linear(32, 4)

    def forward(self, pictures):
        return features(self.backbone, pictures)


def features(model, pictures):
    if isinstance(model, Wrapper):
        return model(pictures)
    output = model.get_image_features(pictures) if isinstance(model, CLIPModel) else model(pictures)
    return output if isinstance(output, torch.Tensor) else output.last_hidden_state


@pytest.fixture(params=list(MODELS), scope="module")
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


@pytest.fixture(scope="module")
def pictures():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def called(model, modules, pictures):
    """The modules in the order of their calls."""
    order = []
    handles = [module.register_forward_hook(lambda module, *_: order.append(module)) for module in modules]
    with torch.no_grad():
        features(model, pictures)
    for handle in handles:
        handle.remove()
    return order


@pytest.mark.parametrize("wrapped", [False, True])
def test_blocks_networks_and_norm_are_called_in_order(model, pictures, wrapped):
    whole = Wrapper(model) if wrapped else model
    blocks, norm = transformer_blocks(whole), final_norm(whole)
    assert len(blocks) == 3 and len({id(block) for block in blocks}) == 3
    networks = [block_mlp(block)[1] for block in blocks]
    assert all(block.get_submodule(block_mlp(block)[0]) is block_mlp(block)[1] for block in blocks)
    projections = [whole.get_submodule(name) for name in lora_targets(whole)]
    assert all(isinstance(module, nn.Linear) for module in projections)
    order = called(whole, [*blocks, *networks, norm, *projections], pictures)
    per_block = len(projections) // 3
    wanted = []
    for index, (block, network) in enumerate(zip(blocks, networks, strict=True)):
        wanted += [set(projections[per_block * index : per_block * (index + 1)]), network, block]
    assert order[-1] is norm
    found = iter(order)
    for step in wanted:
        if isinstance(step, set):
            assert {next(found) for _ in step} == step
        else:
            assert next(found) is step
    assert next(found) is norm


def test_targets_are_query_and_value_of_the_vision_tower(model):
    names = lora_targets(model)
    endings = {name.rpartition(".")[2] for name in names}
    assert endings in ({"qkv"}, {"q_proj", "v_proj"}, {"query", "value"})
    assert len(names) == 3 * len(endings) and not any("text" in name for name in names)


def test_with_lora_inside_the_same_blocks_are_found(model, pictures):
    names = lora_targets(model)
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, target_modules=names))
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * len(names)
    assert all(any(f".{name}." in one for name in names) for one in trained)
    assert len(transformer_blocks(adapted)) == 3
    assert [name.removeprefix("base_model.model.") for name in lora_targets(adapted)] == names
    block_mlp(transformer_blocks(adapted)[0])


def test_a_plain_network_gives_all_its_linear_layers():
    encoder = MLPEncoder(MLPEncoderConfig(side=4, hidden_sizes=[8, 5]))
    assert lora_targets(encoder) == ["layers.0", "layers.2"]
    with pytest.raises(UsageError, match="MLPEncoder is no vision transformer"):
        transformer_blocks(encoder)


OTHERS = {
    "ResNetModel": lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])),
    "CLIPTextModel": lambda: CLIPTextModel(CLIPConfig(text_config=TEXT).text_config),
    "BertModel": lambda: BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                              intermediate_size=16, vocab_size=40)),
    "SwinTransformer": lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=32, embed_dim=8,
                                                 depths=(1, 1), num_heads=(1, 2), window_size=4, num_classes=0),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_anything_else_is_refused_by_name(name):
    other = OTHERS[name]()
    for function in (transformer_blocks, lora_targets, final_norm):
        with pytest.raises(UsageError, match=name):
            function(other)
    with pytest.raises(UsageError, match="no block"):
        block_mlp(nn.Linear(2, 2))
