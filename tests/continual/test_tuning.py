"""What is trained: exactly the tensors of the mode, in vision transformers of three libraries and a plain network."""

from __future__ import annotations

import copy
import random
import re

import numpy as np
import pytest
import timm
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, ResNetConfig, ResNetModel, ViTConfig, ViTModel

from thurl.continual.class_data import ClassData
from thurl.continual.closed_form import SimpleCIL
from thurl.continual.encoding import pooled
from thurl.continual.gradient import APER, ExperienceReplay, Finetune, LoRA, TunedRanPAC
from thurl.continual.gradient.tuning import Bottleneck, Tuning
from thurl.continual.learner import LearnerError, current_features, learn_task, start, state_hash, task_accuracies
from thurl.continual.prefix_store import Outcome, PrefixStore
from thurl.continual.ridge import one_hot, random_features, random_projection
from thurl.errors import UsageError
from thurl.training.fingerprint import fingerprint


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
         "image_size": 16, "patch_size": 8}  # fmt: skip
ENCODERS = {
    "timm": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0
    ),
    "vit": lambda: ViTModel(ViTConfig(**SMALL)),
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**SMALL)),
}
# Per mode the names of all trained tensors, as one expression, and how many there are.
LORA = r"\.lora_[AB]\.default\.weight"
TRAINED = {
    ("timm", "lora"): (rf"blocks\.\d\.attn\.qkv{LORA}", 4),
    ("vit", "lora"): (rf"layers\.\d\.attention\.[qv]_proj{LORA}", 8),
    ("clip", "lora"): (rf"(vision_model\.)?encoder\.layers\.\d\.self_attn\.[qv]_proj{LORA}", 8),
    ("timm", "adapter"): (r"blocks\.\d\.mlp\.(down|up)\.(weight|bias)", 8),
    ("vit", "adapter"): (r"layers\.\d\.mlp\.(down|up)\.(weight|bias)", 8),
    ("clip", "adapter"): (r"(vision_model\.)?encoder\.layers\.\d\.mlp\.(down|up)\.(weight|bias)", 8),
}
QUICK = {"learning_rate": 0.05, "encoder_rate": 0.05, "epochs": 2, "batch_size": 8}
TASKS = ((0, 1), (2, 3))


def pictures(classes=6, per_split=(8, 4, 4), seed=0, noise=0.3):
    """Classes of one colour each, with noise."""
    generator = np.random.default_rng(seed)
    labels, splits, inputs = [], [], []
    for label in range(classes):
        colour = generator.normal(size=(3, 1, 1))
        for split, count in zip(("train", "val", "test"), per_split, strict=True):
            labels += [label] * count
            splits += [split] * count
            inputs.append(colour + noise * generator.normal(size=(count, 3, 16, 16)))
    names = [f"colours/{index}" for index in range(classes)]
    stacked = torch.from_numpy(np.concatenate(inputs)).float()
    return ClassData(names, torch.tensor(labels), splits, inputs=stacked, pool_hash=f"colours-{seed}")


def made(kind):
    torch.manual_seed(1)
    return ENCODERS[kind]().eval()


def learned(learner, data, tasks=TASKS, seed=3):
    state = start(learner, data, seed)
    for position, task in enumerate(tasks):
        state = learn_task(learner, state, data.task(task), seed + position)
    return state


def tuned(state):
    return {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}


@pytest.mark.parametrize("mode", ["full", "lora", "adapter", "head"])
@pytest.mark.parametrize("kind", list(ENCODERS))
def test_what_is_trained_moves_and_nothing_else(kind, mode):
    encoder, data = made(kind), pictures()
    before = copy.deepcopy(encoder.state_dict())
    learner = Finetune(
        encoder, tune=mode, **{**QUICK, "learning_rate": 0.005, "encoder_rate": None}, optimizer="adamw"
    )
    first = start(learner, data, 3)
    after = learn_task(learner, first, data.task(TASKS[0]), 3)
    names = set(tuned(after))
    if mode == "full":
        assert names == set(encoder.state_dict())
    elif mode == "head":
        assert not names
    else:
        pattern, count = TRAINED[kind, mode]
        assert len(names) == count and all(re.fullmatch(pattern, name) for name in names), names
    assert not {name for name in names if torch.equal(tuned(first)[name], tuned(after)[name])}
    assert not torch.equal(after["head.weight"], first["head.weight"])
    # What is not in the state is as it was: with the tensors of the start the features are those of the encoder.
    rows = data.rows([4], "val")
    with torch.no_grad():
        expected = pooled(encoder, data.inputs[rows])
    torch.testing.assert_close(learner.encoded(first, data, rows), expected)
    assert torch.equal(learner.encoded(after, data, rows), expected) == (mode == "head")
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_a_low_rank_state_is_small_and_gives_the_same_logits_elsewhere(tmp_path):
    encoder, data = made("timm"), pictures()
    learner = LoRA(encoder, rank=2, epochs=1, batch_size=8, learning_rate=0.01)
    state = learned(learner, data)
    full = learned(Finetune(encoder, epochs=1), data)
    sizes = [sum(value.numel() for value in tuned(item).values()) for item in (state, full)]
    assert sizes[0] == 2 * 2 * (32 + 96) and sizes[0] * 20 < sizes[1]
    store = PrefixStore(tmp_path, memory=0)
    store.put("ab" * 32, Outcome(state, (), 0.0), None)
    kept = PrefixStore(tmp_path).get("ab" * 32)
    rows = data.rows(range(4), "test")
    elsewhere = LoRA(encoder, rank=2, epochs=1, batch_size=8, learning_rate=0.01)
    elsewhere.encoded(start(elsewhere, data, 99), data, rows)
    assert torch.equal(elsewhere.logits(kept.state, data, rows), learner.logits(state, data, rows))
    # What a state says is what PEFT computes: W + alpha / rank * B A.
    layer = tuned(state)
    whole = copy.deepcopy(encoder)
    for index, block in enumerate(whole.blocks):
        a, b = (layer[f"blocks.{index}.attn.qkv.lora_{part}.default.weight"] for part in "AB")
        with torch.no_grad():
            block.attn.qkv.weight += 2 * b @ a
    with torch.no_grad():
        torch.testing.assert_close(whole(data.inputs[rows]), learner.features(state, data, rows))


@pytest.mark.parametrize("learner", [LoRA, APER, TunedRanPAC, ExperienceReplay], ids=lambda kind: kind.name)
def test_learning_is_pure(learner):
    encoder, data = made("vit"), pictures()
    more = {"width": 20} if learner is TunedRanPAC else {}
    more |= {"tune": "adapter", "bottleneck": 8} if learner is ExperienceReplay else {}
    states = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    made_ = learner(encoder, epochs=1, batch_size=8, **more)
    first = learned(made_, data)
    assert torch.equal(states[0], torch.get_rng_state()) and random.getstate() == states[2]
    assert np.array_equal(states[1], np.random.get_state()[1])
    torch.manual_seed(5)
    random.seed(5)
    learned(made_, data, ((4, 5),), seed=8)  # another job between
    assert state_hash(learned(made_, data)) == state_hash(first)
    assert state_hash(learned(made_, data, seed=4)) != state_hash(first)


def test_dropout_is_drawn_from_the_seed_and_never_in_use():
    torch.manual_seed(1)
    encoder, data = ViTModel(ViTConfig(**SMALL, hidden_dropout_prob=0.3)).eval(), pictures()
    learner = Finetune(encoder, **QUICK)
    state = learned(learner, data)
    assert state_hash(state) == state_hash(learned(learner, data))
    rows = data.rows([0, 1], "test")
    assert torch.equal(learner.logits(state, data, rows), learner.logits(state, data, rows))
    # A head alone is trained on the features as they are in use.
    head = Finetune(encoder, tune="head", **QUICK)
    plain = Finetune(made("vit"), tune="head", **QUICK)
    torch.testing.assert_close(learned(head, data)["head.weight"], learned(plain, data)["head.weight"])


@pytest.mark.parametrize("mode", ["full", "lora", "adapter"])
def test_tuning_learns(mode):
    encoder, data = made("timm"), pictures(per_split=(16, 8, 12))
    rates = {"full": (0.02, "sgd"), "lora": (0.005, "adamw"), "adapter": (0.02, "adamw")}[mode]
    learner = Finetune(
        encoder, tune=mode, learning_rate=rates[0], optimizer=rates[1], epochs=10, batch_size=8, schedule="cosine"
    )
    task = (0, 1, 2, 3)
    state = learned(learner, data, (task,))
    assert task_accuracies(learner, state, data, (task,), "test")[0] >= 0.75  # chance is 0.25


def test_a_plain_network_and_one_without_a_place():
    plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    adapted = Finetune(plain, tune="adapter", bottleneck=3)
    assert [type(part).__name__ for part in adapted.encoder] == ["Bottleneck", "ReLU", "Bottleneck"]
    assert sum(value.numel() for value in adapted._begin.values()) == (6 * 3 + 3 + 3 * 5 + 5) + (5 * 3 + 3 + 3 * 4 + 4)
    torch.testing.assert_close(adapted.encoder(torch.ones(1, 6)), plain(torch.ones(1, 6)))
    network = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic"))
    for mode in ("lora", "adapter"):
        with pytest.raises(UsageError, match="ResNetModel"):
            Finetune(network, tune=mode)


def test_the_bottleneck():
    torch.manual_seed(0)
    around = Bottleneck(nn.Identity(), 4, 4, 3)
    inputs = torch.randn(2, 5, 4)
    beside = (inputs @ around.down.weight.T + around.down.bias).clamp_min(0) @ around.up.weight.T + around.up.bias
    torch.testing.assert_close(around(inputs), inputs + 0.1 * beside)


def test_statistics_of_norms_belong_to_the_state():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.BatchNorm1d(8)).eval()
    data = pictures()
    learner = LoRA(encoder, epochs=1)
    state = learned(learner, data, TASKS[:1])
    again = LoRA(encoder, epochs=1)
    rows = data.rows([0], "val")
    assert float(state["encoder.2.num_batches_tracked"]) > 0
    assert torch.equal(again.logits(state, data, rows), learner.logits(state, data, rows))


@pytest.mark.parametrize("mode", ["adapter", "lora", "full"])
def test_the_first_task_alone_tunes(mode):
    encoder, data = made("vit"), pictures()
    learner = APER(encoder, tune=mode, epochs=2, **({"bottleneck": 4} if mode == "adapter" else {}))
    empty = start(learner, data, 0)
    one = learn_task(learner, empty, data.task(TASKS[0]), 0)
    two = learn_task(learner, one, data.task(TASKS[1]), 1)
    assert all(torch.equal(value, tuned(two)[name]) for name, value in tuned(one).items())
    assert not any(torch.equal(value, tuned(one)[name]) for name, value in tuned(empty).items() if "lora_B" in name)
    rows = data.rows(range(4), "val")
    features = current_features(learner, two, data, rows)
    with torch.no_grad():
        torch.testing.assert_close(features[:, :32], pooled(encoder, data.inputs[rows]).double())
    assert not torch.allclose(features[:, :32], features[:, 32:])
    # SimpleCIL on both halves side by side.
    both = ClassData(data.classes, data.labels, data._splits, features=learner.features(two, data, torch.arange(96)))
    simple = SimpleCIL()
    state = learned(simple, both)
    torch.testing.assert_close(learner.logits(two, data, rows), simple.logits(state, both, rows))
    # Kept features of the same encoder are taken as they are.
    kept = ClassData(
        data.classes, data.labels, data._splits, inputs=data.inputs, encoder=fingerprint(encoder),
        features=torch.zeros(96, 32),
    )  # fmt: skip
    assert not learner.features(two, kept, rows)[:, :32].any()


def test_tuned_ranpac_is_ridge_regression_on_tuned_features():
    encoder, data = made("vit"), pictures()
    learner = TunedRanPAC(encoder, width=30, ridge=1.0, bottleneck=4, epochs=2)
    assert not learner.frozen_encoder
    state = learned(learner, data)
    rows = data.rows(range(4), "train")
    features = learner.features(state, data, rows).double()
    hidden = random_features(features, random_projection(3, 32, 30))
    member = one_hot(data.labels[rows], torch.arange(4))
    weights = torch.linalg.solve(hidden.T @ hidden + torch.eye(30), hidden.T @ member)
    torch.testing.assert_close(state["weights"], weights)
    # Another first task, other features, and no Gram matrix of the wrong encoder.
    other = learned(learner, data, TASKS[::-1])
    fresh = learned(TunedRanPAC(encoder, width=30, ridge=1.0, bottleneck=4, epochs=2), data, TASKS[::-1])
    assert not torch.equal(tuned(other)["layers.0.mlp.up.weight"], tuned(state)["layers.0.mlp.up.weight"])
    assert state_hash(other) == state_hash(fresh)


def test_options_of_a_mode():
    with pytest.raises(UsageError) as caught:
        Tuning("adapter", rank=3, bottleneck=0)
    assert len(caught.value.problems) == 2
    assert Tuning("lora", rank=4).settings == {"tune": "lora", "rank": 4, "alpha": 8.0}
    with pytest.raises(UsageError, match="choose from adapter, full, lora"):
        APER(made("vit"), tune="head")


def test_a_learner_that_diverges_is_named():
    data = pictures()
    learner = LoRA(made("vit"), learning_rate=1e20, epochs=2)
    with pytest.raises(LearnerError, match=r"learner lora diverged learning task colours/0, colours/1.*learning_rate"):
        learned(learner, data)
