"""Verdicts on pictures: same whatever the batch, bad files marked, rules, reports."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from thurl.errors import DataError, UsageError
from thurl.forensics.exif.camera import photographs
from thurl.forensics.exif.detector import save_detector
from thurl.forensics.exif.features import FeatureTower, extract_features
from thurl.forensics.exif.ordinal import ExifOrdinalConfig, ExifOrdinalModel
from thurl.forensics.exif.scoring import COLUMNS, FaceDetector, Rule, csv_text, jsonl_text, write_verdicts
from thurl.forensics.processing import FaceImageProcessor


@pytest.fixture(params=["oc", "bc"])
def judge(request, tower, one_class, binary):
    return FaceDetector(tower, one_class if request.param == "oc" else binary)


@pytest.fixture(scope="module")
def pictures():
    return list(photographs(40, seed=9)[0])


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 40])
def test_scores_do_not_depend_on_the_batch(judge, pictures, size):
    whole = judge.score(pictures)
    tower = FeatureTower(judge.tower.encoder, judge.tower.processor, batch_size=size)
    again = FaceDetector(tower, judge.detector).score(pictures)
    np.testing.assert_allclose([v.score for v in again], [v.score for v in whole], rtol=1e-4, atol=1e-4)
    backwards = judge.score(pictures[::-1])[::-1]
    np.testing.assert_allclose([v.score for v in backwards], [v.score for v in whole], rtol=1e-4, atol=1e-4)


def test_scoring_twice_and_with_threads_is_the_same_bit_for_bit(judge, pictures):
    first, second = judge.score(pictures), judge.score(pictures)
    assert first == second
    threaded = FeatureTower(judge.tower.encoder, judge.tower.processor, batch_size=16, workers=3)
    assert FaceDetector(threaded, judge.detector).score(pictures) == first


def test_a_training_mode_encoder_is_put_into_evaluation_mode(encoder, processor, one_class, pictures):
    expected = FaceDetector(FeatureTower(encoder, processor), one_class).score(pictures)
    encoder.train()
    buffers = [buffer.clone() for buffer in encoder.buffers()]
    found = FaceDetector(FeatureTower(encoder, processor), one_class).score(pictures)
    assert found == expected
    assert all(torch.equal(old, new) for old, new in zip(buffers, encoder.buffers(), strict=True))


def test_paths_bytes_and_pictures_are_the_same(judge, pictures, tmp_path):
    image = Image.fromarray(pictures[0])
    image.save(tmp_path / "a.png")
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), image, pictures[0]]
    verdicts = judge.score(forms)
    # Rows of one product may be rounded differently by their place in it.
    assert [verdict.score for verdict in verdicts] == pytest.approx([verdicts[0].score] * len(forms), rel=1e-12)
    assert [v.image for v in verdicts] == [str(tmp_path / "a.png")] * 2 + ["picture 2", "picture 3", "picture 4"]
    assert judge.score(image)[0].score == pytest.approx(verdicts[0].score, rel=1e-4)


def test_metadata_changes_nothing(judge, pictures, tmp_path):
    image = Image.fromarray(pictures[0])
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Canon", 6
    image.save(tmp_path / "with.png", exif=exif)
    image.save(tmp_path / "without.png")
    first, second = judge.score([tmp_path / "with.png", tmp_path / "without.png"])
    assert first.score == second.score


def test_a_box_is_the_crop_that_training_uses(judge, pictures):
    large = np.zeros((120, 160, 3), np.uint8)
    large[30:70, 60:100] = pictures[0]
    # A box of 40 / 1.3 pixels in the middle of the pasted picture.
    box = (64.6, 34.6, 95.4, 65.4)
    cropped = judge.tower.processor.cut(large, box)
    verdict, whole, direct = judge.score([large, large, cropped], boxes=[box, None, None])
    assert verdict.score == pytest.approx(direct.score, rel=1e-4) and verdict.score != whole.score
    with pytest.raises(UsageError, match="1 boxes for 2 pictures"):
        judge.score([large, large], boxes=[box])


def test_bad_files_are_marked_and_the_others_scored(judge, folder):
    paths = sorted(folder.iterdir())
    verdicts = judge.score(paths)
    assert [verdict.ok for verdict in verdicts] == [True, True, True, True, False, True, False]
    assert [verdict.image for verdict in verdicts] == [str(path) for path in paths]
    for verdict, path in zip(verdicts, paths, strict=True):
        if not verdict.ok:
            assert path.name in verdict.error and math.isnan(verdict.score) and verdict.decision == ""
            assert math.isnan(verdict.p_value)
    good = [path for path, verdict in zip(paths, verdicts, strict=True) if verdict.ok]
    np.testing.assert_allclose([v.score for v in judge.score(good)], [v.score for v in verdicts if v.ok], rtol=1e-4)
    assert not any(verdict.ok for verdict in judge.score([paths[4], paths[6]]))
    assert judge.score([]) == []


# --- rules -----------------------------------------------------------------------------------------------------------


def test_decisions_follow_the_rule(judge, pictures):
    calibration = judge.detector.calibration()
    for rule, rate in ((None, 0.05), (Rule(rate=0.1), 0.1), (Rule(rate=0.1, two_sided=True), 0.1)):
        verdicts = judge.score(pictures, rule)
        two_sided = bool(rule and rule.two_sided)
        scores = [verdict.score for verdict in verdicts]
        expected = calibration.generated(scores, rate, two_sided=two_sided)
        assert [verdict.decision == "generated" for verdict in verdicts] == expected.tolist()
        assert {verdict.fpr_target for verdict in verdicts} == {rate}
        assert {verdict.threshold for verdict in verdicts} == {calibration.threshold(rate, two_sided=two_sided)}
        np.testing.assert_array_equal(
            [verdict.p_value for verdict in verdicts], calibration.p_values(scores, two_sided=two_sided)
        )
        assert ([verdict.p_value <= rate for verdict in verdicts] == expected).all()


def test_false_alarms_are_as_many_as_asked_for(tower, one_class):
    """Ten calibrations with 80 photographs each; the other 720 of each are judged."""
    pictures = list(photographs(800, seed=77)[0])
    scores = np.array([verdict.score for verdict in FaceDetector(tower, one_class).score(pictures)])
    realised = []
    for block in np.arange(800).reshape(10, 80):
        calibration = one_class.calibrated(scores[block], [0.1], domain="block").calibration("block")
        realised.append(calibration.generated(np.delete(scores, block), 0.1).mean())
    error = np.std(realised, ddof=1) / 10**0.5
    assert abs(np.mean(realised) - 8 / 81) < 3 * error < 0.05


def test_official_thresholds(tower, one_class, binary, pictures):
    verdicts = FaceDetector(tower, one_class).score(pictures, Rule(official=True))
    assert {verdict.threshold for verdict in verdicts} == {one_class.in_sample[0.05]}
    assert all((v.score < v.threshold) == (v.decision == "generated") for v in verdicts)
    for verdict in FaceDetector(tower, binary).score(pictures, Rule(official=True)):
        row = verdict.row()
        assert (row["probability_generated"] > 0.5) == (verdict.decision == "generated")
        assert row["threshold"] == 0 and row["fpr_target"] is None
    for rule, match in (
        (Rule(official=True, rate=0.2), "no official threshold for the rate 0.2"),
        (Rule(official=True, two_sided=True), "one side"),
    ):
        with pytest.raises(UsageError, match=match):
            FaceDetector(tower, one_class).score(pictures, rule)


def test_without_calibration(tower, one_class, binary, pictures):
    bare = FaceDetector(tower, dataclasses.replace(one_class, calibrations={}))
    with pytest.raises(UsageError, match="not calibrated"):
        bare.iterate(pictures)  # at once, not at the first picture
    with pytest.raises(UsageError, match="not calibrated"):
        bare.drift([])
    head = FaceDetector(tower, dataclasses.replace(binary, calibrations={}))
    verdict = head.score(pictures[:1])[0]
    assert verdict.threshold == 0 and math.isnan(verdict.p_value) and verdict.decision
    with pytest.raises(UsageError, match="not calibrated"):
        head.score(pictures, Rule(rate=0.05))


def test_too_small_a_rate_is_refused_before_anything_is_read(judge):
    with pytest.raises(DataError, match="too few for a false-alarm rate of 0.001"):
        judge.iterate(["nowhere.png"], Rule(rate=0.001))


def test_drift_of_other_pictures_is_told(tower, one_class, caplog):
    judge = FaceDetector(tower, one_class)
    same = judge.drift(judge.score(list(photographs(150, seed=33)[0])))
    assert not same.drifted and not caplog.records
    other = judge.drift(judge.score(list(photographs(150, seed=34)[0] // 4)))
    assert other.drifted and "calibrate again" in caplog.text


# --- loading ---------------------------------------------------------------------------------------------------------


def test_from_pretrained_scores_the_same(tmp_path, pictures):
    torch.manual_seed(3)
    small = {"depths": (1,), "hidden_sizes": (8,), "stem_channels": 4, "feature_size": 5, "block": "basic"}
    model = ExifOrdinalModel(ExifOrdinalConfig(encoder_config=small))
    processor = FaceImageProcessor(size=20, antialias=True)
    tower = FeatureTower(model, processor)
    from thurl.forensics.exif.fitting import fit_one_class

    table = extract_features(tower, pictures)
    detector = fit_one_class(table, unit_length=model.unit_length, components=1)
    detector = detector.calibrated(detector.scores(table.features), [0.1])
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    save_detector(detector, tmp_path / "d.safetensors")
    loaded = FaceDetector.from_pretrained(tmp_path / "model", tmp_path / "d.safetensors")
    assert loaded.score(pictures) == FaceDetector(tower, detector).score(pictures)


def test_another_transform_or_encoder_is_refused(tower, one_class):
    other = FeatureTower(tower.encoder, FaceImageProcessor(size=24, antialias=True))
    with pytest.raises(DataError, match="antialias is True here and was False"):
        FaceDetector(other, one_class)
    with pytest.raises(DataError, match="made with the encoder"):
        FaceDetector(tower, dataclasses.replace(one_class, encoder="0" * 64))
    with pytest.raises(UsageError, match="no face encoder"):
        FeatureTower(torch.nn.Linear(1, 1), None)
    with pytest.raises(UsageError, match="batch_size=0"):
        FeatureTower(tower.encoder, tower.processor, batch_size=0)


def test_an_encoder_that_gives_no_numbers_marks_every_picture(processor, pictures):
    torch.manual_seed(0)
    small = {"depths": (1,), "hidden_sizes": (8,), "stem_channels": 4, "feature_size": 5, "block": "basic"}
    model = ExifOrdinalModel(ExifOrdinalConfig(encoder_config=small))
    model.visual.fc.bias.data[0] = torch.inf
    table = extract_features(FeatureTower(model, processor), pictures[:3])
    assert table.errors == ["the encoder's features are not finite"] * 3 and not len(table.usable)


# --- reports ---------------------------------------------------------------------------------------------------------


def test_reports_hold_every_verdict_exactly(judge, folder, tmp_path):
    verdicts = judge.score(sorted(folder.iterdir()))
    for ending in ("csv", "jsonl", "json"):
        write_verdicts(verdicts, tmp_path / f"report.{ending}")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text())))
    lines = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert lines == json.loads((tmp_path / "report.json").read_text()) == [verdict.row() for verdict in verdicts]
    assert len(rows) == 7 and tuple(rows[0]) == COLUMNS
    score = "log_likelihood" if judge.detector.kind == "oc" else "probability_generated"
    for row, verdict in zip(rows, verdicts, strict=True):
        expected = verdict.row()
        assert row["decision"] == verdict.decision and row["error"] == verdict.error
        assert row[score] == ("" if expected[score] is None else repr(expected[score]))
    with pytest.raises(UsageError, match="end in .csv"):
        write_verdicts(verdicts, tmp_path / "report.xlsx")


def test_names_that_cannot_be_written_are_escaped(judge, pictures):
    odd = dataclasses.replace(judge.score(pictures[:1])[0], image='a\udcff,"b".png')
    (row,) = csv.DictReader(io.StringIO(csv_text([odd])))
    assert row["image"] == 'a\\udcff,"b".png'
    assert json.loads(jsonl_text([odd]))["image"] == 'a\\udcff,"b".png'
    csv_text([odd]).encode()


def test_probability_of_extreme_scores():
    from thurl.forensics.exif.scoring import Verdict

    for log_odds, expected in ((1000.0, 0.0), (-1000.0, 1.0), (0.0, 0.5)):
        assert Verdict("x", "photographic", log_odds, "bc", 0.5, 0.0, 0.05).row()["probability_generated"] == expected
