"""Released checkpoints: the official tiny CLIP's features and scores, files with foreign objects, what is refused."""

import argparse
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.forensics.deepfake.loading import load_model, load_processor
from thurl.forensics.deepfake.official import convert_checkpoint, from_official, to_official
from thurl.training.released_files import read_model_tensors


GOLDEN = Path(__file__).parents[2] / "golden"
WEIGHTS = load_file(GOLDEN / "sjedd_tinyclip_weights.safetensors")
IO = load_file(GOLDEN / "sjedd_tinyclip_io.safetensors")
PROMPTS = {"prompt_ids": [[*row[: row.index(39)], 39] for row in IO["tokens"].tolist()]}


def released(path, state, module="yacs.config"):
    """A file as the official training writes it, with the settings of a package that is not installed here."""
    package, _, name = module.partition(".")
    holder = types.ModuleType(module)

    class CfgNode(dict):
        pass

    CfgNode.__module__, CfgNode.__qualname__ = module, "CfgNode"
    holder.CfgNode = CfgNode
    node = CfgNode({"TRAIN": CfgNode({"LR": 6e-7, "EPOCHS": 20}), "TAGS": ["a"]})
    node.__dict__["__immutable__"] = True
    content = {
        "model": state,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 6e-7, "params": [0]}]},
        "max_accuracy": np.float64(0.9),
        "epoch": 4,
        "config": node,
        "args": argparse.Namespace(task="binary", seed=0),
    }
    parent = types.ModuleType(package)
    setattr(parent, name, holder)
    sys.modules |= {package: parent, module: holder}
    try:
        torch.save(content, path)  # noqa: TID251 - the released format
    finally:
        del sys.modules[package], sys.modules[module]
    return path


def test_scores_of_the_official_model():
    model = from_official(WEIGHTS, **PROMPTS)
    with torch.no_grad():
        output = model(IO["image"])
        for found, name in [
            (model.image_features(IO["image"]), "image_features"),
            (model.text_features(), "text_features"),
            (output.logits, "logits"),
            (output.marginals, "marginals"),
        ]:
            torch.testing.assert_close(found, IO[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.logits, IO["logits"], rtol=0, atol=1e-5)
        folded = model.fold_text()(IO["image"])
    torch.testing.assert_close(folded.marginals, IO["marginals"], rtol=0, atol=1e-5)
    torch.testing.assert_close(folded.logits, output.logits, rtol=0, atol=1e-6)


def test_a_released_file_becomes_a_folder_and_its_tensors_come_back(tmp_path):
    path = released(tmp_path / "ckpt_best.pth", {f"module.{name}": tensor for name, tensor in WEIGHTS.items()})
    convert_checkpoint(path, tmp_path / "out", **PROMPTS)
    model, processor = load_model(tmp_path / "out"), load_processor(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(model(IO["image"]).marginals, IO["marginals"], rtol=0, atol=1e-4)
    assert (processor.size, processor.resample) == (32, "bicubic")
    again = to_official(model)
    assert set(again) == set(WEIGHTS) - {"logit_scale"}
    assert all(torch.equal(tensor, WEIGHTS[name]) for name, tensor in again.items())
    with pytest.raises(UsageError, match="holds a model already"):
        convert_checkpoint(path, tmp_path / "out", **PROMPTS)


def test_a_learned_scale_takes_over_that_of_clip():
    model = from_official(WEIGHTS, **PROMPTS, normalize=True, learn_scale=True)
    assert torch.equal(model.logit_scale, WEIGHTS["logit_scale"]) and set(to_official(model)) == set(WEIGHTS)


def test_half_precision_becomes_float32():
    model = from_official({name: tensor.half() for name, tensor in WEIGHTS.items()}, **PROMPTS)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_sizes_beside_the_tensors_may_be_there():
    sizes = {name: torch.tensor(12) for name in ("input_resolution", "context_length", "vocab_size")}
    from_official({**WEIGHTS, **sizes}, **PROMPTS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ln_final.bias": None}, "ln_final.bias is missing"),
        ({"visual.proj": None}, "visual.proj is missing"),
        ({"visual.conv1.weight": None}, r"visual\.conv1\.weight missing: not the image tower of a CLIP ViT"),
        ({"token_embedding.weight": None}, "token_embedding.weight missing: not the text tower of a CLIP"),
        ({"token_embedding.weight": torch.zeros(40, 65)}, "no CLIP has these shapes"),
        (
            {"text_projection": torch.zeros(64, 20)},
            r"visual\.proj has the shape \(64, 24\), the model needs \(64, 20\)",
        ),
        ({"attn_mask": torch.zeros(12, 12)}, "attn_mask has no place"),
        (
            {"visual.ln_post.bias": torch.full((64,), torch.nan)},
            "visual.ln_post.bias holds values that are not finite",
        ),
    ],
)
def test_what_is_missing_or_has_no_place_is_named(changes, message):
    state = {name: tensor for name, tensor in {**WEIGHTS, **changes}.items() if tensor is not None}
    with pytest.raises(DataError, match=message):
        from_official(state, **PROMPTS)


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(MissingRequirementError, match="no such file"):
        convert_checkpoint(tmp_path / "ckpt_best.pth", tmp_path / "out")
    path = released(tmp_path / "evil.pth", WEIGHTS, module="harmful.config")
    with pytest.raises(DataError, match="not a checkpoint of tensors"):
        read_model_tensors(path)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="not the image tower"):
        convert_checkpoint(tmp_path / "other.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folded_model_has_no_official_form():
    with pytest.raises(UsageError, match="no text tower to write"):
        to_official(from_official(WEIGHTS, **PROMPTS).fold_text())
