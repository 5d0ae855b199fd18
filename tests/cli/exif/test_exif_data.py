"""`thurl exif scan | import | convert`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from PIL import Image

from thurl.forensics.exif.blades import BladesModel
from thurl.forensics.exif.camera import write_photographs
from thurl.forensics.exif.coverage import coverage
from thurl.forensics.exif.features import FeatureTower
from thurl.forensics.exif.head import FaceHead, FaceHeadConfig
from thurl.forensics.exif.loading import load_tower
from thurl.forensics.exif.manifest import read_manifest
from thurl.forensics.exif.official import to_official
from thurl.forensics.exif.ordinal import ExifOrdinalModel
from thurl.forensics.exif.scan import scan_folder


@pytest.fixture
def photos(tmp_path, bad_files):
    folder = tmp_path / "photos"
    write_photographs(folder / "a", 12, seed=1)
    write_photographs(folder / "b", 6, seed=1, start=12, format="PNG")
    Image.new("RGB", (8, 8)).save(folder / "bare.jpg")
    shutil.copytree(bad_files, folder / "bad")
    (folder / "IMG_1.HEIC").write_bytes(b"ftypheic")
    (folder / "notes.txt").write_text("not looked at")
    return folder


# --- scan ------------------------------------------------------------------------------------------------------------


def test_scan_writes_the_manifest_and_reports(thurl, photos, tmp_path):
    plot = tmp_path / "plots" / "coverage.png"
    result = thurl("scan", photos, "--plot", plot)
    records = read_manifest(photos / "manifest.jsonl")
    found = scan_folder(photos)
    assert [record.image for record in records] == [str(photos / record.image) for record in found.records]
    assert len(records) == 18 and [r.settings for r in records] == [r.settings for r in found.records]
    assert "18 photographs, " in result.stdout and "manifest written to" in result.stdout
    # every file that is left out has its reason
    for name in ("bad/empty.jpg", "bad/text.jpg", "bad/cut.jpg", "bad/huge.png", "bare.jpg"):
        assert f"  {name}: " in result.stdout
    assert "1  .heic" in result.stdout and "notes.txt" not in result.stdout
    assert Image.open(plot).size > (400, 400)
    assert "scanned 23 of 23" in result.stderr


def test_scan_as_json_is_the_coverage(thurl, photos):
    document = json.loads(thurl("scan", photos, "--json", "--report-only").stdout)
    assert document["manifest"] is None and not (photos / "manifest.jsonl").exists()
    assert {key: value for key, value in document.items() if key not in ("manifest", "images", "plot")} == json.loads(
        json.dumps(coverage(scan_folder(photos)))
    )
    assert len(document["skipped_files"]) == 5 and document["not_read"] == {".heic": 1}


def test_scan_keeps_what_lies_there(thurl, photos, tmp_path):
    manifest = tmp_path / "elsewhere" / "m.jsonl"
    result = thurl("scan", photos, "-o", manifest, "--group-by", "camera")
    assert f"--images {photos}" in result.stdout
    assert read_manifest(manifest, images=photos)[0].group == read_manifest(manifest, images=photos)[0].camera != ""
    before = manifest.read_bytes()
    assert "--overwrite" in thurl("scan", photos, "-o", manifest, code=2).output
    assert manifest.read_bytes() == before
    thurl("scan", photos, "-o", manifest, "--overwrite")
    assert manifest.read_bytes() != before


def test_scan_of_nothing_usable(thurl, bad_files, tmp_path):
    result = thurl("scan", bad_files, code=1)
    assert "none of 4 files" in result.output and "empty.jpg: the file is empty" in result.output
    assert not (bad_files / "manifest.jsonl").exists()
    assert "does not exist" in thurl("scan", tmp_path / "nowhere", code=3).output
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "a.heic").write_bytes(b"x")
    assert "1 .heic files" in thurl("scan", tmp_path / "phone", code=3).output
    assert ".png, .svg or .pdf" in thurl("scan", bad_files, "--plot", "a.txt", code=2).output
    thurl("scan", bad_files, "--report-only", "-o", tmp_path / "m.jsonl", code=2)


def test_scan_and_help_need_no_torch(photos):
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom thurl.cli import app\n"
        f"assert CliRunner().invoke(app, ['exif', 'scan', {str(photos)!r}, '--json']).exit_code == 0\n"
        "assert CliRunner().invoke(app, ['exif', 'detect', '--help']).exit_code == 0\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- import ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def icassp(tmp_path):
    """Three photographs in the layout of the one-class paper's labels, the last one without an exposure time."""
    labels, images = tmp_path / "labels", tmp_path / "images"
    labels.mkdir()
    images.mkdir()
    times = {"10": "1/60 sec", "11": "2 sec", "12": None}
    for name, time in times.items():
        exif = {"ISO Speed Ratings": "200", "Aperture Value": "F2.8", "Focal Length": "50 mm"}
        exif |= {} if time is None else {"Exposure Time": time}
        (labels / f"{name}.json").write_text(json.dumps({"EXIF": exif}))
        Image.new("RGB", (40, 40)).save(images / f"{name}.png")
    return labels, images


def times(records):
    return [record.settings.values.get("exposure_time") for record in records]


def test_import_of_the_one_class_labels(thurl, icassp, tmp_path):
    labels, images = icassp
    manifest = images / "m.jsonl"
    printed = thurl("import", labels, "--images", images, "-o", manifest).stdout
    assert times(read_manifest(manifest)) == [1 / 60, 2.0, None] and "3 photographs" in printed
    arguments = ("import", labels, "--images", images, "-o", tmp_path / "old.jsonl", "--json")
    document = json.loads(thurl(*arguments, "--parse", "official").stdout)
    # the official parse: "1/60" is 60, photographs with a missing tag are dropped
    assert times(read_manifest(tmp_path / "old.jsonl", images=images)) == [60.0, 2.0]
    assert document["photographs"] == 2 and document["images"] == str(images)


def test_import_with_face_boxes(thurl, icassp):
    labels, images = icassp
    boxes = labels.parent / "fdf.json"
    boxes.write_text(
        json.dumps({"10": {"bounding_box": [0.25, 0.25, 0.75, 0.8]}, "99": {"bounding_box": [0, 0, 1, 1]}})
    )
    result = thurl("import", labels, "--images", images, "-o", images / "m.jsonl", "--boxes", boxes)
    first, second, _ = read_manifest(images / "m.jsonl")
    assert first.box == (10.0, 10.0, 30.0, 32.0) and second.box is None and "2 of 3 pictures" in result.stderr


def test_import_of_the_blades_labels(thurl, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    item = {
        "path": "/their/machine/a.png",
        "EXIF_ordinal": {"ISO": 100, "Aperture": 2.8, "Exposure Time": "1/60 sec"},
        "EXIF_categorical": {"Make": {"cls_label": 3}},
    }
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"a": item}))
    thurl("import", labels, "-o", tmp_path / "m.jsonl", "--prefix", "/their/machine")
    (record,) = read_manifest(tmp_path / "m.jsonl")
    assert record.settings.values["make"] == "Canon" and times([record]) == [1 / 60]
    labels.write_text(json.dumps({"a": {**item, "EXIF_categorical": {"Make": {"cls_label": 12}}}}))
    result = thurl("import", labels, "-o", tmp_path / "n.jsonl", "--prefix", "/their/machine", code=1)
    assert "class 12" in result.output and not (tmp_path / "n.jsonl").exists()


def test_wrong_imports(thurl, icassp, tmp_path):
    labels, images = icassp
    result = thurl("import", labels, "-o", tmp_path / "m.jsonl", "--prefix", "x", code=2)
    assert "--images is missing" in result.output and "--prefix" in result.output  # both at once
    thurl("import", tmp_path / "no.json", "-o", tmp_path / "m.jsonl", code=3)
    (tmp_path / "labels.json").write_text("{}")
    result = thurl("import", tmp_path / "labels.json", "-o", tmp_path / "m.jsonl", "--parse", "official", code=2)
    assert "--parse official" in result.output


# --- convert ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def released(tmp_path, models, blades_config):
    """Files in the released layouts, and the configuration of the small model."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(blades_config.to_dict()))
    model = BladesModel.from_pretrained(models.blades)
    torch.manual_seed(1)
    head = FaceHead(FaceHeadConfig(feature_size=6, hidden_size=12))
    files = {"OC.pth": to_official(model), "BC.pth": to_official(model, head)}
    for name, state in files.items():
        torch.save({"epoch": 1, "model": state}, tmp_path / name)  # noqa: TID251 - the released format
    return tmp_path, config, model


def test_convert_gives_the_same_features(thurl, released, faces):
    folder, config, model = released
    output = folder / "oc"
    document = json.loads(
        thurl("convert", folder / "OC.pth", "-o", output, "--config", config, "--size", 24, "--json").stdout
    )
    assert document["layout"] == "blades_oc" and document["missing"] == document["untrained"] == []
    assert document["detector"] is None
    tower = load_tower(output)
    assert tower.processor.antialias is False
    pictures = sorted(faces.test.iterdir())[:5]
    found = torch.cat([features for _, features in tower.batches(pictures)])
    expected = torch.cat([features for _, features in FeatureTower(model, tower.processor).batches(pictures)])
    assert torch.equal(found, expected)


def test_a_converted_binary_detector_judges(thurl, released, faces):
    folder, config, _ = released
    printed = thurl("convert", folder / "BC.pth", "-o", folder / "bc", "--config", config, "--size", 24).stdout
    assert printed.startswith("blades_bc: BladesModel written to")
    result = thurl("detect", faces.test, "--model", folder / "bc", "--json", "--device", "cpu")
    shares = [json.loads(line)["probability_generated"] for line in result.stdout.splitlines()]
    assert len(shares) == 40 and all(0 < share < 1 for share in shares)
    assert "a probability of 0.5" in result.stderr


def test_convert_names_what_is_untrained_and_swapped(thurl, released, models, faces):
    folder, config, model = released
    state = {key: value for key, value in to_official(model).items() if "text_fc" not in key}
    torch.save({"model": {**state, "extra": torch.zeros(1)}}, folder / "part.pth")  # noqa: TID251
    arguments = ("convert", folder / "part.pth", "--layout", "blades_oc", "--config", config, "-o", folder / "part")
    printed = thurl(*arguments).stdout
    assert "untrained, holding random numbers: text" in printed and "1 keys unused: extra" in printed
    picture = next(faces.test.iterdir())
    assert "lacked text" in thurl("explain", picture, "--model", folder / "part", code=1).output

    ordinal = ExifOrdinalModel.from_pretrained(models.ordinal)
    torch.save({"model": to_official(ordinal)}, folder / "icassp.pth")  # noqa: TID251
    (folder / "ordinal.json").write_text(json.dumps(ordinal.config.to_dict()))
    arguments = ("convert", folder / "icassp.pth", "--config", folder / "ordinal.json", "-o", folder / "ordinal")
    assert "fc_et ranks the focal length and fc_fl the exposure time" in thurl(*arguments).stdout


def test_convert_fails_clearly(thurl, released, tmp_path):
    folder, config, model = released
    state = to_official(model)
    state.pop("model.visual.conv1.weight")
    torch.save({"model": state}, folder / "torn.pth")  # noqa: TID251
    result = thurl("convert", folder / "torn.pth", "-o", folder / "torn", "--config", config, code=1)
    assert "1 of" in result.output and "model.visual.conv1.weight" in result.output
    assert not (folder / "torn").exists()
    # No library puts this class on torch's list of safe ones, as accelerate does with NumPy's arrays.
    torch.save({"model": Fraction(1, 2)}, folder / "evil.pth")  # noqa: TID251 - what the restricted unpickler refuses
    assert "not a checkpoint" in thurl("convert", folder / "evil.pth", "-o", folder / "evil", code=1).output
    (folder / "text.pth").write_text("no checkpoint")
    assert "not a checkpoint" in thurl("convert", folder / "text.pth", "-o", folder / "text", code=1).output
    thurl("convert", folder / "none.pth", "-o", folder / "none", code=3)
    (folder / "there").mkdir()
    (folder / "there" / "config.json").write_text("{}")
    thurl("convert", folder / "OC.pth", "-o", folder / "there", "--config", config, code=2)
    (folder / "wrong.json").write_text('{"model_type": "bert"}')
    assert "bert" in thurl("convert", folder / "OC.pth", "-o", folder / "x", "--config", folder / "wrong.json",
                           code=1).output  # fmt: skip
