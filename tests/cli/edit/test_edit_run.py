"""`thurl edit` end to end: files in, files out, on tiny classifiers of timm, transformers and CLIP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from thurl.data.images import open_image
from thurl.editing.classifier_files import load_classifier
from thurl.editing.delta_files import load_delta
from thurl.editing.hypernetwork import MaskHypernetwork, MaskHypernetworkConfig
from thurl.errors import UsageError
from thurl.training.fingerprint import fingerprint

from ...continual.tiny_encoders import WIDE, save_encoder
from .edit_files import (
    FAST,
    NAMES,
    edited,
    invoke,
    loaded,
    options,
    scaled,
    tmp_path_with,
    wrong_class,
    wrong_class_in,
)


@pytest.mark.parametrize("kind", ["timm", "vit", "deit", "dinov2", "clip"])
def test_an_edit_is_exported_and_reverted_bit_by_bit(place, kind, tmp_path):
    before = fingerprint(loaded(place, kind).classifier.model)
    target, said = wrong_class(place, kind, "0.png")
    document = edited(place, kind, tmp_path / "e.safetensors", "--locality", place / "others", "--report",
                      tmp_path / "e.html")  # fmt: skip
    names = loaded(place, kind).names
    assert {unit["unit"].partition(".")[2] for unit in document["units"]} == {"fc1", "fc2"}
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


def test_the_density_is_a_mean_over_pictures(place, tmp_path):
    kinds = {}
    for index in range(4):
        label = wrong_class(place, "vit", f"{index}.png")[0]
        done = invoke("run", "--model", place / "vit", "-i", place / f"{index}.png", "-l", label, "-o",
                      tmp_path / f"{index}.safetensors", "--density", 0.3, "--density-over", place / "others", *FAST,
                      "--json")  # fmt: skip
        assert done.exit_code == 0, done.output
        kinds[index] = json.loads(done.stdout)["density"]
    assert len(set(kinds.values())) > 1 and all(0 < density < 1 for density in kinds.values())


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_projections_of_attention_are_edited(place, kind, tmp_path):
    document = edited(place, kind, tmp_path / "a.safetensors", "--units", "attention", "--layers", "1")
    assert [unit["unit"] for unit in document["units"]] == ["layer1.attn_out"]
    done = invoke("export", tmp_path / "a.safetensors", *options(place, kind), "--output", tmp_path / kind)
    assert done.exit_code == 0, done.output
    base, new = (load_file(folder / "model.safetensors") for folder in (place / kind, tmp_path / kind))
    (changed,) = [name for name in base if not torch.equal(base[name], new[name])]
    columns = (base[changed] != new[changed]).any(dim=0).nonzero().flatten().tolist()
    assert columns == document["units"][0]["neurons"] and "1" in changed
    assert wrong_class_in(tmp_path, place, kind) == wrong_class(place, kind, "0.png")[0]


def test_half_precision_files_are_smaller_and_say_what_was_rounded(place, tmp_path):
    whole = edited(place, "vit", tmp_path / "whole.safetensors")
    half = edited(place, "vit", tmp_path / "half.safetensors", "--float16")
    bare = edited(place, "vit", tmp_path / "bare.safetensors", "--float16", "--no-originals")
    assert whole["rounding"] == 0 < half["rounding"] == bare["rounding"] < 1e-3
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "half", "bare")]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
    for name in ("half", "bare"):
        output = tmp_path / name / "vit"
        done = invoke("export", tmp_path / f"{name}.safetensors", *options(place, "vit"), "--output", output)
        assert done.exit_code == 0, done.output
        assert wrong_class_in(tmp_path / name, place, "vit") == wrong_class(place, "vit", "0.png")[0]
    # What replaced weights are needed for is refused without them.
    arguments = ["--model", tmp_path / "half" / "vit", "--output", tmp_path / "back"]
    done = invoke("revert", tmp_path / "bare.safetensors", *arguments)
    assert done.exit_code == 3 and "no original weights" in done.output
    done = invoke("revert", tmp_path / "half.safetensors", *arguments, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["is_base"], done.output


def test_several_pictures_with_labels_of_their_own(place, tmp_path):
    targets = [wrong_class(place, "vit", f"{index}.png")[0] for index in range(2)]
    images = [part for index in range(2) for part in ("-i", place / f"{index}.png", "-l", targets[index])]
    done = invoke("run", "--model", place / "vit", *images, "-o", tmp_path / "t.safetensors", "--density", 0.3,
                  "--optimizer", "adam", "--stop-loss", 0.5, "--max-steps", 300, *FAST, "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert [picture["after"]["class"] for picture in document["pictures"]] == [f"{t} ({NAMES[t]})" for t in targets]
    assert load_delta(tmp_path / "t.safetensors").history[0]["settings"]["optimizer"] == "adam"


def test_the_prompt_of_a_zero_shot_classifier(place, tmp_path):
    label = wrong_class(place, "clip", "0.png")[0]
    found = []
    for name, prompt in (("default", []), ("short", ["--prompt-template", "the {}"])):
        done = invoke("run", *options(place, "clip"), "-i", place / "0.png", "-l", label, "-o",
                      tmp_path / f"{name}.safetensors", "--density", 0.2, *FAST, *prompt, "--json")  # fmt: skip
        assert done.exit_code == 0, done.output
        found.append(json.loads(done.stdout))
    before = [document["pictures"][0]["before"]["label_probability"] for document in found]
    assert before[0] != before[1] and found[0]["base"] == found[1]["base"]


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
        (["--mask", "random", "--density-over", "others"], 2, "scores all pictures alike"),
        (["--locality", "others", "--min-locality", "0.9", "--density-over", "others"], 2, "looks for the density"),
        (["--units", "attentions"], 2, "did you mean `attention`"),
        (["--layers", "1,a"], 2, "must be numbers of layers"),
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
    golden = Path(__file__).parents[2] / "golden"
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
