"""Pretext metrics against numbers computed by hand, labels without pixels, and edits without pixels."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from thurl.forensics.exif.blades import BladesModel
from thurl.forensics.exif.camera import write_photographs
from thurl.forensics.exif.config import ExifOrdinalConfig
from thurl.forensics.exif.dataset import CameraFaces, collate_faces
from thurl.forensics.exif.landmarks import with_average_landmarks
from thurl.forensics.exif.manifest import read_manifest, write_manifest
from thurl.forensics.exif.ordinal import ExifOrdinalModel
from thurl.forensics.exif.pretext import PretextEvaluator, metric_names, task_readings
from thurl.forensics.exif.scan import scan_folder
from thurl.forensics.exif.settings import CameraSettings
from thurl.forensics.exif.tasks import OFFICIAL_COLUMNS, class_names
from thurl.forensics.exif.tiny import tiny_blades_config, tiny_encoder_config
from thurl.forensics.processing import FaceImageProcessor


PROCESSOR = FaceImageProcessor(size=24)
ENCODER = tiny_encoder_config(depths=(1,), hidden_sizes=(8,), stem_channels=8, feature_size=6)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("camera")
    write_photographs(folder, 30, seed=5, size=24, missing=0.2)
    write_manifest(folder / "manifest.jsonl", scan_folder(folder, group_by="file").records)
    return with_average_landmarks(read_manifest(folder / "manifest.jsonl"))


def predictor(scores):
    return lambda dataset: {"scores": scores.numpy()}


def model_of(kind):
    torch.manual_seed(0)
    if kind == "ordinal":
        return ExifOrdinalModel(ExifOrdinalConfig(encoder_config=ENCODER)).eval()
    return BladesModel(tiny_blades_config(ENCODER)).eval()


@pytest.mark.parametrize("upright", [False, True])
def test_labels_and_edits_need_no_pixels(records, upright):
    # Some without landmarks, one whose face is outside, one edited beforehand: every way to the warp and around it.
    mixed = [replace(record, landmarks=None) if i % 5 == 0 else record for i, record in enumerate(records)]
    far = tuple((900.0, 900.0) for _ in range(68))
    mixed[1] = replace(mixed[1], landmarks=far)
    mixed[2] = replace(mixed[2], edited={"eye_mirrored": mixed[3].image})
    mixed[4] = replace(mixed[4], box=(4.0, 4.0, 20.0, 20.0), size=None)
    processor = FaceImageProcessor(size=24, upright=upright)
    weights = {"photograph": 1, "mouth_rotated": 1, "eye_mirrored": 1, "nose_rotated": 1, "warp": 1}
    data = CameraFaces(mixed, processor, manipulations=weights, seed=3)
    seen = set()
    for epoch in range(4):
        data.set_epoch(epoch)
        made = [data.face(i)[1] for i in range(len(data))]
        assert [data.edit(i) for i in range(len(data))] == made
        seen |= {(i, name) for i, name in enumerate(made)}
        whole = collate_faces([data[i] for i in range(len(data))])["labels"]
        for task, labels in data.labels().items():
            torch.testing.assert_close(labels, whole[task], equal_nan=True, rtol=0, atol=0)
    assert {(2, "eye_mirrored")} & seen and {name for _, name in seen} == set(weights)


def test_perfect_and_reversed_answers(records):
    data = CameraFaces(records, PROCESSOR, seed=1)
    labels = data.labels()
    scores = torch.randn(len(data), 5, generator=torch.Generator().manual_seed(0))
    scores[:, 0] = labels["iso"].nan_to_num(0).log1p()
    scores[:, 1] = -labels["aperture"].nan_to_num(0)
    scores[:, 4] = labels["coarse_face"] * 2.0 - 1
    results = PretextEvaluator(rows=8)(model_of("ordinal"), data, predictor(scores))
    metrics = results.metrics
    assert tuple(metrics) == metric_names()
    assert metrics["srcc_iso"] == pytest.approx(1) and metrics["srcc_aperture"] == pytest.approx(-1)
    assert metrics["auc_manipulated"] == 1
    tasks = ("iso", "aperture", "exposure_time", "focal_length", "coarse_face")
    assert metrics["proxy_loss"] == pytest.approx(sum(metrics[f"loss_{task}"] for task in tasks))
    assert metrics["loss_iso"] < metrics["loss_aperture"] / 2
    known = ~torch.isnan(labels["iso"])
    assert results.settings["labelled"]["srcc_iso"] == int(known.sum()) < len(data)
    assert [item["edit"] for item in results.items] == [data.edit(i) for i in range(len(data))]


def test_losses_are_means_over_groups_in_which_pairs_are_formed(records):
    data = CameraFaces(records[:10], PROCESSOR, manipulations=None)
    model = model_of("ordinal")
    scores = torch.randn(10, 5, generator=torch.Generator().manual_seed(1))
    found = PretextEvaluator(rows=4)(model, data, predictor(scores)).metrics["loss_focal_length"]
    labels = data.labels()
    expected = []
    for start in (0, 4, 8):
        rows = slice(start, start + 4)
        own = {task: label[rows] for task, label in labels.items()}
        if (~own["focal_length"].isnan()).sum() > 1:
            expected.append(float(model.compute_terms(scores[rows], own)["focal_length"]))
    assert found == pytest.approx(np.mean(expected))


def test_the_joint_embedding_has_classes_and_regions(records):
    data = CameraFaces(records, PROCESSOR, seed=1)
    labels, model = data.labels(), model_of("blades")
    columns, scores, start = model.config.columns, torch.zeros(len(data), 50), 0
    for task, width in columns.items():
        if task in ("make", "white_balance", "coarse_face"):
            known = labels[task] >= 0
            scores[known, start + labels[task][known]] = 5.0
        elif task == "fine_face":
            scores[:, start : start + width] = labels[task]
        elif task == "exposure_program":  # always the wrong class
            scores[:, start] = torch.where(labels[task] == 0, -5.0, 5.0)
        start += width
    results = PretextEvaluator(primary=("coarse_face",))(model, data, predictor(scores))
    metrics = results.metrics
    assert tuple(metrics) == metric_names(OFFICIAL_COLUMNS)
    assert metrics["accuracy_make"] == metrics["accuracy_white_balance"] == 1 and metrics["auc_manipulated"] == 1
    assert metrics["accuracy_exposure_program"] < 0.5
    assert metrics["auc_mouth"] == metrics["auc_eye"] == 1
    assert metrics["proxy_loss"] == metrics["loss_coarse_face"]
    readings = task_readings(scores, columns)
    assert readings["fine_face"].shape == (len(data), len(class_names("fine_face")))
    assert readings["iso"].unique().tolist() == [2.0]  # no opinion is the middle of three levels


def test_what_no_picture_has_a_label_for_is_undefined(records):
    bare = [replace(record, settings=CameraSettings()) for record in records[:6]]
    data = CameraFaces(bare, PROCESSOR, manipulations=None)
    results = PretextEvaluator()(model_of("blades"), data, predictor(torch.randn(6, 50)))
    for name in ("srcc_iso", "loss_iso", "accuracy_make", "auc_manipulated", "auc_mouth"):
        assert math.isnan(results.metrics[name]), name
    assert not math.isnan(results.metrics["loss_coarse_face"])


def test_a_group_norm_encoder_treats_rows_alone():
    config = tiny_encoder_config(depths=(1, 1), hidden_sizes=(8, 12), stem_channels=8, feature_size=6, norm="group")
    torch.manual_seed(0)
    model = ExifOrdinalModel(ExifOrdinalConfig(encoder_config=config)).train()
    pictures = torch.randn(6, 3, 24, 24)
    together = model.image_features(pictures)
    apart = torch.cat([model.image_features(picture[None]) for picture in pictures])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    assert not [name for name in model.state_dict() if "running" in name]
    with pytest.raises(ValueError, match="norm='layer' is none of batch, group"):
        tiny_encoder_config(norm="layer")


def test_the_tiny_text_tower_tells_all_prompts_apart():
    model = model_of("blades")
    features = torch.nn.functional.normalize(model.text_features().detach(), dim=1)
    similar = features @ features.T - torch.eye(50)
    assert float(similar.max()) < 1 - 1e-5
    ids = model.config.prompt_ids
    assert len({tuple(i) for i in ids}) == 50 and model.config.text_config.vocab_size == 1 + max(map(max, ids))
