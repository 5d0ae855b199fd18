"""`thurl deepfake ...` on a small model and drawn faces."""

import csv
import json

import pytest
import torch
from typer.testing import CliRunner

from thurl.cli import app
from thurl.forensics.deepfake.config import DeepFakeConfig
from thurl.forensics.deepfake.drawn_faces import write_drawn_faces
from thurl.forensics.deepfake.expansion import expand
from thurl.forensics.deepfake.expansion_plan import ExpansionConfig
from thurl.forensics.deepfake.graph import load_graph
from thurl.forensics.deepfake.loading import load_model
from thurl.forensics.deepfake.manifest import read_manifest, write_manifest
from thurl.forensics.deepfake.model import DeepFakeModel
from thurl.forensics.deepfake.official import to_official
from thurl.forensics.deepfake.tiny import tiny_config
from thurl.forensics.processing import FaceImageProcessor


GRAPH = load_graph("ffpp")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`faces/manifest.jsonl`, `both.jsonl` with forgeries, `model/`."""
    folder = tmp_path_factory.mktemp("deepfake")
    real = write_drawn_faces(folder / "faces", GRAPH, people={"val": 3, "test": 3}, frames=1, size=32)
    forged = expand(real, folder / "forged", GRAPH, ExpansionConfig(donors={"other": 1.0}, colour=(0, 0))).items
    write_manifest(folder / "both.jsonl", [*real, *forged], GRAPH)
    torch.manual_seed(0)
    DeepFakeModel(tiny_config(image_size=32, patch_size=16, hidden=8, layers=1)).save_pretrained(folder / "model")
    FaceImageProcessor(size=32).save_pretrained(folder / "model")
    return folder


def thurl(*arguments, code=0):
    found = CliRunner().invoke(app, ["deepfake", *map(str, arguments)])
    assert found.exit_code == code, (found.output, found.stderr, found.exception)
    return found


def test_predict_writes_all_probabilities(place, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    face = place / "faces" / "frames" / "000" / "0000.png"
    report = tmp_path / "report.csv"
    found = thurl("predict", face, broken, "--model", place / "model", "--output", report, "--json", "--workers", 0)
    first, second = (json.loads(line) for line in found.stdout.splitlines())
    assert second["error"] and "p_fake" not in second and "broken.png" in found.stderr
    assert set(first["global"]) | set(first["local"]) == set(GRAPH.names[1:])
    GRAPH.check(first["most_probable_state"])
    rows = list(csv.DictReader(report.open()))
    assert [f"p_{name}" for name in GRAPH.names] == [name for name in rows[0] if name.startswith("p_")]
    assert float(rows[0]["p_fake"]) == pytest.approx(first["p_fake"]) and rows[0]["text"] == first["text"]
    assert rows[1]["p_fake"] == "" and rows[1]["error"]
    thurl("predict", face, "--model", place / "model", "--output", report, code=2)  # it is there
    thurl("predict", broken, "--model", place / "model", code=1)


def test_evaluate_names_sets_and_writes_scores(place, tmp_path):
    output, scores = tmp_path / "e.json", tmp_path / "s.csv"
    lone = [item for item in read_manifest(place / "both.jsonl", GRAPH) if item.fake]
    lone = [type(item)(**{**vars(item), "dataset": "lone"}) for item in lone if item.split == "test"]
    write_manifest(place / "lone.jsonl", lone, GRAPH)
    found = thurl(
        "evaluate", place / "both.jsonl", place / "lone.jsonl", "--split", "test", "--model", place / "model",
        "--validation", place / "both.jsonl", "--validation-split", "val", "--perturbation", "jpeg_75",
        "--resamples", 10, "--output", output, "--scores", scores, "--workers", 0,
    )  # fmt: skip
    assert "video AUC" in found.stdout and "lone is not scored: it has no real face" in found.stderr
    result = json.loads(output.read_text())
    assert result["datasets"]["drawn"]["videos"]["n"] == 6 and result["thresholds"]["video"] is not None
    assert result["datasets"]["lone"]["videos"]["auc"] is None and set(result["perturbations"]) == {"jpeg_75"}
    rows = list(csv.DictReader(scores.open()))
    assert len(rows) == 9 and rows[0]["label_fake"] == "0" and 0 <= float(rows[0]["p_nose"]) <= 1
    text = thurl("evaluate", place / "both.jsonl", "--model", place / "model", "--perturbation", "jpg", code=2).stderr
    assert "there are none, jpeg_95" in text


def test_expand_import_and_their_mistakes(place, tmp_path):
    made = thurl("expand", place / "faces" / "manifest.jsonl", "--output", tmp_path / "new", "--region", "nose",
                 "--donor", "other", "--split", "test", "--json")  # fmt: skip
    assert json.loads(made.stdout)["manipulations"] == {"expanded-nose": 3}
    assert len(read_manifest(tmp_path / "new" / "manifest.jsonl", GRAPH)) == 3
    thurl("expand", place / "faces" / "manifest.jsonl", "--output", tmp_path / "new", code=2)  # not empty
    table = tmp_path / "faces.csv"
    table.write_text("path,fake,nose\na.png,0,\nb.png,1,1\n")
    thurl("import", table, "--format", "csv", "--output", tmp_path / "m.jsonl")
    assert [item.fake for item in read_manifest(tmp_path / "m.jsonl", GRAPH)] == [0, 1]
    table.write_text("path,fake,nose\na.png,0,1\n")
    assert "row" in thurl("import", table, "--format", "csv", "--output", tmp_path / "n.jsonl", code=1).stderr.lower()
    assert "csv" in thurl("import", table, "--format", "cvs", "--output", tmp_path / "n.jsonl", code=2).stderr


def test_convert_and_fold(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 1,
             "projection_dim": 64}  # fmt: skip
    torch.manual_seed(0)
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    config = DeepFakeConfig(vision_config=vision, text_config=sizes, projection_dim=64)
    torch.save({"model": to_official(DeepFakeModel(config))}, tmp_path / "ckpt.pth")  # noqa: TID251 - what is released
    thurl("convert", tmp_path / "ckpt.pth", "--output", tmp_path / "whole")
    found = thurl("convert", tmp_path / "ckpt.pth", "--output", tmp_path / "folded", "--fold", "--json")
    whole, folded = (load_model(tmp_path / name) for name in ("whole", "folded"))
    assert json.loads(found.stdout)["weights"] < sum(value.numel() for value in whole.state_dict().values()) / 2
    picture = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(folded(picture).marginals, whole(picture).marginals)
    thurl("convert", tmp_path / "ckpt.pth", "--output", tmp_path / "whole", code=2)  # it is there
