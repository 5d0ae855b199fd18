"""Readings of the pretext tasks: probabilities under the right names, ranks, refusal of random parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from thurl.errors import DataError, UsageError
from thurl.forensics.exif.blades import BladesModel
from thurl.forensics.exif.camera import photographs
from thurl.forensics.exif.config import BladesConfig, ExifOrdinalConfig
from thurl.forensics.exif.explanations import explain, explain_scores, reference_scores
from thurl.forensics.exif.ordinal import ExifOrdinalModel
from thurl.forensics.exif.tasks import OFFICIAL_COLUMNS, ORDINAL_TASKS, class_names, columns_of


ENCODER = {"depths": (1,), "hidden_sizes": (8,), "block": "basic", "stem_channels": 4, "feature_size": 6}
TEXT = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "projection_dim": 8}  # fmt: skip


@pytest.fixture(scope="module")
def blades():
    torch.manual_seed(0)
    return BladesModel(BladesConfig(encoder_config=ENCODER, text_config=TEXT)).eval()


@pytest.fixture(scope="module")
def ordinal():
    torch.manual_seed(0)
    return ExifOrdinalModel(ExifOrdinalConfig(encoder_config=ENCODER)).eval()


@pytest.fixture(scope="module")
def pictures():
    return list(photographs(9, seed=8)[0])


@pytest.mark.parametrize(
    ("task", "name"),
    [("make", "Canon"), ("metering_mode", "evaluative"), ("iso", "high"), ("exposure_program", "landscape mode")],
)
def test_the_name_of_the_largest_logit_gets_the_largest_probability(blades, task, name):
    logits = torch.zeros(1, 50)
    logits[0, columns_of()[task].start + class_names(task).index(name)] = 9.0
    found = explain_scores(blades, logits, ["x"])[0].settings
    assert found[task][name] == pytest.approx(math.exp(9) / (math.exp(9) + OFFICIAL_COLUMNS[task] - 1))
    for other, shares in found.items():
        assert sum(shares.values()) == pytest.approx(1)
        if other != task:  # softmax within a task only
            assert set(np.round(list(shares.values()), 12)) == {round(1 / len(shares), 12)}


def test_faces_regions_and_levels(blades):
    logits = torch.zeros(2, 50)
    logits[0, 46], logits[0, 48] = 3.0, 2.0  # manipulated; eye
    logits[1, 9:12] = torch.tensor([0.0, 0.0, 30.0])  # a long lens
    first, second = explain_scores(blades, logits, ["a", "b"])
    assert first.manipulated == pytest.approx(1 / (1 + math.exp(-3)))
    assert first.regions == pytest.approx({"mouth": 0.5, "eye": 1 / (1 + math.exp(-2)), "nose": 0.5})
    assert second.levels["focal_length"] == pytest.approx(3) and first.levels["focal_length"] == pytest.approx(2)


def test_the_readings_are_those_of_the_forward_pass(blades, processor, pictures):
    for batch_size in (4, 32):
        found = explain(blades, processor, pictures, batch_size=batch_size)
        with torch.no_grad():
            logits = blades(processor(pictures)["pixel_values"]).scores
        for row, explanation in zip(logits, found, strict=True):
            expected = row[columns_of()["make"]].softmax(0).tolist()
            assert list(explanation.settings["make"].values()) == pytest.approx(expected, abs=1e-5)
            assert list(explanation.settings["make"]) == list(class_names("make"))


@pytest.mark.parametrize("kind", ["blades", "ordinal"])
def test_ranks_are_shares_of_the_reference_below(kind, blades, ordinal, processor, pictures):
    model = blades if kind == "blades" else ordinal
    reference = reference_scores(model, processor, pictures)
    found = explain(model, processor, pictures, reference=reference)
    for task in ORDINAL_TASKS:
        ranks = sorted(explanation.ranks[task] for explanation in found)
        np.testing.assert_allclose(ranks, (np.arange(9) + 0.5) / 9)
        assert math.isnan(explain(model, processor, pictures[:1])[0].ranks[task])


def test_the_five_headed_model_has_ranks_and_a_face_probability_only(ordinal, processor, pictures):
    found = explain(ordinal, processor, pictures[:2])[0]
    assert found.settings == found.levels == found.regions == {} and 0 < found.manipulated < 1


def test_bad_pictures_keep_their_place(blades, processor, pictures, tmp_path):
    (tmp_path / "x.png").write_text("no")
    mixed = [tmp_path / "x.png", pictures[0], tmp_path / "x.png", pictures[1], tmp_path / "x.png"]
    found = explain(blades, processor, mixed, batch_size=2)
    good = explain(blades, processor, pictures[:2])
    assert [bool(explanation.error) for explanation in found] == [True, False, True, False, True]
    for place, other in ((1, good[0]), (3, good[1])):
        assert found[place].manipulated == pytest.approx(other.manipulated, abs=1e-5)
    assert found[1].image == "picture 1" and "x.png" in found[0].error
    assert explain(blades, processor, []) == []


def test_boxes_choose_what_is_read(blades, processor, pictures):
    large = np.zeros((90, 90, 3), np.uint8)
    large[20:60, 30:70] = pictures[0]
    box = (35.0, 25.0, 65.0, 55.0)
    cut = processor.cut(large, box)
    found, whole = explain(blades, processor, [large, large], boxes=[box, None])
    expected, other = explain(blades, processor, [cut, large])
    assert found.manipulated == pytest.approx(expected.manipulated, abs=1e-5)
    assert whole.manipulated == pytest.approx(other.manipulated, abs=1e-5) != found.manipulated
    torch.testing.assert_close(
        reference_scores(blades, processor, [large], boxes=[box]), reference_scores(blades, processor, [cut])
    )
    with pytest.raises(UsageError, match="1 boxes for 2 pictures"):
        explain(blades, processor, [large, large], boxes=[box])


def test_models_with_other_columns(processor, pictures):
    torch.manual_seed(0)
    config = BladesConfig(encoder_config=ENCODER, text_config=TEXT, columns={"iso": 3, "fine_face": 2})
    found = explain(BladesModel(config), processor, pictures[:1])[0]
    assert set(found.settings) == {"iso"} and set(found.regions) == {"mouth", "eye"}
    assert math.isnan(found.manipulated)


def test_random_parts_are_not_explained_with(processor, pictures):
    for untrained in (["text"], ["iso"]):
        torch.manual_seed(0)
        if untrained == ["text"]:
            model = BladesModel(BladesConfig(encoder_config=ENCODER, text_config=TEXT, untrained=untrained))
        else:
            model = ExifOrdinalModel(ExifOrdinalConfig(encoder_config=ENCODER, untrained=untrained))
        with pytest.raises(DataError, match=f"lacked {untrained[0]}"):
            explain(model, processor, pictures[:1])
    with pytest.raises(UsageError, match="no pretext tasks"):
        explain_scores(torch.nn.Linear(1, 1), torch.zeros(1, 5), ["x"])
