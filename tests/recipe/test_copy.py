"""`thurl copy`: a recipe that ships, with the configurations it names, in a folder of the user."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from thurl.cli import app
from thurl.errors import DataError, UsageError
from thurl.recipe.shipped import copy_recipe, shipped_recipes
from thurl.recipe.validate import load_recipe


ROOT = Path(__file__).parents[2]


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_is_copied_with_all_it_names_and_says_how_it_starts(name, tmp_path, monkeypatch):
    copied = copy_recipe(name, tmp_path / "new" / "mine")
    assert copied.recipe.as_posix() == f"recipes/{name}.yaml" and not copied.present
    assert files(tmp_path / "new" / "mine") == {path.as_posix() for path in copied.written}
    monkeypatch.chdir(tmp_path / "new" / "mine")
    words = copied.command.split()
    assert words[0] in ("accelerate", "torchrun")
    named = [word for word in words if word.endswith((".yaml", ".json"))]
    assert f"recipes/{name}.yaml" in named and all(Path(word).is_file() for word in named)
    deepspeed = load_recipe(copied.recipe).recipe.training.get("deepspeed")
    assert deepspeed is None or Path(deepspeed).is_file() and not Path(deepspeed).is_absolute()


def test_what_a_configuration_names_comes_with_it(tmp_path):
    assert "zero3_multinode.yaml" in (ROOT / "recipes" / "visualquality_r1.yaml").read_text()
    copy_recipe("visualquality_r1", tmp_path)
    assert files(tmp_path) == {
        "recipes/visualquality_r1.yaml",
        "accelerate_configs/zero3_multinode.yaml",
        "deepspeed_configs/zero3.json",
    }


def test_nothing_is_written_over_without_force(tmp_path):
    copy_recipe("tiny/afine", tmp_path)
    (tmp_path / "recipes" / "tiny" / "afine.yaml").write_text("mine")
    (tmp_path / "accelerate_configs" / "cpu.yaml").write_text("mine")
    with pytest.raises(UsageError) as error:
        copy_recipe("tiny/afine", tmp_path)
    assert len(error.value.problems) == 2 and "--force" in error.value.problems[0]
    assert (tmp_path / "recipes" / "tiny" / "afine.yaml").read_text() == "mine"
    with pytest.raises(UsageError):
        copy_recipe("tiny/blades", tmp_path)
    assert not (tmp_path / "recipes" / "tiny" / "blades.yaml").exists(), "all or nothing"
    assert len(copy_recipe("tiny/afine", tmp_path, force=True).written) == 2
    again = copy_recipe("tiny/blades", tmp_path)
    assert [path.name for path in again.present] == ["cpu.yaml"]


def test_a_link_is_not_followed(tmp_path):
    outside = tmp_path / "precious"
    outside.write_text("kept")
    (tmp_path / "to" / "recipes" / "tiny").mkdir(parents=True)
    (tmp_path / "to" / "recipes" / "tiny" / "afine.yaml").symlink_to(outside)
    with pytest.raises(UsageError):
        copy_recipe("tiny/afine", tmp_path / "to")
    copy_recipe("tiny/afine", tmp_path / "to", force=True)
    assert outside.read_text() == "kept"


def test_what_cannot_be_copied_is_named(tmp_path):
    with pytest.raises(UsageError, match="did you mean `tiny/afine`"):
        copy_recipe("tiny/afin", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="name a folder"):
        copy_recipe("tiny/afine", tmp_path / "file")
    (tmp_path / "recipes").write_text("a file where a folder has to be")
    with pytest.raises(DataError, match="cannot be written"):
        copy_recipe("tiny/afine", tmp_path)


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = CliRunner().invoke(app, ["copy", "tiny/afine"])
    assert here.exit_code == 0, here.output
    launch = "accelerate launch --config_file accelerate_configs/cpu.yaml recipes/tiny/afine.yaml"
    assert here.output.splitlines()[-1] == f"next: {launch}"
    there = CliRunner().invoke(app, ["copy", "tiny/afine", "a b"])
    assert there.output.splitlines()[-1] == f"next: cd 'a b' && {launch}"
    document = json.loads(CliRunner().invoke(app, ["copy", "tiny/afine", "--json"]).output)
    assert document["command"] == launch and document["written"] == [] and len(document["present"]) == 2
    Path("recipes/tiny/afine.yaml").write_text("mine")
    assert CliRunner().invoke(app, ["copy", "tiny/afine"]).exit_code == 2
    assert CliRunner().invoke(app, ["copy", "tiny/afine", "--force"]).exit_code == 0
