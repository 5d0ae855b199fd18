"""A kept fingerprint is that of the weights as they are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

import thurl.training.fingerprint as module
from thurl.training.fingerprint import FingerprintCache, fingerprint


@pytest.fixture
def hashed(monkeypatch):
    """How often a whole model was hashed."""
    calls = []

    def counted(model):
        calls.append(model)
        return fingerprint(model)

    monkeypatch.setattr(module, "fingerprint", counted)
    return calls


def small():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=2))


CHANGES = {
    "in place": lambda model: nn.init.ones_(model.classifier.weight),
    "an optimizer": lambda model: step(model),
    "loaded": lambda model: model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()}),
    "assigned": lambda model: model.load_state_dict(
        {name: value + 1 for name, value in model.state_dict().items()}, assign=True
    ),
    "rounded": lambda model: model.half().float(),
    "another module": lambda model: setattr(model, "classifier", nn.Linear(8, 2)),
    "configuration": lambda model: setattr(model.config, "id2label", {0: "cat", 1: "dog"}),
}


def step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 3, 8, 8)).logits.sum().backward()
    optimizer.step()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen(hashed, change):
    model, cache = small(), FingerprintCache()
    before = cache.of(model)
    assert cache.of(model) == before == fingerprint(model) and len(hashed) == 1
    change(model)
    assert cache.of(model) == fingerprint(model) != before
    cache.of(model)
    assert len(hashed) == 2


def test_memory_that_is_used_again_is_another_weight():
    # A size at which malloc hands the block that was just freed out again.
    layer, cache = nn.Linear(512, 512), FingerprintCache()
    for _ in range(5):
        before = cache.of(layer)
        layer.weight.data = torch.randn(512, 512)
        layer.weight.data = torch.randn(512, 512)
        assert cache.of(layer) == fingerprint(layer) != before


def test_replaced_weights_are_not_kept_in_memory():
    layer, cache = nn.Linear(4, 4), FingerprintCache()
    cache.of(layer)
    old = module.StorageWeakRef(layer.weight.untyped_storage())
    layer.weight = nn.Parameter(torch.zeros(4, 4))
    assert old.expired()


def test_weights_without_a_version_are_hashed_each_time(hashed):
    with torch.inference_mode():
        layer, cache = nn.Linear(4, 4), FingerprintCache()
        before = cache.of(layer)
        layer.weight.add_(1)
        assert cache.of(layer) == fingerprint(layer) != before


def test_copies_hash_anew(hashed):
    layer, cache = nn.Linear(4, 4), FingerprintCache()
    cache.of(layer)
    other, again = copy.deepcopy((layer, cache))
    assert again.of(other) == cache.of(layer) and len(hashed) == 2
    assert copy.copy(cache).of(layer) == cache.of(layer) and len(hashed) == 3
