"""Metrics of others: plug-ins of pictures and of sets, in all outputs, and failing alone."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest
import torch
from PIL import Image

from thurl.errors import UsageError
from thurl.iqa.face_restoration import interface
from thurl.iqa.face_restoration.evaluation import evaluate_faces
from thurl.iqa.face_restoration.interface import (
    Metric,
    MetricContext,
    metric_class,
    register_metric,
)
from thurl.iqa.face_restoration.report import summary_table, write_evaluation
from thurl.iqa.face_restoration.set_metrics import FrechetMetric
from thurl.iqa.face_restoration.settings import EvaluationSettings
from thurl.iqa.face_restoration.statistics import FeatureStatistics

from .conftest import blurred, procedural, rows_of, settings, write


# --- plug-ins --------------------------------------------------------------------------------------------------------


def test_a_plug_in_of_ten_lines_is_in_table_csv_and_json(faces, registry, tmp_path):
    @register_metric
    class Brightness(Metric):
        name = "brightness"
        range = (0.0, 1.0)

        def score(self, batch):
            return batch.pixels("restored").mean(dim=(1, 2, 3))

    evaluation = evaluate_faces(settings(faces, metrics=("brightness",)))
    write_evaluation(evaluation, tmp_path / "out")
    picture = np.asarray(Image.open(faces / "restored" / "CelebA" / "0.png"))
    assert float(rows_of(evaluation)[0]["brightness"]) == pytest.approx(picture.mean() / 255, rel=1e-9)
    assert any(row[0] == "brightness" for row in summary_table(evaluation))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["overall"]["brightness"] == pytest.approx(evaluation.summary["overall"]["brightness"])
    assert summary["metrics"]["brightness"]["range"] == [0.0, 1.0] and "torch" in summary["versions"]
    assert "| brightness |" in (tmp_path / "out" / "table.md").read_text()


def test_a_plug_in_that_fails_on_one_picture_costs_that_cell_only(faces, registry):
    @register_metric
    class Moody(Metric):
        name = "moody"

        def score(self, batch):
            if "CelebA/1" in batch.keys:
                raise RuntimeError("not this one")
            return torch.full((len(batch),), torch.nan if "CelebA/2" in batch.keys else 3.0)

    rows = {(r["dataset"], r["name"]): r for r in rows_of(evaluate_faces(settings(faces, metrics=("moody", "psnr"))))}
    assert rows["CelebA", "1"]["moody"] == "" and rows["CelebA", "1"]["error"] == "moody: not this one"
    assert rows["CelebA", "2"]["error"] == "moody: undefined for this picture"
    assert rows["CelebA", "0"]["moody"] == "3" and all(row["psnr"] for row in rows.values())


def test_wrong_shapes_of_a_plug_in_are_told(faces, registry):
    @register_metric
    class Wrong(Metric):
        name = "wrong"

        def score(self, batch):
            return torch.zeros(len(batch), 2)

    assert "values of shape (1, 2)" in rows_of(evaluate_faces(settings(faces, metrics=("wrong",))))[0]["error"]


def test_plug_ins_come_through_entry_points_and_bad_ones_do_not_stop_others(monkeypatch, registry, caplog):
    class Plug(Metric):
        name = "plugged"

        def score(self, batch):
            return torch.zeros(len(batch))

    class Point:
        def __init__(self, name, result):
            self.name, self.value, self.result = name, name, result

        def load(self):
            if isinstance(self.result, Exception):
                raise self.result
            return self.result

    monkeypatch.setattr(
        interface, "_points", lambda: [Point("bad", ImportError("no such thing")), Point("good", Plug)]
    )
    monkeypatch.setitem(interface._state, "loaded", False)
    with caplog.at_level(logging.WARNING):
        assert metric_class("plugged") is Plug
    assert "no such thing" in caplog.text


def test_names_are_checked(registry):
    def named(**attributes):
        return type("Named", (Metric,), {"score": lambda self, batch: None, **attributes})

    for attributes in ({"name": "Bad Name"}, {"name": ""}, {"name": "psnr"}, {"name": "a", "needs": {"x"}},
                       {"name": "a", "tier": "x"}):  # fmt: skip
        with pytest.raises(UsageError):
            register_metric(named(**attributes))


# --- a metric of the set ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_fid(registry):
    """FID through the same interface, with a small random network instead of Inception."""

    def make(reference):
        class SmallFid(FrechetMetric):
            name = "small_fid"
            extractor = "small"
            resamples = 20

            def load_network(self):
                torch.manual_seed(0)
                layers = [torch.nn.Conv2d(3, 8, 5, 2), torch.nn.ReLU(), torch.nn.Conv2d(8, 12, 5, 2)]
                return torch.nn.Sequential(*layers).eval()

            def load_reference(self):
                return reference

            def embed(self, pictures):
                maps = self.network(pictures)
                return torch.cat([maps.mean(dim=(2, 3)), maps.std(dim=(2, 3))], dim=1)

        registry["small_fid"] = SmallFid
        return SmallFid

    return make


def features_of(cls, pictures):
    metric = cls(MetricContext())
    tensor = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    batch = interface.FaceBatch([str(i) for i in range(len(pictures))], {"restored": tensor})
    return metric.features(batch).numpy()


def test_fid_of_a_set_grows_with_blur_and_is_zero_for_itself(small_fid, tmp_path):
    nothing = FeatureStatistics(np.zeros(24), np.eye(24), 64, "small", "zero")
    scenes = [procedural(seed, 64) for seed in range(64)]
    rows = features_of(small_fid(nothing), scenes).astype(np.float64)
    reference = FeatureStatistics(rows.mean(0), np.cov(rows, rowvar=False), 64, "small", "scenes")
    small_fid(reference)
    values = []
    for name, sigma in (("equal", 0), ("b1", 1), ("b2", 2), ("b3", 3)):
        for number, scene in enumerate(scenes):
            write(tmp_path / name / "set" / f"{number:02}.png", blurred(scene, sigma) if sigma else scene)
        chosen = EvaluationSettings(tmp_path / name, metrics=("small_fid",), cache=tmp_path / "cache")
        result = evaluate_faces(chosen).summary
        values.append(result["overall"]["small_fid"])
        assert result["sets"]["small_fid"]["count"] == 64
        assert result["warnings"] == []
        # A second run takes every feature from the disk and comes to the same number.
        assert evaluate_faces(chosen).summary["overall"]["small_fid"] == values[-1]
    assert abs(values[0]) < 1e-6
    assert values == sorted(values) and values[1] > 1e-6


def test_few_pictures_for_many_features_are_warned_about(small_fid, faces):
    small_fid(FeatureStatistics(np.zeros(24), np.eye(24), 64, "small", "zero"))
    summary = evaluate_faces(settings(faces, metrics=("small_fid",))).summary
    assert any("biased upwards" in warning for warning in summary["warnings"])
    small_fid(FeatureStatistics(np.zeros(24), np.eye(24), 64, "other", "zero"))
    with pytest.raises(Exception, match="'other'"):
        evaluate_faces(settings(faces, metrics=("small_fid",)))


def test_a_set_metric_that_fails_does_not_lose_the_pictures(small_fid, faces, monkeypatch):
    cls = small_fid(FeatureStatistics(np.zeros(24), np.eye(24), 64, "small", "zero"))

    def fail(self):
        raise RuntimeError("no eigenvalues today")

    monkeypatch.setattr(cls, "compute", fail)
    evaluation = evaluate_faces(settings(faces, metrics=("small_fid", "psnr")))
    assert all(row["psnr"] for row in rows_of(evaluation))
    assert "small_fid: no eigenvalues today" in evaluation.summary["warnings"]
    assert evaluation.summary["incomplete"] == ["undefined: small_fid"]


def test_a_set_metric_without_pictures_is_undefined(small_fid):
    metric = small_fid(FeatureStatistics(np.zeros(24), np.eye(24), 64, "small", "zero"))(MetricContext())
    assert math.isnan(metric.compute().value)
