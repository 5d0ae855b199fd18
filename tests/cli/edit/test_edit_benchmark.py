"""`thurl edit manifest` and `thurl edit benchmark`: failures of a folder, editors compared on them."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch
from PIL import Image

from thurl.data.images import open_image
from thurl.editing.hypernetwork import MaskHypernetwork, MaskHypernetworkConfig

from .edit_files import FAST, NAMES, invoke, loaded


@pytest.fixture(scope="module")
def data(place, tmp_path_factory):
    """Odd pictures in the folder of the class the model sees, even ones in that of the next class."""
    root = tmp_path_factory.mktemp("data")
    it = loaded(place, "vit")
    for index in range(12):
        source = place / f"{index}.png" if index < 4 else place / "others" / f"{index}.png"
        said = int(it.classifier.logits(it.read(open_image(source))[None]).argmax())
        folder = root / NAMES[said if index % 2 else (said + 1) % 5]
        folder.mkdir(exist_ok=True)
        shutil.copyfile(source, folder / f"{index}.png")
    return root


SHORT = ["--edits", 1, "--max-steps", 12, *FAST]


def made(place, data, output, *more):
    done = invoke("manifest", data, "--model", place / "vit", "--output", output, "--smallest", 1, "--threshold", 1,
                  "--device", "cpu", "--json", *more)  # fmt: skip
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_manifest(place, data, tmp_path):
    told = made(place, data, tmp_path / "m.json")
    document = json.loads((tmp_path / "m.json").read_text())
    assert told["base"] == document["base"] == loaded(place, "vit").classifier.fingerprint()
    assert sum(told["groups"].values()) == sum(len(group["files"]) for group in document["groups"]) == 6
    assert told["stay"] == 6 and document["settings"]["smallest"] == 1
    assert made(place, data, tmp_path / "k.json", "--keep", 2)["stay"] == 2
    # The predictions of a stronger model as right classes: the model itself is never wrong by them.
    done = invoke("manifest", data, "--model", place / "vit", "-o", tmp_path / "s.json", "--stronger", place / "vit")
    assert done.exit_code == 1 and "no group of 8 failures" in done.output, done.output
    other = made(place, data, tmp_path / "o.json", "--stronger", place / "timm")
    assert sum(other["groups"].values()) + other["stay"] == 12
    for arguments, message in (
        (["--stronger", place / "deit"], "has other classes"),
        (["--stronger", place / "timm", "--official-layout"], "come from one of them"),
    ):
        done = invoke("manifest", data, "--model", place / "vit", "-o", tmp_path / "x.json", *arguments)
        assert done.exit_code == 2 and message in done.output, done.output
    done = invoke("manifest", data, "--model", place / "vit", "-o", tmp_path / "m.json")
    assert done.exit_code == 2 and "--overwrite" in done.output


def test_editors_compared_on_a_manifest(place, data, tmp_path):
    made(place, data, tmp_path / "m.json")
    classifier = loaded(place, "vit").classifier
    config = MaskHypernetworkConfig(hidden_size=32, neurons=48, rows=len(classifier.units), blocks=1, heads=2,
                                    base_fingerprint=classifier.fingerprint(),
                                    units=[unit.label for unit in classifier.units])  # fmt: skip
    torch.manual_seed(1)
    MaskHypernetwork(config).save_pretrained(tmp_path / "net")
    editors = ["grad", "random", "learned", "hybrid", "mean", "full", "l1", "l2", "lora", "neurons"]
    done = invoke(
        "benchmark", data, "--model", place / "vit", "--manifest", tmp_path / "m.json", "--output", tmp_path / "out",
        *(part for name in editors for part in ("--editor", name)), "--density", 0.1, "--density", 0.3, "--strength",
        0.01, "--rank", 2, "--hypernetwork", tmp_path / "net", "--validation", data, "--layer-search", 1,
        "--layer-width", 1, "--official-metrics", *SHORT, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    settings = {name: [one["setting"] for one in summary["methods"] if one["method"] == name] for name in editors}
    assert settings == {
        **dict.fromkeys(("grad", "random", "learned", "hybrid", "mean"), ["0.1", "0.3"]),
        "full": ["all"], "l1": ["0.01"], "l2": ["0.01"], "lora": ["rank 2"], "neurons": ["1"],
    }  # fmt: skip
    assert all("accuracy_drop" in one and "ECE_rise" in one and "GR_official" in one for one in summary["methods"])
    assert summary["front_area"].keys() == {"grad", "random", "learned", "hybrid", "mean"}
    assert [one["window"] for one in summary["layers"]] == ["ffn 0-0", "ffn 1-1", "attention 0-0", "attention 1-1"]
    assert any(one["on_front"] for one in summary["layers"])
    out = tmp_path / "out"
    assert (out / "manifest.json").read_bytes() == (tmp_path / "m.json").read_bytes()
    for name in ("fronts.png", "layers.png"):
        with Image.open(out / name) as plot:
            assert plot.format == "PNG" and min(plot.size) > 400
    page = (out / "report.html").read_text()
    assert "Fine-tuning of each window of layers" in page and "GR_official" in page
    with open(out / "edits.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15 * summary["groups"] and {row["method"] for row in rows} == set(editors)
    assert json.loads((out / "summary.json").read_text())["front_area"] == summary["front_area"]


def test_a_benchmark_out_of_a_folder(place, data, tmp_path):
    arguments = [data, "--model", place / "vit", "--smallest", 1, "--threshold", 1, "--edits", 1, "--editor", "grad",
                 "--editor", "full", "--density", 0.1, *FAST]  # fmt: skip
    done = invoke("benchmark", *arguments, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["editor", "setting", "SR", "GR", "LR_sensitive", "steps"]
    assert [line.split()[:3] for line in lines[1:3]] == [["grad", "0.1", "100"], ["full", "all", "100"]]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["base"] == loaded(place, "vit").classifier.fingerprint()
    assert sum(len(group["files"]) for group in manifest["groups"]) == len(manifest["locality"]) == 6


def test_units_of_attention(place, data, tmp_path):
    made(place, data, tmp_path / "m.json")
    done = invoke("benchmark", data, "--model", place / "vit", "--manifest", tmp_path / "m.json", "-o",
                  tmp_path / "out", "--editor", "full", "--units", "attention", "--layers", 1, *SHORT,
                  "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    ((one,),) = [json.loads(done.stdout)["methods"]]
    assert one["parameters"]["mean"] == 32 * 32


def test_what_is_refused(place, data, tmp_path):
    made(place, data, tmp_path / "m.json")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("old")
    done = invoke("benchmark", data, "--model", place / "vit", "--output", tmp_path / "out", "--editor", "gard",
                  "--density", 0, "--units", "heads", "--manifest", tmp_path / "m.json", "--smallest", 3,
                  "--skip-corrupt")  # fmt: skip
    assert done.exit_code == 2 and "Traceback" not in done.output
    for words in ("did you mean `grad`", "density 0.0", "something already", "--units 'heads'",
                  "--smallest, --skip-corrupt"):  # fmt: skip
        assert words in done.output, done.output
    for arguments, code, message in (
        (["--model", place / "vit", "--editor", "mean"], 2, "--hypernetwork goes with"),
        (
            ["--model", place / "deit", "--manifest", tmp_path / "m.json"],
            2,
            "failures of a model with the fingerprint",
        ),
        (["--model", place / "vit", "--manifest", tmp_path / "none.json"], 1, "no such file"),
    ):
        done = invoke("benchmark", data, *arguments, "--output", tmp_path / "new", *SHORT)
        assert done.exit_code == code and message in done.output, done.output
        assert not (tmp_path / "new").exists()
