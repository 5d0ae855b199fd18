"""AdaFace: golden embedding, the released names, conversion of a training checkpoint, and what a file may not do."""

from __future__ import annotations

import argparse
import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.iqa.face_restoration.adaface import DEPTHS, AdaFaceConfig, AdaFaceModel
from thurl.iqa.face_restoration.checkpoints import adaface_from_official, convert_adaface, load_adaface
from thurl.iqa.face_restoration.statistics import convert_statistics, load_statistics
from thurl.training.released_files import read_checkpoint


FOLDER = Path(__file__).parents[2] / "golden"
KEYS = json.loads((FOLDER / "ntire_adaface_keys.json").read_text())


def golden_weights(state):
    """The procedural weights of the golden file."""
    filled = {}
    for number, name in enumerate(sorted(state)):
        value = state[name]
        wave = 43758.5453 * np.sin(12.9898 * (np.arange(value.numel()) + 1.0) + 78.233 * (number + 1))
        u = 2 * (wave - np.floor(wave) - 0.5)
        if not value.is_floating_point():
            u = np.ones_like(u)
        elif name.endswith("running_var"):
            u = 1 + 0.2 * u
        elif name.endswith(("running_mean", ".bias")):
            u = 0.1 * u
        elif value.dim() < 2:
            slope = name == "input_layer.2.weight" or name.endswith("res_layer.3.weight")
            u = 0.25 + 0.05 * u if slope else 1 + 0.1 * u
        else:
            u = u * np.sqrt(6 / (value.numel() / value.shape[0]))
        filled[name] = torch.from_numpy(u.reshape(value.shape)).to(value.dtype)
    return filled


def test_embeddings_are_the_official_ones():
    golden = load_file(FOLDER / "ntire_modules_tiny.safetensors")
    with torch.device("meta"):
        names = AdaFaceModel(AdaFaceConfig()).state_dict()
    model = adaface_from_official({f"model.{n}": t for n, t in golden_weights(names).items()})
    assert sum(p.numel() for p in model.parameters()) == 43_585_600
    with torch.no_grad():
        output = model(golden["adaface.input"])
    cosines = (output.embedding * golden["adaface.embedding"]).sum(dim=1)
    assert (cosines >= 0.9999).all()
    torch.testing.assert_close(output.norm, golden["adaface.norm"], rtol=1e-4, atol=0)
    similarity = output.embedding[0] @ output.embedding[1]
    assert float(similarity) == pytest.approx(float(golden["adaface.cosine"]), abs=1e-4)


@pytest.mark.parametrize("architecture", ["ir_18", "ir_50"])
def test_names_and_shapes_are_the_released_ones(architecture):
    with torch.device("meta"):
        model = AdaFaceModel(AdaFaceConfig(depths=DEPTHS[architecture]))
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == KEYS[architecture]


def test_the_deepest_one_has_49_blocks():
    with torch.device("meta"):
        model = AdaFaceModel(AdaFaceConfig(depths=DEPTHS["ir_101"]))
    assert len(model.body) == 49
    strides = [i for i, block in enumerate(model.body) if block.res_layer[4].stride == (2, 2)]
    assert strides == [0, 3, 16, 46]


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A training checkpoint of IR-18: settings in a container of a package that is then not there."""
    package = types.ModuleType("pytorch_lightning")
    settings = type("AttributeDict", (dict,), {"__module__": "pytorch_lightning"})
    package.AttributeDict = settings
    monkeypatch.setitem(sys.modules, "pytorch_lightning", package)
    torch.manual_seed(0)
    model = AdaFaceModel(AdaFaceConfig(depths=DEPTHS["ir_18"])).eval()
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()} | {"head.kernel": torch.ones(3)}
    content = {"state_dict": state, "epoch": 3, "hyper_parameters": settings(lr=argparse.Namespace(start=0.1))}
    path = tmp_path / "adaface.ckpt"
    torch.save(content, path)  # noqa: TID251 - the released format
    monkeypatch.delitem(sys.modules, "pytorch_lightning")
    return model, path


def test_a_training_checkpoint_becomes_a_folder(checkpoint, tmp_path):
    model, path = checkpoint
    converted = convert_adaface(path, tmp_path / "out")
    assert converted.config.depths == [2, 2, 2, 2]
    loaded, direct = load_adaface(tmp_path / "out"), load_adaface(path)
    for other in (loaded, direct):
        assert not other.training
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name
    with pytest.raises(UsageError, match="holds a model already"):
        convert_adaface(path, tmp_path / "out")


class Call:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_checkpoint_that_wants_to_run_something_is_refused(tmp_path):
    target = tmp_path / "made"
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "more": Call(str(target))}, path)  # noqa: TID251
    with pytest.raises(DataError) as error:
        read_checkpoint(path)
    assert not target.exists()
    assert "weights_only" not in str(error.value)  # no advice to load it unsafely


def test_broken_checkpoints_say_what_is_wrong(tmp_path):
    with pytest.raises(MissingRequirementError, match="no such file"):
        read_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(DataError):
        read_checkpoint(tmp_path / "text.ckpt")
    state = {name: torch.zeros(shape) for name, shape in KEYS["ir_18"].items()}
    lacking = dict(state)
    del lacking["output_layer.3.bias"]
    lacking["input_layer.0.weight"] = torch.zeros(64, 3, 1, 1)
    lacking["body.0.res_layer.1.weight"] = torch.full((64, 64, 3, 3), torch.nan)
    with pytest.raises(DataError) as error:
        adaface_from_official(lacking)
    for part in ("output_layer.3.bias is missing", "(64, 3, 1, 1)", "not finite"):
        assert part in str(error.value)
    with pytest.raises(DataError, match="3 blocks"):
        adaface_from_official({f"body.{i}.x": torch.ones(1) for i in range(3)})
    with pytest.raises(UsageError, match="ir_99"):
        adaface_from_official(state, "ir_99")


def test_a_zero_vector_has_similarity_zero_not_nan():
    model = AdaFaceModel(AdaFaceConfig(depths=(1, 1, 1, 1), widths=(4, 4, 4, 4), embedding_size=8)).eval()
    with torch.no_grad():
        model.output_layer[3].weight.zero_()
        output = model(torch.zeros(2, 3, 112, 112))
    assert torch.equal(output.embedding, torch.zeros(2, 8))


def test_the_network_trains(tmp_path):
    torch.manual_seed(0)
    model = AdaFaceModel(AdaFaceConfig(depths=(1, 1, 1, 1), widths=(4, 4, 4, 4), embedding_size=8)).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    output = model(torch.randn(4, 3, 112, 112))
    (output.embedding @ output.embedding.T).tril(-1).sum().backward()
    optimiser.step()
    still = [name for name, p in model.named_parameters() if torch.equal(before[name], p)]
    # A constant in front of a normalisation has no effect on its output.
    assert still == [] or all(name.endswith("bias") for name in still)


@pytest.mark.parametrize("change", [{"depths": (1, 1, 1)}, {"depths": (1, 0, 1, 1)}, {"image_size": 100}])
def test_wrong_configurations_are_refused(change):
    with pytest.raises(ValueError):
        AdaFaceConfig(**change)


def test_ffhq_statistics_become_a_file_without_pickles(tmp_path):
    rng = np.random.default_rng(0)
    mean, cov = rng.normal(size=6), np.cov(rng.normal(size=(20, 6)), rowvar=False)
    path = tmp_path / "inception_FFHQ_512.pth"
    torch.save({"mean": mean, "cov": cov}, path)  # noqa: TID251 - the released format
    converted = convert_statistics(path, tmp_path / "ffhq.npz")
    loaded = load_statistics(tmp_path / "ffhq.npz")
    for statistics in (converted, loaded):
        np.testing.assert_array_equal(statistics.mean, mean)
        np.testing.assert_array_equal(statistics.cov, cov)
        assert (statistics.count, statistics.extractor) == (70_000, "fid_inception")
    torch.save({"mean": mean}, path)  # noqa: TID251
    with pytest.raises(DataError, match="`cov`"):
        convert_statistics(path, tmp_path / "x.npz")
    torch.save({"mean": np.array([{}], dtype=object), "cov": cov}, path)  # noqa: TID251
    with pytest.raises(DataError):
        convert_statistics(path, tmp_path / "x.npz")
    np.savez(tmp_path / "bad.npz", mean=np.array([{}], dtype=object))
    with pytest.raises(DataError):
        load_statistics(tmp_path / "bad.npz")
