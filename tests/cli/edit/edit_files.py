"""What the tests of `thurl edit` do with the files of `place`."""

from __future__ import annotations

import json

import torch
from typer.testing import CliRunner

from thurl.cli import app
from thurl.data.images import open_image
from thurl.editing.classifier_files import load_classifier


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


def tmp_path_with(tmp_path, place):
    """The same folder, with the names of classes beside its models."""
    (tmp_path / "names.txt").write_text((place / "names.txt").read_text())
    return tmp_path


def wrong_class_in(tmp_path, place, kind):
    """What the exported model says of the edited picture."""
    it = loaded(tmp_path_with(tmp_path, place), kind)
    with torch.no_grad():
        return int(
            it.classifier.logits(it.preprocessing.scaled(it.preprocessing(open_image(place / "0.png"))[None])).argmax()
        )
