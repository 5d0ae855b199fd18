"""`thurl list | show | copy | validate | train | env`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from thurl.errors import UsageError
from thurl.recipe.shipped import copy_recipe, find_recipe, recipe_summary, shipped_recipes


__all__ = ["register"]

_Recipe = Annotated[str, typer.Argument(help="Recipe file, or the name of one that ships.", metavar="RECIPE")]
_Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value ...", metavar="[OVERRIDES]...", show_default=False)
]
_Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]
_Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
_Processes = Annotated[
    int | None, typer.Option("--processes", min=1, help="Check batch sizes for this many processes.")
]


def register(app: typer.Typer) -> None:
    """Add the recipe commands to `app`."""
    app.command("list")(list_recipes)
    app.command("show")(show)
    app.command("copy")(copy)
    app.command("validate")(validate)
    app.command("train", context_settings={"ignore_unknown_options": True})(train)
    app.command("env")(env)


def list_recipes(as_json: _Json = False) -> None:
    """List the recipes that ship."""
    from thurl.recipe.methods import METHODS

    rows = [
        {"name": name, "file": str(path), "summary": recipe_summary(path)} for name, path in shipped_recipes().items()
    ]
    if as_json:
        methods = {name: method.summary for name, method in METHODS.items()}
        typer.echo(json.dumps({"recipes": rows, "methods": methods}, indent=2))
        return
    if not rows:
        raise UsageError("no recipes found; they ship in `recipes/` of the source tree and of the wheel")
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        typer.echo(f"{row['name']:<{width}}  {row['summary']}")


def show(
    recipe: _Recipe,
    overrides: _Overrides = None,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Also every trainer field left at its default.")
    ] = False,
    debug: _Debug = False,
) -> None:
    """Print a recipe fully resolved: overrides applied, defaults filled in."""
    from thurl.recipe.document import written
    from thurl.recipe.validate import load_recipe, resolved

    loaded = load_recipe(find_recipe(recipe), overrides or ())
    typer.echo(written(resolved(loaded.recipe, defaults=defaults)), nl=False)


def copy(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe that ships.", metavar="RECIPE")],
    to: Annotated[Path, typer.Argument(help="Folder to copy it to.", metavar="[TO]", show_default=False)] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Write over files that differ.")] = False,
    as_json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Copy a recipe and the configurations it names to a folder, to change it and run it there."""
    copied = copy_recipe(recipe, to, force=force)
    if as_json:
        document = {
            "recipe": copied.recipe,
            "written": copied.written,
            "present": copied.present,
            "command": copied.command,
        }
        typer.echo(json.dumps(document, default=str))
        return
    for path in copied.written:
        typer.echo(f"written  {to / path}")
    for path in copied.present:
        typer.echo(f"as it is {to / path}")
    place = "" if to == Path() else f"cd {shlex.quote(str(to))} && "
    typer.echo(f"next: {place}{copied.command}")


def validate(
    recipes: Annotated[list[str], typer.Argument(help="Recipes, then section.key=value ...", metavar="RECIPE...")],
    processes: _Processes = None,
    as_json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Check recipes without model, GPU or network. Exit code 2 when one is wrong."""
    from thurl.recipe.validate import load_recipe

    overrides = [word for word in recipes if "=" in word]
    names = [word for word in recipes if "=" not in word]
    if not names:
        raise UsageError("name at least one recipe to validate")
    results: list[dict[str, Any]] = []
    for name in names:
        try:
            loaded = load_recipe(find_recipe(name), overrides, processes=processes)
            results.append({"recipe": name, "valid": True, "problems": [], "notes": list(loaded.missing)})
        except UsageError as error:
            results.append({"recipe": name, "valid": False, "problems": error.problems, "notes": []})
    if as_json:
        typer.echo(json.dumps(results, indent=2))
    else:
        for result in results:
            _print_result(result)
    if not all(result["valid"] for result in results):
        raise typer.Exit(UsageError.exit_code)


def _print_result(result: dict[str, Any]) -> None:
    if result["valid"]:
        typer.echo(f"{result['recipe']}: valid")
    else:
        count = len(result["problems"])
        typer.echo(f"{result['recipe']}: {count} problem{'s' if count > 1 else ''}", err=True)
    for line in result["problems"]:
        typer.echo(f"  {line}", err=True)
    for line in result["notes"]:
        typer.echo(f"  note: {line}", err=True)


def train(recipe: _Recipe, overrides: _Overrides = None, debug: _Debug = False) -> None:
    """Run a recipe in this process; for several GPUs `accelerate launch RECIPE` does the same."""
    from thurl.recipe.launch import run_recipe

    arguments = list(overrides or [])
    if debug or "--debug" in sys.argv:
        arguments.append("--debug")
    raise typer.Exit(run_recipe(str(find_recipe(recipe)), arguments))


def env(as_json: _Json = False) -> None:
    """Print versions and devices, to paste into a bug report."""
    from thurl.training.results import environment

    report = environment()
    if as_json:
        typer.echo(json.dumps(report, indent=2, default=str))
        return
    for name, value in _flat(report):
        typer.echo(f"{name}: {value}")


def _flat(report: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in report.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return rows
