"""Tiny models with every kind of adapter that CoTo can switch, shared by its tests."""

import pytest
import torch
from peft import HiraConfig, LoHaConfig, LoKrConfig, LoraConfig, VeraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


TARGETS = ["q_proj", "v_proj", "up_proj"]

VARIANTS = {
    "lora": lambda: LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS),
    "rslora": lambda: LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, use_rslora=True),
    "dora": lambda: LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, use_dora=True),
    "pissa": lambda: LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights="pissa"),
    "vera": lambda: VeraConfig(r=4, target_modules=["q_proj", "v_proj"], projection_prng_key=0),
    "loha": lambda: LoHaConfig(r=4, alpha=8, target_modules=TARGETS),
    "lokr": lambda: LoKrConfig(r=4, alpha=8, target_modules=TARGETS),
    "hira": lambda: HiraConfig(r=4, target_modules=TARGETS),
}


@pytest.fixture(scope="session")
def variants():
    return VARIANTS


@pytest.fixture(scope="session")
def tiny_llama():
    """Builder of a 4-layer Llama without an adapter (width 32, vocabulary 64), dropout 0."""

    def build(layers=4, seed=0):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        return LlamaForCausalLM(config)

    return build


@pytest.fixture(scope="session")
def adapted(tiny_llama):
    """Builder of the tiny Llama with a random, non-zero adapter, in training mode."""

    def build(variant="lora", layers=4, config=None, seed=0):
        model = get_peft_model(tiny_llama(layers, seed), config or VARIANTS[variant]())
        randomise(model, seed)
        return model.train()

    return build


@pytest.fixture(scope="session")
def tokens():
    return torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(0))


def randomise(model, seed=0):
    """Adds noise to every trainable parameter, so that no update is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
