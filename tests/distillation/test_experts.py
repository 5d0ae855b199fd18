"""Expert trajectories: what a folder holds, going on after a stop, damaged and foreign folders."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from thurl.distillation.classifier_training import accuracy
from thurl.distillation.experts import ExpertConfig, Experts, train_experts
from thurl.distillation.networks import NetworkConfig, build_network
from thurl.distillation.sources import load_digits
from thurl.errors import DataError, UsageError


CONFIG = ExpertConfig(NetworkConfig(1, 8, 8, 10, filters=8, depth=1), count=2, epochs=3, lr=0.1, batch=50)


@pytest.fixture(scope="module")
def digits():
    return load_digits(train_per_class=40, test_per_class=20)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_experts_learn_and_keep_every_epoch(digits, tmp_path):
    train, test = digits
    calls = []
    folder = train_experts(train, CONFIG, tmp_path / "new" / "e", progress=lambda *done: calls.append(done))
    experts = Experts(folder)
    assert (len(experts), experts.epochs, experts.network) == (2, 3, CONFIG.network)
    assert calls == [(1, 2), (2, 2)]
    net = build_network(experts.network, 0)
    found = []
    for epoch in range(4):
        net.load_state_dict(experts.parameters(0, epoch))
        found.append(accuracy(net, test.normalised(), test.labels))
    assert found[0] < 0.3 and found[3] > 0.6, found
    same = experts.parameters(1, 0)
    assert not torch.equal(same["classifier.weight"], experts.parameters(0, 0)["classifier.weight"])
    experts.check(train)


def test_a_stopped_run_goes_on_and_gives_the_same_files(digits, tmp_path):
    whole = contents(train_experts(digits[0], CONFIG, tmp_path / "whole"))
    assert sorted(whole) == ["expert_0000.safetensors", "expert_0001.safetensors", "experts.json"]

    class Stop(Exception):
        pass

    def stop(done, count):
        raise Stop

    with pytest.raises(Stop):
        train_experts(digits[0], CONFIG, tmp_path / "part", progress=stop)
    (tmp_path / "part" / "expert_0001.part").write_bytes(b"half")  # killed while writing
    assert len(Experts(tmp_path / "part")) == 1
    assert contents(train_experts(digits[0], CONFIG, tmp_path / "part")) == whole
    # More experts may be added later.
    assert len(Experts(train_experts(digits[0], replace(CONFIG, count=3), tmp_path / "part"))) == 3


def test_other_settings_and_pictures_do_not_mix(digits, tmp_path):
    small = digits[0].draw(10, torch.Generator().manual_seed(0))
    folder = train_experts(small, replace(CONFIG, count=1, epochs=1), tmp_path)
    with pytest.raises(UsageError, match="other settings"):
        train_experts(small, replace(CONFIG, count=1, epochs=2), folder)
    with pytest.raises(UsageError, match="other settings"):
        train_experts(digits[1], replace(CONFIG, count=1, epochs=1), folder)
    with pytest.raises(DataError, match="other classes and mean"):
        Experts(folder).check(replace(digits[0], classes=tuple("abcdefghij"), mean=(0.1,)))


def test_damage_is_named(digits, tmp_path):
    with pytest.raises(DataError, match="no folder of expert trajectories"):
        Experts(tmp_path / "none")
    small = digits[0].draw(10, torch.Generator().manual_seed(0))
    folder = train_experts(small, replace(CONFIG, count=1, epochs=1), tmp_path / "e")
    experts = Experts(folder)
    with pytest.raises(DataError, match="no weights of epoch 7"):
        experts.parameters(0, 7)
    (folder / "expert_0000.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(DataError, match="cannot be read"):
        experts.parameters(0, 0)
    (folder / "expert_0000.safetensors").unlink()
    with pytest.raises(DataError, match="no expert is complete"):
        Experts(folder)
    (folder / "experts.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        train_experts(small, CONFIG, folder)


def test_divergence_is_no_expert(digits, tmp_path):
    small = digits[0].draw(10, torch.Generator().manual_seed(0))
    with pytest.raises(DataError, match="diverged"):
        train_experts(small, replace(CONFIG, lr=1e30), tmp_path)
    assert list(tmp_path.glob("expert_*")) == []


def test_bad_settings_are_named_together():
    with pytest.raises(UsageError) as caught:
        ExpertConfig(NetworkConfig(1, 8, 8, 10, norm="batch"), count=0, epochs=0, lr=0)
    assert len(caught.value.problems) == 4
