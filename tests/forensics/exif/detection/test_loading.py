"""Models from folders: the right class, whole weights, quietly."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from thurl.errors import DataError, MissingRequirementError
from thurl.forensics.exif.config import ExifOrdinalConfig
from thurl.forensics.exif.encoder import ExifEncoder, encoder_fingerprint
from thurl.forensics.exif.loading import load_model, load_processor, load_tower, model_kind, unit_length_of
from thurl.forensics.exif.ordinal import ExifOrdinalModel


@pytest.fixture
def folder(tmp_path, encoder, processor):
    torch.manual_seed(3)
    model = ExifOrdinalModel(ExifOrdinalConfig(encoder_config=encoder.config))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return tmp_path


def test_the_tower_of_a_model_is_the_model_s_own(folder, processor, capfd):
    capfd.readouterr()
    model = load_model(folder)
    tower = load_tower(folder, batch_size=3)
    assert isinstance(model, ExifOrdinalModel) and isinstance(tower.encoder, ExifEncoder) and not model.training
    assert tower.fingerprint == encoder_fingerprint(model.visual) and tower.batch_size == 3
    assert (
        tower.transform
        == json.loads(json.dumps(processor.to_dict()))
        == json.loads(json.dumps(load_processor(folder).to_dict()))
    )
    assert capfd.readouterr().err == ""  # the unused heads are no news
    assert model_kind(folder) is ExifOrdinalModel
    assert unit_length_of(ExifOrdinalModel) is False and unit_length_of(ExifEncoder) is None


def test_a_weight_that_is_missing_is_no_random_number(folder):
    weights = folder / "model.safetensors"
    state = load_file(weights)
    del state["visual.conv1.weight"]
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"1 weights are missing \(.*conv1.weight"):
        load_tower(folder)


def test_what_is_not_there_is_named(folder, tmp_path):
    with pytest.raises(MissingRequirementError, match="config.json"):
        load_tower(tmp_path / "nowhere")
    (folder / "preprocessor_config.json").write_text('{"size": -1}')
    with pytest.raises(DataError, match="size is -1"):
        load_tower(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(MissingRequirementError, match="preprocessor_config.json"):
        load_tower(folder)
    (folder / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(DataError, match="'clip'"):
        load_model(folder)
