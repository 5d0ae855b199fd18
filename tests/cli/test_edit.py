"""`thurl edit` end to end: files in, files out, on tiny classifiers of timm, transformers and CLIP."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.models import save_for_hf
from transformers import CLIPModel, ViTConfig, ViTForImageClassification, ViTImageProcessor
from typer.testing import CliRunner

from thurl.cli import app
from thurl.data.images import open_image
from thurl.editing.classifier_files import load_classifier
from thurl.editing.delta_files import load_delta
from thurl.editing.hypernetwork import MaskHypernetwork, MaskHypernetworkConfig
from thurl.errors import UsageError
from thurl.training.fingerprint import fingerprint

from ..continual.tiny_encoders import WIDE, save_encoder, timm_vit


NAMES = ["ant", "bee", "cat", "dog", "eel"]
FAST = ["--rate", "1e-3", "--device", "cpu"]


def invoke(*arguments):
    return CliRunner().invoke(app, ["edit", *map(str, arguments)], env={"COLUMNS": "200", "NO_COLOR": "1"})


def scaled(model):
    """Weights of the scale of a trained model, so that pictures differ and an edit can succeed."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    return model.eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("edit")
    generator = np.random.default_rng(0)
    (root / "others").mkdir()
    for index in range(12):
        pixels = generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / (f"{index}.png" if index < 4 else f"others/{index}.png"))
    torch.manual_seed(0)
    save_for_hf(scaled(timm_vit()), root / "timm", safe_serialization=True, model_config={"label_names": NAMES})
    config = ViTConfig(**WIDE, id2label=dict(enumerate(NAMES)), label2id={name: i for i, name in enumerate(NAMES)})
    scaled(ViTForImageClassification(config)).save_pretrained(root / "vit")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(root / "vit")
    save_encoder("clip", root / "clip")
    scaled(CLIPModel.from_pretrained(root / "clip")).save_pretrained(root / "clip")
    (root / "names.txt").write_text("red bird\nblue sign\ngreen drawing\n")
    return root


def options(place, kind):
    return ["--model", place / kind, *(["--classes", place / "names.txt"] if kind == "clip" else [])]


def loaded(place, kind):
    return load_classifier(str(place / kind), (place / "names.txt").read_text().splitlines() if kind == "clip" else ())


def wrong_class(place, kind, image):
    """The class the model finds least likely, and the one it says."""
    it = loaded(place, kind)
    with torch.no_grad():
        logits = it.classifier.logits(it.preprocessing.scaled(it.preprocessing(open_image(place / image))[None]))
    return int(logits.argmin()), int(logits.argmax())


def edited(place, kind, output, *more, image="0.png"):
    label = wrong_class(place, kind, image)[0]
    done = invoke("run", *options(place, kind), "--image", place / image, "--label", label, "--output", output,
                  "--density", 0.2, *FAST, "--json", *more)  # fmt: skip
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["timm", "vit", "clip"])
def test_an_edit_is_exported_and_reverted_bit_by_bit(place, kind, tmp_path):
    before = fingerprint(loaded(place, kind).classifier.model)
    target, said = wrong_class(place, kind, "0.png")
    document = edited(place, kind, tmp_path / "e.safetensors", "--locality", place / "others", "--report",
                      tmp_path / "e.html")  # fmt: skip
    names = loaded(place, kind).names
    (picture,) = document["pictures"]
    assert picture["before"]["class"] == f"{said} ({names[said]})"
    assert picture["after"]["class"] == picture["label"] == f"{target} ({names[target]})"
    assert document["success"] and document["base"] == before and document["locality"]["pictures"] == 8
    page = (tmp_path / "e.html").read_text()
    assert names[target] in page and "What else changed" in page
    # The base model is as it was, the exported one says the new class, and says the reported change elsewhere.
    assert fingerprint(loaded(place, kind).classifier.model) == before
    done = invoke("export", tmp_path / "e.safetensors", *options(place, kind), "--output", tmp_path / kind)
    assert done.exit_code == 0, done.output
    assert wrong_class_in(tmp_path, place, kind) == target
    done = invoke("revert", tmp_path / "e.safetensors", *options(tmp_path_with(tmp_path, place), kind), "--output",
                  tmp_path / "back", "--json")  # fmt: skip
    assert done.exit_code == 0 and json.loads(done.stdout)["is_base"], done.output
    base, back = (load_file(folder / "model.safetensors") for folder in (place / kind, tmp_path / "back"))
    assert base.keys() == back.keys() and all(torch.equal(base[name], back[name]) for name in base)


def tmp_path_with(tmp_path, place):
    (tmp_path / "names.txt").write_text((place / "names.txt").read_text())
    return tmp_path


def wrong_class_in(tmp_path, place, kind):
    """What the exported model says of the edited picture."""
    it = loaded(tmp_path_with(tmp_path, place), kind)
    with torch.no_grad():
        return int(
            it.classifier.logits(it.preprocessing.scaled(it.preprocessing(open_image(place / "0.png"))[None])).argmax()
        )


def test_zero_shot_logits_are_those_of_clip(place):
    from transformers import AutoTokenizer

    it = loaded(place, "clip")
    pixels = it.preprocessing.scaled(torch.stack([it.preprocessing(open_image(place / f"{i}.png")) for i in range(3)]))
    words = AutoTokenizer.from_pretrained(place / "clip")
    texts = [f"a photo of a {name}." for name in it.names]
    with torch.no_grad():
        wanted = it.classifier.model(**words(texts, padding=True, return_tensors="pt"), pixel_values=pixels)
        for layer in (0, 1):
            parts = it.classifier.suffix(it.classifier.prefix(pixels, layer), layer)
            assert torch.allclose(parts, wanted.logits_per_image, atol=1e-4)
        assert torch.allclose(it.classifier.logits(pixels), wanted.logits_per_image, atol=1e-4)
    assert {unit.parameter.split(".")[0] for unit in it.classifier.units} == {"vision_model"}


def test_masks_of_a_hypernetwork(place, tmp_path):
    classifier = loaded(place, "vit").classifier
    config = MaskHypernetworkConfig(hidden_size=32, neurons=48, rows=len(classifier.units), blocks=1, heads=2,
                                    base_fingerprint=classifier.fingerprint(),
                                    units=[unit.label for unit in classifier.units])  # fmt: skip
    torch.manual_seed(1)
    MaskHypernetwork(config).save_pretrained(tmp_path / "net")
    net = ["--hypernetwork", tmp_path / "net"]
    found = [
        edited(place, "vit", tmp_path / f"{mask}.safetensors", "--mask", mask, *more)["units"]
        for mask, more in (
            ("learned", net),
            ("hybrid", net),
            ("mean", [*net, "--mean-over", place / "others"]),
            ("random", ["--seed", 3]),
            ("random", ["--seed", 3, "--overwrite"]),
        )
    ]
    assert found[3] == found[4] and len({json.dumps(units) for units in found}) == 4
    # For another model it is refused.
    target = wrong_class(place, "timm", "0.png")[0]
    done = invoke("run", "--model", place / "timm", "-i", place / "0.png", "-l", target, "-o",
                  tmp_path / "x.safetensors", "--mask", "learned", *net, *FAST)  # fmt: skip
    assert done.exit_code == 2 and "belongs to fingerprint" in done.output, done.output


def test_the_budget_of_changed_predictions_is_kept(place, tmp_path):
    others = ["--locality", place / "others"]
    document = edited(place, "vit", tmp_path / "b.safetensors", *others, "--min-locality", 0.75)
    assert document["locality"]["rate"] >= 0.75 and document["density"] <= 0.2
    # The budget decides: a denser mask was tried and broke it.
    assert any(t["locality"] < 0.75 and t["density"] > document["density"] for t in document["trials"])
    assert any(trial["density"] == pytest.approx(document["density"]) for trial in document["trials"])


def test_pictures_are_protected(place, tmp_path):
    protected = ["--locality", place / "others", "--protect"]
    assert edited(place, "vit", tmp_path / "p.safetensors", *protected, 0.5)["success"]
    assert load_delta(tmp_path / "p.safetensors").history[0]["protected"]
    label = wrong_class(place, "vit", "0.png")[0]
    done = invoke("run", "--model", place / "vit", "-i", place / "0.png", "-l", label, "-o",
                  tmp_path / "x.safetensors", *FAST, *protected, 0)  # fmt: skip
    assert done.exit_code == 2 and "no direction is left" in done.output, done.output


def test_a_budget_that_no_mask_keeps_writes_nothing(place, tmp_path):
    label = wrong_class(place, "vit", "0.png")[0]
    done = invoke("run", "--model", place / "vit", "-i", place / "0.png", "-l", label, "-o",
                  tmp_path / "x.safetensors", "--locality", place / "others", "--min-locality", 1, "--rate",
                  0.1, "--device", "cpu")  # fmt: skip
    assert done.exit_code == 1 and "no mask keeps 1 of the predictions" in done.output, done.output
    assert not (tmp_path / "x.safetensors").exists()


def test_what_is_right_already_is_not_edited(place, tmp_path):
    said = wrong_class(place, "timm", "0.png")[1]
    done = invoke("run", "--model", place / "timm", "-i", place / "0.png", "-l", NAMES[said].upper(), "-o",
                  tmp_path / "n.safetensors", "--mask", "grad", *FAST)  # fmt: skip
    assert done.exit_code == 0 and "already right" in done.stdout, done.output
    assert load_delta(tmp_path / "n.safetensors").parameters == 0


def test_merged_edits_and_their_conflicts(place, tmp_path):
    for index in range(2):
        edited(place, "vit", tmp_path / f"{index}.safetensors", "--mask", "random", "--seed", index,
               image=f"{index}.png")  # fmt: skip
    files = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    done = invoke("merge", *files, "--output", tmp_path / "m.safetensors")
    assert done.exit_code == 2 and "both change" in done.output and "0.safetensors" in done.output
    assert not (tmp_path / "m.safetensors").exists()
    done = invoke("merge", *files, "--output", tmp_path / "m.safetensors", "--overlap", "sum", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["conflicts"] and len(load_delta(tmp_path / "m.safetensors").history) == 2


def test_an_edit_of_another_model_is_refused(place, tmp_path):
    edited(place, "vit", tmp_path / "e.safetensors")
    torch.manual_seed(9)
    other = scaled(ViTForImageClassification(ViTConfig(**WIDE)))
    other.save_pretrained(tmp_path / "other")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "other")
    arguments = [tmp_path / "e.safetensors", "--model", tmp_path / "other", "--output", tmp_path / "out"]
    for command, message in (("export", "was made for a model with the fingerprint"), ("revert", "are not those")):
        done = invoke(command, *arguments)
        assert done.exit_code == 2 and message in done.output, done.output
        assert not (tmp_path / "out").exists()


def test_everything_that_is_wrong_is_said_at_once(place, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    done = invoke("run", "--model", place / "timm", "-i", place / "0.png", "-i", tmp_path / "broken.png", "-l", "cow",
                  "-l", "7", "-o", tmp_path / "x.safetensors", *FAST)  # fmt: skip
    assert done.exit_code == 2 and "Traceback" not in done.output
    for words in ("label 'cow'", "label '7'", "broken.png"):
        assert words in done.output, done.output
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--mask", "grads"], 2, "did you mean `grad`"),
        (["--mask", "learned"], 2, "--hypernetwork goes with"),
        (["--mask", "learned", "--hypernetwork", "nowhere"], 3, "nowhere: no model"),
        (["--mask", "learned", "--hypernetwork", "vit"], 2, "not the hypernetwork"),
        (["--min-locality", "0.9"], 2, "need --locality"),
        (["--locality", "nowhere"], 1, "no such file or folder"),
        (["--layers", "7"], 2, "has the layers 0 to 1"),
        (["--rate", "-1", "--max-steps", "0"], 2, "max_steps 0"),
        (["--model", "nowhere"], 3, "no model there"),
        (["--model", "clip"], 2, "give two or more"),
        (["--model", "bare"], 3, "no model.safetensors"),
        (["--model", "encoder"], 2, "holds a ViTModel"),
        (["--prompt-template", "a {}"], 2, "needs a CLIPModel"),
        (["--classes", "names.txt"], 2, "3 names of classes for a model of 5"),
        (["--max-steps", "1", "--rate", "1e-9"], 1, "still wrong after 1 steps"),
    ],
)
def test_bad_input(place, monkeypatch, tmp_path, arguments, code, message):
    monkeypatch.chdir(place)
    Path("bare").mkdir(exist_ok=True)
    Path("bare/config.json").write_text((place / "vit" / "config.json").read_text())
    if not Path("encoder").exists():
        save_encoder("vit", place / "encoder")
    label = wrong_class(place, "vit", "0.png")[0]
    done = invoke("run", "--model", "vit", "-i", "0.png", "-l", label, "-o", tmp_path / "x.safetensors", "--device",
                  "cpu", *arguments)  # fmt: skip
    assert done.exit_code == code and message in done.output, done.output
    assert "Traceback" not in done.output and not (tmp_path / "x.safetensors").exists()


def test_names_of_labels(place):
    it = loaded(place, "timm")
    assert [it.label_of(text) for text in ("Cat", "2", "eel")] == [2, 2, 4] and it.names == tuple(NAMES)
    with pytest.raises(UsageError, match="did you mean `bee`"):
        it.label_of("beee")


def test_released_files_are_converted(place, tmp_path):
    golden = Path(__file__).parents[1] / "golden"
    done = invoke("convert", golden / "vitedit_tiny_vit_weights.safetensors", "--heads", 3, "--output", tmp_path / "v")
    assert done.exit_code == 0, done.output
    io = load_file(golden / "vitedit_tiny_io.safetensors")
    classifier = load_classifier(str(tmp_path / "v")).classifier
    with torch.no_grad():
        assert torch.allclose(classifier.logits(io["image"]), io["logits"], atol=1e-5)
    done = invoke("convert", golden / "vitedit_tiny_hypernet_weights.safetensors", "--kind", "hypernetwork",
                  "--heads", 2, "--base", tmp_path / "v", "--output", tmp_path / "h")  # fmt: skip
    assert done.exit_code == 0, done.output
    network = MaskHypernetwork.from_pretrained(tmp_path / "h", base_fingerprint=classifier.fingerprint())
    assert network.config.units == ["layer7.fc1", "layer7.fc2", "layer8.fc1", "layer8.fc2", "layer9.fc1", "layer9.fc2"]


def test_a_benchmark_out_of_a_folder(place, tmp_path):
    it = loaded(place, "vit")
    for index in range(12):
        source = place / f"{index}.png" if index < 4 else place / "others" / f"{index}.png"
        pixels = it.preprocessing.scaled(it.preprocessing(open_image(source))[None])
        said = int(it.classifier.logits(pixels).argmax())
        # Odd pictures are right, even ones are called by the next class.
        name = NAMES[said if index % 2 else (said + 1) % 5]
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name / f"{index}.png").write_bytes(source.read_bytes())
    arguments = [tmp_path / "data", "--model", place / "vit", "--smallest", 1, "--threshold", 1, "--edits", 1,
                 "--editor", "grad", "--editor", "full", "--density", 0.1, *FAST]  # fmt: skip
    done = invoke("benchmark", *arguments, "--output", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert [(one["method"], one["setting"]) for one in summary["methods"]] == [("grad", "0.1"), ("full", "all")]
    assert all(one["SR"]["mean"] == 100 for one in summary["methods"])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["base"] == it.classifier.fingerprint() and len(manifest["groups"]) == summary["groups"]
    assert sum(len(group["files"]) for group in manifest["groups"]) == len(manifest["locality"]) == 6
    done = invoke("benchmark", *arguments, "--output", tmp_path / "out", "--editor", "gard")
    assert done.exit_code == 2 and "did you mean `grad`" in done.output and "something already" in done.output
