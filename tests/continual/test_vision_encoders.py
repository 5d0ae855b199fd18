"""Encoders of every kind: features and preprocessing are those of their library, and what cannot be used is named."""

from __future__ import annotations

import copy
import json
import logging
from multiprocessing.reduction import ForkingPickler

import numpy as np
import peft
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, BertConfig, BertModel, ViTImageProcessor

from thurl.continual.encoding import pooled
from thurl.continual.vision_encoders import load_encoder
from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.training.fingerprint import fingerprint
from thurl.vision_models.preprocessing import as_picture
from thurl.vit import final_norm, lora_targets, transformer_blocks

from .tiny_encoders import KINDS, save_encoder


VISION = [kind for kind in KINDS if kind != "mlp"]


def picture(seed=0, width=40, height=27):
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).resize((width, height))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder and model of every kind."""
    root = tmp_path_factory.mktemp("encoders")
    return {kind: (root / kind, save_encoder(kind, root / kind)) for kind in KINDS}


def own_features(kind, model, inputs):
    """Features as the library itself gives them."""
    with torch.no_grad():
        if kind.startswith("timm"):
            return model.forward_head(model.forward_features(inputs), pre_logits=True)
        if kind == "clip":
            return model.get_image_features(inputs).pooler_output
        if kind == "clip projected":
            return model(inputs).image_embeds
        if kind == "clip vision":
            return model(inputs).pooler_output
        base = model.vit if kind == "vit classifier" else model
        return base(inputs).last_hidden_state[:, 0]


def own_inputs(kind, folder, model):
    if kind.startswith("timm"):
        config = timm.data.resolve_model_data_config(model, args={"img_size": 16})
        transform = timm.data.create_transform(**config, is_training=False)
        return torch.stack([transform(picture(seed)) for seed in range(3)])
    processor = AutoImageProcessor.from_pretrained(folder)
    return processor([picture(seed) for seed in range(3)], return_tensors="pt").pixel_values


@pytest.mark.parametrize("kind", VISION)
def test_features_and_inputs_are_those_of_the_library(saved, kind):
    folder, model = saved[kind]
    loaded = load_encoder(str(folder))
    prepared = torch.stack([loaded.preprocess(picture(seed)) for seed in range(3)])
    assert prepared.dtype == torch.uint8
    inputs = loaded.preprocess.scaled(prepared)
    wanted = own_inputs(kind, folder, model)
    torch.testing.assert_close(inputs, wanted, atol=2e-6, rtol=1e-5)
    with torch.no_grad():
        features = pooled(loaded.model, wanted)
    assert features.shape == (3, 8 if kind in ("clip", "clip projected") else 32)
    torch.testing.assert_close(features, own_features(kind, model, wanted))
    assert not loaded.model.training and all(p.requires_grad for p in loaded.model.parameters())


@pytest.mark.parametrize("kind", VISION)
def test_an_encoder_has_the_structure_of_its_transformer(saved, kind):
    model = load_encoder(str(saved[kind][0])).model
    assert len(transformer_blocks(model)) == 2 and final_norm(model) is not None
    assert all(name.startswith("backbone.") for name in lora_targets(model))
    inputs = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(inputs)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=lora_targets(model)))
    torch.testing.assert_close(adapted(inputs), before)
    adapted(inputs).square().sum().backward()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    # LoRA's second matrix begins at zero: it alone has a gradient.
    moved = [parameter for parameter in trained if bool(parameter.grad.any())]
    assert len(trained) == 2 * len(lora_targets(model)) and len(moved) == len(trained) // 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_tells_encoders_apart(saved, kind, tmp_path):
    folder, _ = saved[kind]
    first, again = load_encoder(str(folder)).model, load_encoder(str(folder)).model
    assert fingerprint(first) == fingerprint(again) == fingerprint(copy.deepcopy(first))
    save_encoder(kind, tmp_path / "other", seed=1)
    assert fingerprint(load_encoder(str(tmp_path / "other")).model) != fingerprint(first)


def test_heads_and_pooling_are_part_of_the_fingerprint(saved, tmp_path):
    """What changes the features and not one weight."""
    for kind, key, value in (("vit", "num_attention_heads", 4), ("dinov2", "layer_norm_eps", 0.1)):
        folder = tmp_path / kind
        save_encoder(kind, folder)
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, key: value}))
        assert fingerprint(load_encoder(str(folder)).model) != fingerprint(load_encoder(str(saved[kind][0])).model)
    settings = json.loads((saved["timm"][0] / "config.json").read_text())
    (tmp_path / "timm").mkdir()
    save_file(load_file(saved["timm"][0] / "model.safetensors"), tmp_path / "timm" / "model.safetensors")
    settings["model_args"]["num_heads"] = 4
    (tmp_path / "timm" / "config.json").write_text(json.dumps(settings))
    other = load_encoder(str(tmp_path / "timm")).model
    assert fingerprint(other) != fingerprint(load_encoder(str(saved["timm"][0])).model)


@pytest.mark.parametrize("kind", ["vit", "clip", "timm"])
def test_an_encoder_goes_to_another_process_whole(saved, kind):
    loaded = load_encoder(str(saved[kind][0]))
    model, preprocess = ForkingPickler.loads(ForkingPickler.dumps((loaded.model, loaded.preprocess)))
    inputs = loaded.preprocess.scaled(loaded.preprocess(picture())[None])
    assert torch.equal(preprocess.scaled(preprocess(picture())[None]), inputs)
    assert fingerprint(model) == fingerprint(loaded.model) and not model.training
    with torch.no_grad():
        assert torch.equal(model(inputs), loaded.model(inputs))


def test_only_clip_with_its_tokenizer_reads_names(saved, tmp_path):
    classes = ["signs/red_bird", "signs/s1", "signs/blue"]
    loaded = load_encoder(str(saved["clip"][0]))
    found = loaded.text_features(classes)
    assert found.shape == (3, 8) and torch.equal(loaded.text_features(classes, "a photo of a {}."), found)
    other = loaded.text_features(classes, "the drawing of {}")
    assert not torch.allclose(other, found)
    many = loaded.text_features([f"signs/s{index}" for index in range(300)])
    torch.testing.assert_close(many[299:], loaded.text_features(["signs/s299"]))
    for template in ("a photo", "a {0} of {1}", "a {name}", "{"):
        with pytest.raises(UsageError, match="one {} for the name"):
            loaded.text_features(classes, template)
    save_encoder("clip", tmp_path / "mute")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "mute" / name).unlink()
    for folder in (tmp_path / "mute", saved["vit"][0], saved["timm"][0], saved["mlp"][0]):
        assert load_encoder(str(folder)).text_features(classes) is None
        with pytest.raises(UsageError, match="needs a CLIP model"):
            load_encoder(str(folder)).text_features(classes, "a {}")


def test_no_table_of_left_out_weights_is_printed(saved, caplog):
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        load_encoder(str(saved["clip"][0]))
    assert "UNEXPECTED" not in caplog.text


def edited(saved, kind, target, **settings):
    save_encoder(kind, target)
    old = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**old, **settings}))


def test_folders_that_cannot_be_used_are_named(saved, tmp_path):
    def refused(error, words, folder=tmp_path):
        with pytest.raises(error, match=words):
            load_encoder(str(folder))

    refused(MissingRequirementError, "no model")
    refused(MissingRequirementError, "no model there", tmp_path / "none")
    for kind in ("mlp", "vit", "timm"):
        folder = tmp_path / kind
        save_encoder(kind, folder)
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").unlink()
        refused(MissingRequirementError, "no model.safetensors; save", folder)
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x04 would run code")
        refused(MissingRequirementError, "pytorch_model.bin, a pickle", folder)
        (folder / "model.safetensors").write_bytes(weights[:-40])
        refused(DataError, "save it again", folder)
        (folder / "model.safetensors").write_bytes(weights)
        kept = load_file(folder / "model.safetensors")
        dropped = {name: value for name, value in kept.items() if not name.endswith("bias")}
        save_file(dropped, folder / "model.safetensors", metadata={"format": "pt"})
        refused(DataError, "would be random|not a whole", folder)
    BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
                         vocab_size=9)).save_pretrained(tmp_path / "bert")  # fmt: skip
    refused(UsageError, "kind 'bert'; encoders are", tmp_path / "bert")
    edited(saved, "timm", tmp_path / "unknown", architecture="vit_tiny_patch16_225")
    refused(UsageError, "did you mean `vit_tiny_patch16_224`", tmp_path / "unknown")
    edited(saved, "timm", tmp_path / "strange", model_args={"wings": 2})
    refused(DataError, "not a whole vit_tiny_patch16_224", tmp_path / "strange")
    edited(saved, "vit", tmp_path / "deep", num_hidden_layers=3)
    refused(DataError, "parameters have no value", tmp_path / "deep")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.json").write_text("[]")
    refused(DataError, "holds a list", tmp_path / "list")


def test_a_preprocessing_of_another_encoder_is_refused(tmp_path):
    save_encoder("vit", tmp_path / "vit")
    ViTImageProcessor(size={"height": 24, "width": 24}).save_pretrained(tmp_path / "vit")
    with pytest.raises(UsageError, match=r"gives torch.uint8 \(3, 24, 24\), the model reads .*\(3, 16, 16\)"):
        load_encoder(str(tmp_path / "vit"))
    (tmp_path / "vit" / "preprocessor_config.json").unlink()
    with pytest.raises(MissingRequirementError, match="no preprocessor_config.json"):
        load_encoder(str(tmp_path / "vit"))


def test_inputs_of_another_size_are_refused(saved):
    for kind in ("vit", "dinov2", "timm"):
        model = load_encoder(str(saved[kind][0])).model
        for shape in ((2, 3, 8, 8), (2, 1, 16, 16), (2, 48)):
            with pytest.raises(UsageError, match=r"this encoder reads pictures of \('B', 3, 16, 16\)"):
                model(torch.zeros(shape))


def test_without_the_hub_its_names_say_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for text, name in (("timm:vit_tiny_patch16_224", "timm/vit_tiny"), ("someone/encoder", "someone/encoder")):
        with pytest.raises(MissingRequirementError, match=f"hf download {name}"):
            load_encoder(text)
    with pytest.raises(UsageError, match="did you mean `vit_tiny_patch16_224"):
        load_encoder("timm:vit_tiny_patch16_22")
    with pytest.raises(UsageError, match="Invalid pretrained tag"):
        load_encoder("timm:vit_tiny_patch16_224.nonsense")


def test_files_of_the_hub_are_a_folder_like_any_other(saved, monkeypatch):
    asked = []

    def download(name, allow_patterns, repo_type, revision):
        assert repo_type == "model" and revision is None
        asked.append((name, allow_patterns))
        return str(saved["timm"][0])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = load_encoder("timm:vit_tiny_patch16_224.augreg_in21k").model
    assert fingerprint(found) == fingerprint(load_encoder(str(saved["timm"][0])).model)
    assert asked[0][0] == "timm/vit_tiny_patch16_224.augreg_in21k"
    assert not any(pattern.endswith((".bin", ".pth", ".py")) or pattern == "*" for pattern in asked[0][1])


def test_arrays_are_pictures_where_their_shape_and_range_say_so():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert as_picture(grey).size == (4, 3) and np.array_equal(np.asarray(as_picture(grey))[..., 1], grey)
    assert np.array_equal(np.asarray(as_picture(grey / 255.0)), np.asarray(as_picture(grey)))
    colour = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(as_picture(colour)), colour)
    for bad, words in (
        (np.full((2, 2), 1.5), "outside"),
        (np.full((2, 2), np.nan), "outside"),
        (np.zeros(16), "must be"),
        (np.zeros((2, 2), dtype=np.int64), "must be"),
        (np.zeros((2, 2, 4), dtype=np.uint8), "must be"),
    ):
        with pytest.raises(DataError, match=words):
            as_picture(bad)
