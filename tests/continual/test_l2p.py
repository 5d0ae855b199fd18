"""L2P as a learner: what is trained, what the state holds, its loss, transformers of several kinds, refusals."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

from thurl.continual.encoders import MLPEncoder, MLPEncoderConfig
from thurl.continual.gradient import L2PLike
from thurl.continual.learner import learn_task, start, state_hash, task_accuracies
from thurl.continual.learners import make_learner, parse_learner
from thurl.continual.prompts import PromptedEncoder
from thurl.errors import UsageError

from .conftest import blobs, learned


TASKS = ((0, 3), (5, 1))
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
         "image_size": 8, "patch_size": 4, "initializer_range": 0.3}  # fmt: skip


def pictures(spread=0.9):
    data = blobs(dimension=3 * 8 * 8, spread=spread, per_split=(8, 4, 4))
    data.inputs = data.features.reshape(-1, 3, 8, 8)
    return data


ENCODERS = {
    "vit": lambda: ViTModel(ViTConfig(**SMALL)),
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**SMALL)),
}


@pytest.fixture(params=list(ENCODERS))
def encoder(request):
    torch.manual_seed(0)
    return ENCODERS[request.param]()


def test_prompts_keys_and_head_are_trained_and_nothing_else(encoder):
    data = pictures()
    frozen = state_hash(encoder.state_dict())
    learner = L2PLike(encoder, learning_rate=0.01)
    begin = start(learner, data, 3)
    assert sorted(begin) == ["classes", "encoder.keys", "encoder.prompts", "head.bias", "head.weight"]
    assert begin["encoder.prompts"].shape == (10, 5, 16) and begin["encoder.keys"].shape == (10, 16)
    assert -1 <= float(begin["encoder.prompts"].min()) < -0.9 and 0.9 < float(begin["encoder.prompts"].max()) <= 1
    before = learned(learner, data, TASKS[:1])
    held = state_hash(before)
    after = learn_task(learner, before, data.task(TASKS[1]), 9)
    assert state_hash(before) == held and sorted(after) == sorted(begin)
    assert all(not torch.equal(before[name], after[name]) for name in ("encoder.keys", "encoder.prompts"))
    # The loss is local: old head rows stay, and Adam moves only what has a gradient.
    assert torch.equal(after["head.weight"][:2], before["head.weight"]) and bool(after["head.weight"][2:].any())
    assert state_hash(learn_task(learner, before, data.task(TASKS[1]), 9)) == state_hash(after)
    backbone = learner.encoder.backbone
    assert state_hash(backbone.state_dict()) == frozen == state_hash(encoder.state_dict())
    assert not torch.equal(start(learner, data, 4)["encoder.prompts"], begin["encoder.prompts"])


def test_the_loss_of_a_step(encoder):
    # With a rate of the keys alone, one step goes along the gradient of the pull, and the cosines grow.
    data = pictures()
    learner = L2PLike(encoder, max_steps=1, batch_size=16, optimizer="sgd", momentum=0.0, learning_rate=0.5)
    before = start(learner, data, 3)
    after = learn_task(learner, before, data.task(TASKS[0]), 3)
    prompted = PromptedEncoder(encoder)
    prompted.load_state_dict({name[8:]: v for name, v in before.items() if name.startswith("encoder.")}, strict=False)
    features, cosines = prompted.train().encode(data.inputs[data.task(TASKS[0]).rows])
    (0.1 * cosines.sum(dim=1).mean()).backward()
    torch.testing.assert_close(after["encoder.keys"], before["encoder.keys"] + 0.5 * prompted.keys.grad)
    # The head begins at zero: its first gradient is that of softmax minus one-hot, prompts have none yet.
    error = torch.full((16, 2), 0.5) - torch.eye(2).repeat_interleave(8, dim=0)
    expected = -0.5 * error.T @ features.detach() / 16
    torch.testing.assert_close(after["head.weight"], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(after["encoder.prompts"], before["encoder.prompts"])


def test_logits_of_a_sample_do_not_depend_on_its_batch(encoder):
    data = pictures()
    learner = L2PLike(encoder, epochs=2)
    state = learned(learner, data, TASKS)
    rows = data.rows(range(8), "val")
    together = learner.logits(state, data, rows)
    alone = torch.cat([learner.logits(state, data, row[None]) for row in rows])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(learner.logits(state, data, rows[order]), together[order], rtol=1e-4, atol=1e-5)


def test_it_learns(encoder):
    data = pictures(spread=0.3)
    learner = L2PLike(encoder, learning_rate=0.02, epochs=12)
    assert task_accuracies(learner, learned(learner, data, ((0, 3, 5, 1),)), data, ((0, 3, 5, 1),), "test")[0] >= 0.8


def test_configuration_and_refusals(encoder):
    learner = make_learner(parse_learner("l2p:pool=4,chosen=2,length=3"), encoder)
    again = make_learner(learner.config(), encoder)
    assert again.config() == learner.config() and learner.settings["learning_rate"] == 0.001875
    assert "tune" not in learner.config()
    with pytest.raises(UsageError, match="l2p: prompts are tokens of a vision transformer.*MLPEncoder"):
        L2PLike(MLPEncoder(MLPEncoderConfig()))
    with pytest.raises(UsageError, match="at most the 10 prompts"):
        L2PLike(encoder, chosen=11)
    with pytest.raises(UsageError, match="pull is -1"):
        L2PLike(encoder, pull=-1.0)
    with pytest.raises(UsageError, match="unknown option 'rank'"):
        parse_learner("l2p:rank=4")
