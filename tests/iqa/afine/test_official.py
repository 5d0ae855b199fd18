"""Conversion of released checkpoints: both layouts, round trips, a strict and readable account of keys."""

from __future__ import annotations

import pickle  # noqa: TID251 - writes the kind of file that has to be refused

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.iqa.afine.checkpoint_files import STAGE_FILES, read_official
from thurl.iqa.afine.config import AFineConfig
from thurl.iqa.afine.model import AFineModel
from thurl.iqa.afine.official import clip_tower, convert_checkpoint, from_official, to_official
from thurl.training.openai_clip import to_openai, vision_names


VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1}
VISION |= {"image_size": 64, "patch_size": 16}


@pytest.fixture
def parts(golden_weights):
    return read_official(golden_weights)


def write(path, content):
    torch.save(content, path)  # noqa: TID251 - the released files are pickles
    return path


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


# --- the release -----------------------------------------------------------------------------------------------------


def test_sizes_are_read_off_the_tensors(golden_model):
    vision = golden_model.config.vision_config
    assert (vision.hidden_size, vision.num_attention_heads, vision.num_hidden_layers) == (128, 2, 2)
    assert (vision.patch_size, vision.image_size, vision.intermediate_size) == (32, 96, 512)
    assert (golden_model.config.projection_size, golden_model.config.head_size) == (8, 48)
    assert golden_model.config.untrained == [] and not golden_model.training
    assert {parameter.dtype for parameter in golden_model.parameters()} == {torch.float32}


def test_both_layouts_give_the_same_model(parts, tmp_path):
    released = write(tmp_path / "afine.pth", parts)
    folder = tmp_path / "stages"
    folder.mkdir()
    for part, name in STAGE_FILES.items():
        # CLIP's file is the bare state dictionary.
        write(folder / name, parts[part] if part == "finetuned_clip" else {"params": parts[part]})
    expected = from_official(parts)
    for path in (released, folder):
        converted = from_official(read_official(path))
        same(converted.model.state_dict(), expected.model.state_dict())
        assert converted.numbers == expected.numbers


def test_the_round_trip_is_bit_equal(parts):
    converted = from_official(parts)
    again = to_official(converted.model)
    assert set(again) == set(parts)
    for part, state in parts.items():
        kept = {key: tensor.float() for key, tensor in state.items() if f"{part}.{key}" not in converted.ignored}
        same(again[part], kept)
        assert all(again[part][key].shape == kept[key].shape for key in kept)


def test_text_tower_and_projection_are_ignored_and_listed(parts):
    ignored = from_official(parts).ignored
    expected = {key for key in parts["finetuned_clip"] if not key.startswith("visual.")} | {"visual.proj"}
    assert {key.removeprefix("finetuned_clip.") for key in ignored} == expected and len(expected) == 19
    # The text side's table has the same last name as the visual one.
    assert "finetuned_clip.positional_embedding" in ignored


def test_scalars_without_a_dimension_arrive_and_are_reported(parts):
    parts["adapter"]["k"] = torch.tensor(3.25)
    parts["natural_scale"] = {"yita3": torch.tensor(-1.5), "yita4": torch.tensor([[7.0]])}
    converted = from_official(parts)
    assert converted.numbers["adapter.k"] == converted.model.adapter.k.item() == 3.25
    assert converted.numbers["adapter.k_positive"] == pytest.approx(3.2880, abs=1e-4)
    assert converted.numbers["naturalness_map.centre"] == -1.5 and converted.numbers["naturalness_map.width"] == 7
    assert converted.model.adapter.k.shape == (1,)


def test_pixel_statistics_come_from_the_checkpoint(parts):
    for part in ("natural", "fidelity"):
        parts[part]["mean"] = torch.tensor([0.5, 0.25, 0.125]).reshape(1, 3, 1, 1)
    assert from_official(parts).model.config.image_mean == [0.5, 0.25, 0.125]
    parts["fidelity"]["mean"] = parts["fidelity"]["mean"] * 2
    with pytest.raises(DataError, match="in the other head"):
        from_official(parts)


def test_a_converted_folder_loads_like_any_model(parts, tmp_path, golden_pictures):
    converted = convert_checkpoint(write(tmp_path / "afine.pth", parts), tmp_path / "out")
    again = AFineModel.from_pretrained(tmp_path / "out")
    same(again.state_dict(), converted.model.state_dict())
    assert not any("text" in name for name in again.state_dict())
    with pytest.raises(UsageError, match="holds a model already"):
        convert_checkpoint(tmp_path / "afine.pth", tmp_path / "out")


def test_full_size_has_the_152_visual_keys_of_clip():
    assert len(vision_names(12)) + 1 == 152  # and the projection, which the model has no place for
    with torch.device("meta"):
        model = AFineModel(AFineConfig())
        state = to_official(model)
    assert state["finetuned_clip"]["visual.transformer.resblocks.11.attn.in_proj_weight"].shape == (2304, 768)
    assert state["fidelity"]["alpha"].shape == (1, 1, 9219) and state["adapter"]["k"].shape == ()


# --- what is wrong is said -------------------------------------------------------------------------------------------


def test_every_problem_is_named_at_once(parts):
    del parts["natural"]["proj_head.2.bias"]
    parts["adapter"]["kk"] = torch.zeros(())
    parts["fidelity"]["alpha"] = torch.zeros(1, 1, 7)
    parts["fidelity"]["beta"][0, 0, 0] = torch.nan
    del parts["natural_scale"]
    parts["extra"] = {}
    parts["finetuned_clip"]["visual.attnpool.weight"] = torch.zeros(3)
    with pytest.raises(DataError) as caught:
        from_official(parts)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert "natural: proj_head.2.bias is missing" in lines
    assert "adapter: kk is unexpected, no weight of the model has this name" in lines
    assert "fidelity: alpha has the shape (1, 1, 7), (259,) is needed" in lines
    assert "fidelity: beta holds values that are not finite" in lines
    assert "natural_scale: the whole part is missing" in lines
    assert "extra: no part of A-FINE has this name" in lines
    assert "finetuned_clip: visual.attnpool.weight is unexpected, no weight of the model has this name" in lines


@pytest.mark.parametrize("part", STAGE_FILES)
def test_every_part_is_needed(parts, part):
    del parts[part]
    with pytest.raises(DataError, match=f"{part}: the whole part is missing"):
        from_official(parts)


def test_a_first_stage_can_be_gone_on_with(parts, tmp_path):
    some = {part: parts[part] for part in ("finetuned_clip", "natural")}
    converted = from_official(some, allow_missing=True)
    assert converted.model.config.untrained == ["fidelity_head", "naturalness_map", "fidelity_map", "adapter"]
    assert converted.model.adapter.k.item() == 5 and converted.model.naturalness_map.centre.item() > 4.9
    converted.model.save_pretrained(tmp_path)
    assert AFineModel.from_pretrained(tmp_path).config.untrained == converted.model.config.untrained
    with pytest.raises(DataError, match="finetuned_clip"):
        from_official({"natural": parts["natural"]}, allow_missing=True)


def test_a_tower_that_is_no_clip_is_refused(parts):
    parts["finetuned_clip"]["visual.positional_embedding"] = torch.zeros(12, 128)  # 11 patches are no square
    with pytest.raises(DataError, match="no CLIP ViT"):
        from_official(parts)
    del parts["finetuned_clip"]["visual.conv1.weight"]
    with pytest.raises(DataError, match=r"visual\.conv1\.weight missing"):
        from_official(parts)


class Run:
    def __reduce__(self):
        return print, ("this would have run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [(Run(), "not a checkpoint"), ([1, 2], "holds a list"), ({}, "empty dictionary"), ({"natural": 3}, "an? int")],
)
def test_files_that_are_no_checkpoint_are_refused(tmp_path, capsys, content, message):
    path = tmp_path / "afine.pth"
    if isinstance(content, Run):
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        write(path, content)
    with pytest.raises(DataError, match=message):
        read_official(path)
    assert "this would have run" not in capsys.readouterr().out


def test_missing_files_and_folders_say_what_to_do(tmp_path):
    with pytest.raises(MissingRequirementError, match="no such file"):
        read_official(tmp_path / "afine.pth")
    with pytest.raises(MissingRequirementError, match=r"clip_model\.pth"):
        read_official(tmp_path)
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04cut")
    with pytest.raises(DataError, match="not a checkpoint"):
        read_official(tmp_path / "cut.pth")


# --- the start of training -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stock():
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    text |= {"vocab_size": 20, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}
    return CLIPModel(CLIPConfig(vision_config=VISION, text_config=text, projection_dim=8))


def test_training_starts_from_any_stock_clip(stock, tmp_path):
    stock.save_pretrained(tmp_path / "whole")
    CLIPVisionModel(stock.config.vision_config).save_pretrained(tmp_path / "vision")
    names, own = vision_names(2), stock.vision_model.state_dict()
    state = {f"visual.{key}": to_openai(key, [own[name] for name in ours]) for key, ours in names.items()}
    state |= {"visual.proj": torch.zeros(64, 8), "logit_scale": torch.zeros(()), "ln_final.weight": torch.zeros(3)}
    write(tmp_path / "openai.pt", {"state_dict": {f"module.{key}": tensor.half() for key, tensor in state.items()}})
    for place in ("whole", "openai.pt"):
        model = AFineModel.from_clip(tmp_path / place, projection_size=8)
        expected = own if place == "whole" else {name: tensor.half().float() for name, tensor in own.items()}
        same(model.vision.state_dict(), expected)
        assert model.config.projection_size == 8 and model.config.vision_config.patch_size == 16
        assert not model.vision.post_layernorm.weight.requires_grad
    assert AFineModel.from_clip(tmp_path / "vision").config.channels == (3, 64, 64)


def test_a_stock_clip_that_lacks_weights_is_refused(stock, tmp_path):
    from safetensors.torch import load_file, save_file

    stock.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    (name,) = [key for key in state if key.endswith("vision_model.encoder.layers.0.mlp.fc1.weight")]
    del state[name]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match="fc1"):
        clip_tower(tmp_path)
    with pytest.raises(MissingRequirementError, match="no CLIP to be had"):
        clip_tower(tmp_path / "nowhere")
    write(tmp_path / "other.pt", {"weight": torch.zeros(3)})
    with pytest.raises(DataError, match=r"visual\.conv1\.weight"):
        clip_tower(tmp_path / "other.pt")
