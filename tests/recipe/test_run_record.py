"""The parts of a record and of the terminal output that all recipes share."""

from __future__ import annotations

import logging
from pathlib import Path

from thurl.recipe.run_record import costs, logged_losses, print_table, say_where, write_run_results
from thurl.recipe.validate import load_recipe


TINY = Path(__file__).parents[2] / "recipes" / "tiny" / "visualquality_r1.yaml"


def test_costs():
    seconds = {"train": 2.0, "evaluate": 1.0, "total": 3.5}
    assert costs(seconds, None) == {"seconds": 3.5, "seconds_by_phase": {"train": 2.0, "evaluate": 1.0}}
    more = costs(seconds, {"seconds_per_step": {"forward": 0.1}}, {"train": 1.0, "evaluate": 0.5})
    assert more["seconds_per_step"] == {"forward": 0.1} and more["seconds_control"] == 1.5


def test_losses():
    assert logged_losses([{"loss": 2.0}, {"lr": 1.0}, {"loss": 1.0}]) == {"loss_first": 2.0, "loss_last": 1.0}
    assert logged_losses([{"lr": 1.0}]) == {"loss_first": None, "loss_last": None}


def test_no_secret_of_the_recipe_is_written(tmp_path):
    overrides = ["hub.base_model=https://ann:pass-word@host/model"]
    recipe = load_recipe(TINY, overrides).recipe
    path = tmp_path / "results.json"
    written = write_run_results(str(path), recipe, {"seed": 0, "seconds": 1.0}, str(TINY), overrides)
    assert written["settings"]["hub"]["base_model"] == "https://(hidden)@host/model"
    assert written["settings"]["training"] == recipe.training
    assert "pass-word" not in path.read_text()


def test_cells_are_no_markup(capsys):
    print_table("Title", [["name", "value"], ["[red]x[/red]", "1"], ["mean", "1"]], total=True)
    shown = capsys.readouterr().out
    assert "Title" in shown and "[red]x[/red]" in shown


def test_only_what_was_written_is_named(caplog):
    with caplog.at_level(logging.INFO):
        say_where(None, "results.json", "runs/x")
    assert caplog.messages == ["Results: results.json", "Model: runs/x"]
