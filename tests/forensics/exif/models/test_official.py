"""Conversion of released checkpoints: exact layouts, round trips on synthetic ones, clear failures."""

from __future__ import annotations

import json
import pickle  # noqa: TID251 - writes the kind of file that has to be refused
from pathlib import Path

import pytest
import torch

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.forensics.exif.blades import BladesModel
from thurl.forensics.exif.camera import photographs
from thurl.forensics.exif.config import BladesConfig, ExifEncoderConfig, ExifOrdinalConfig, FaceHeadConfig
from thurl.forensics.exif.encoder import ExifEncoder, encoder_fingerprint
from thurl.forensics.exif.head import FaceHead
from thurl.forensics.exif.official import (
    DETECTOR_FILE,
    convert_checkpoint,
    from_official,
    layout_of,
    to_official,
)
from thurl.forensics.exif.ordinal import ExifOrdinalModel
from thurl.forensics.exif.scoring import FaceDetector
from thurl.forensics.processing import FaceImageProcessor
from thurl.training.released_files import read_model_tensors


GOLDEN = Path(__file__).resolve().parents[3] / "golden"
OC, BC, ICASSP = json.loads((GOLDEN / "exif_checkpoint_keys.json").read_text("utf-8")).values()
BC = {**{f"model.{key}": shape for key, shape in OC.items()}, **BC}
LEFTOVERS = {
    f"model.{name}"
    for name in ("positional_embedding", "token_embedding.weight", "ln_final.weight", "ln_final.bias", "logit_scale")
}


def shapes(state):
    return {key: list(tensor.shape) for key, tensor in state.items()}


def random_state(keys, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.zeros((), dtype=torch.int64)
        if key.endswith("num_batches_tracked")
        else torch.rand(list(shape), generator=generator) + 0.1
        for key, shape in keys.items()
    }


def write(path, content):
    torch.save(content, path)  # noqa: TID251 - the released files are pickles
    return path


# --- exact layouts at the released size, without their memory --------------------------------------------------------


def test_a_full_size_blades_model_has_the_472_official_keys():
    with torch.device("meta"):
        model, head = BladesModel(BladesConfig()), FaceHead(FaceHeadConfig())
        assert len(OC) == 472 and shapes(to_official(model)) == OC
        assert len(BC) == 476 and shapes(to_official(model, head)) == BC


def test_a_full_size_five_headed_model_has_the_official_keys_but_the_unused_text_tower():
    with torch.device("meta"):
        model = ExifOrdinalModel(ExifOrdinalConfig())
    assert len(ICASSP) == 335
    assert shapes(to_official(model)) == {key: shape for key, shape in ICASSP.items() if key not in LEFTOVERS}


@pytest.mark.parametrize(
    ("keys", "layout"), [(OC, "blades_oc"), (BC, "blades_bc"), (ICASSP, "icassp")], ids=["oc", "bc", "icassp"]
)
def test_layouts_are_told_apart(keys, layout):
    assert layout_of(keys) == layout
    only_visual = [key for key in keys if ".visual." in key]
    assert layout_of(only_visual) == ("blades_bc" if layout == "blades_bc" else "visual")
    with pytest.raises(DataError, match=r"model\.visual"):
        layout_of({"conv1.weight": 0})


# --- round trips -----------------------------------------------------------------------------------------------------


def assert_same(state, again):
    assert set(state) == set(again)
    for key, tensor in state.items():
        assert torch.equal(tensor, again[key]), key


def test_blades_round_trip_is_bit_equal_and_every_weight_arrives(tmp_path, tiny_blades):
    template = tiny_blades()
    state = random_state(shapes(to_official(template)))
    path = write(tmp_path / "OC.pth", {"epoch": 3, "model": state, "optimizer": {"state": {}}, "lr_sched": {"a": 1}})
    converted = from_official(read_model_tensors(path), config=template.config)
    assert converted.layout == "blades_oc" and converted.missing == converted.unused == []
    assert converted.model.config.untrained == []
    assert_same(state, to_official(converted.model))
    # A converted model is an ordinary one.
    converted.model.save_pretrained(tmp_path / "model")
    assert_same(state, to_official(BladesModel.from_pretrained(tmp_path / "model")))


def test_binary_round_trip_is_bit_equal(tmp_path, tiny_blades):
    template = tiny_blades()
    keys = shapes(to_official(template, FaceHead(FaceHeadConfig(feature_size=24, hidden_size=48))))
    state = random_state(keys)
    converted = from_official(read_model_tensors(write(tmp_path / "BC.pth", {"model": state})), config=template.config)
    assert converted.layout == "blades_bc" and converted.missing == converted.unused == []
    assert_same(state, to_official(converted.model, converted.head))


def test_five_headed_round_trip_is_bit_equal_and_the_heads_are_put_right(tiny_ordinal):
    template = tiny_ordinal()
    state = random_state(shapes(to_official(template)))
    leftovers = {key: torch.zeros(2) for key in LEFTOVERS}
    converted = from_official({**state, **leftovers}, config=template.config)
    assert converted.layout == "icassp" and set(converted.unused) == LEFTOVERS and converted.missing == []
    assert_same(state, to_official(converted.model))
    heads = converted.model.heads
    assert torch.equal(heads["focal_length"].weight, state["fc_et.weight"])
    assert torch.equal(heads["exposure_time"].weight, -state["fc_fl.weight"])
    assert torch.equal(heads["exposure_time"].bias, -state["fc_fl.bias"])
    for official, task in (("fc_iso", "iso"), ("fc_av", "aperture"), ("fc_face", "coarse_face")):
        assert torch.equal(heads[task].weight, state[f"{official}.weight"])


def test_the_start_of_both_methods_gives_an_encoder(tiny_blades):
    config = ExifEncoderConfig(depths=(1, 1), hidden_sizes=(8, 16), stem_channels=8, feature_size=24)
    state = random_state(shapes(to_official(ExifEncoder(config))))
    other = {"model.transformer.embeddings.weight": torch.zeros(2)}
    converted = from_official({**state, **other}, config=config)
    assert converted.layout == "visual" and converted.unused == list(other)
    assert_same(state, to_official(converted.model))
    whole = tiny_blades()
    whole.visual.load_state_dict(converted.model.state_dict())
    assert encoder_fingerprint(whole.visual) == encoder_fingerprint(converted.model)


def test_the_encoder_computes_the_same_before_and_after(tiny_blades, random_batch):
    model = tiny_blades(seed=5).eval()
    again = from_official({f"module.{key}": value for key, value in to_official(model).items()}, config=model.config)
    pictures, _ = random_batch()
    with torch.no_grad():
        assert torch.equal(model(pictures).scores, again.model(pictures).scores)


# --- what is missing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["blades_oc", "blades_bc", "icassp", "visual"])
def test_a_missing_visual_key_is_an_error_that_names_it(layout, tiny_blades, tiny_ordinal):
    if layout == "icassp":
        template = tiny_ordinal()
        config, state = template.config, to_official(template)
    else:
        template = tiny_blades()
        config = template.config
        head = FaceHead(FaceHeadConfig(feature_size=24, hidden_size=48)) if layout == "blades_bc" else None
        state = to_official(template, head)
        if layout == "visual":
            config, state = template.visual.config, to_official(template.visual)
    key = next(key for key in state if key.endswith("visual.layer2.0.bn1.running_var"))
    from_official(state, layout, config=config)  # whole, it loads
    with pytest.raises(DataError, match=rf"1 of \d+ keys of the visual tower are missing \({key}\)"):
        from_official({name: tensor for name, tensor in state.items() if name != key}, layout, config=config)


def test_missing_text_and_heads_are_named_in_the_config_and_saved(tmp_path, tiny_blades, tiny_ordinal):
    blades = tiny_blades()
    state = {key: value for key, value in to_official(blades).items() if key != "model.ln_final.bias"}
    converted = from_official(state, config=BladesConfig(**blades.config.to_dict()))
    assert converted.missing == ["model.ln_final.bias"] and converted.model.config.untrained == ["text"]
    converted.model.save_pretrained(tmp_path)
    assert BladesModel.from_pretrained(tmp_path).config.untrained == ["text"]
    ordinal = tiny_ordinal()
    state = {key: value for key, value in to_official(ordinal).items() if not key.startswith("fc_et")}
    assert from_official(state, config=ordinal.config).model.config.untrained == ["focal_length"]


def test_shapes_values_and_heads_that_do_not_fit_are_all_named(tiny_blades):
    model = tiny_blades()
    state = to_official(model, FaceHead(FaceHeadConfig(feature_size=24, hidden_size=48)))
    state["model.model.visual.fc.bias"] = torch.zeros(25)
    state["model.model.text_fc.bias"] = torch.full((24,), float("nan"))
    del state["fc2.bias"]
    with pytest.raises(DataError) as error:
        from_official(state, config=model.config)
    for part in ("visual.fc.bias has the shape (25,)", "text_fc.bias holds values", "binary head lacks fc2.bias"):
        assert part in str(error.value)


def test_a_shallower_checkpoint_is_not_taken_for_a_whole_one(tiny_ordinal):
    config = ExifOrdinalConfig(encoder_config={**tiny_ordinal().config.encoder_config.to_dict(), "depths": (1, 2)})
    with pytest.raises(DataError, match="visual tower are missing"):
        from_official(to_official(tiny_ordinal()), config=config)


def test_wrong_uses(tiny_ordinal):
    with pytest.raises(UsageError, match="none of blades_oc"):
        from_official({"model.visual.x": torch.zeros(1)}, "oc")
    with pytest.raises(UsageError, match="BC layout"):
        to_official(tiny_ordinal(), FaceHead(FaceHeadConfig()))


# --- files -----------------------------------------------------------------------------------------------------------


class Harmful:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_file_with_code_is_refused_and_nothing_runs(tmp_path, capsys):
    path = write(tmp_path / "OC.pth", {"model": {"a": torch.zeros(1)}, "epoch": Harmful()})
    with pytest.raises(DataError, match="not a checkpoint of tensors"):
        read_model_tensors(path)
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"model": Harmful()}, protocol=2))  # noqa: TID251
    with pytest.raises(DataError, match="not a checkpoint of tensors"):
        read_model_tensors(tmp_path / "old.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"not a pickle", {"model": {}}, [1, 2]], ids=repr)
def test_files_that_are_no_checkpoints(tmp_path, content):
    path = tmp_path / "x.pth"
    path.write_bytes(content) if isinstance(content, bytes) else write(path, content)
    with pytest.raises(DataError):
        read_model_tensors(path)
    with pytest.raises(MissingRequirementError, match="no such file"):
        read_model_tensors(tmp_path / "y.pth")


def test_a_truncated_file_is_an_error(tmp_path, tiny_ordinal):
    path = write(tmp_path / "x.pth", {"model": to_official(tiny_ordinal())})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="download it again"):
        read_model_tensors(path)


def test_weights_without_the_outer_mapping_are_read_too(tmp_path, tiny_ordinal):
    state = to_official(tiny_ordinal())
    assert_same(state, read_model_tensors(write(tmp_path / "x.pth", state)))


# --- whole conversions -----------------------------------------------------------------------------------------------


def test_a_converted_binary_detector_judges_pictures_as_the_official_one(tmp_path, tiny_blades):
    template = tiny_blades(seed=2)
    torch.manual_seed(4)
    head = FaceHead(FaceHeadConfig(feature_size=24, hidden_size=48))
    write(tmp_path / "BC.pth", {"model": to_official(template, head)})
    processor = FaceImageProcessor(size=24)
    convert_checkpoint(tmp_path / "BC.pth", tmp_path / "out", config=template.config, processor=processor)
    judge = FaceDetector.from_pretrained(tmp_path / "out", tmp_path / "out" / DETECTOR_FILE)
    pictures = list(photographs(6, seed=3)[0])
    with torch.no_grad():
        features = template.eval().image_features(processor(pictures)["pixel_values"])
        expected = head.eval()(features).logits.softmax(dim=1)[:, 1]
    for verdict, probability in zip(judge.score(pictures), expected.tolist(), strict=True):
        assert verdict.row()["probability_generated"] == pytest.approx(probability, abs=1e-5)
        assert verdict.decision == ("generated" if probability > 0.5 else "photographic")
    with pytest.raises(UsageError, match="holds a model already"):
        convert_checkpoint(tmp_path / "BC.pth", tmp_path / "out", config=template.config)


def test_a_converted_encoder_has_the_released_transform(tmp_path, tiny_ordinal):
    model = tiny_ordinal(seed=2)
    write(tmp_path / "x.pth", {"model": to_official(model)})
    converted = convert_checkpoint(tmp_path / "x.pth", tmp_path / "out", config=model.config)
    assert converted.head is None and not (tmp_path / "out" / DETECTOR_FILE).exists()
    processor = FaceImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.size, processor.antialias, processor.upright) == (224, False, False)
    again = ExifOrdinalModel.from_pretrained(tmp_path / "out")
    assert encoder_fingerprint(again.visual) == encoder_fingerprint(model.visual)
    assert torch.equal(again.heads["exposure_time"].weight, model.heads["exposure_time"].weight)
