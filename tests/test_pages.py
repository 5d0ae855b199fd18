"""README and docs: commands, options, imports, names, links and tables in them exist."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def relative(path):
    return path.relative_to(ROOT).as_posix()


def code_blocks(path):
    return re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


def commands(word):
    for path in PAGES:
        lines = [line for language, body in code_blocks(path) if not language for line in body.splitlines()]
        for line in lines:
            parts = line.split("#")[0].split()
            while parts and re.fullmatch(r"[A-Z_]+=\S*", parts[0]):
                parts = parts[1:]
            if parts and parts[0] == word:
                yield pytest.param(parts[1:], id=f"{relative(path)}: {' '.join(parts)}")


@pytest.mark.parametrize("arguments", list(commands("thurl")))
def test_documented_commands_exist(arguments):
    from typer.main import get_command
    from typer.testing import CliRunner

    from thurl.cli import app

    words = arguments[: 2 if hasattr(get_command(app).commands[arguments[0]], "commands") else 1]
    done = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert done.exit_code == 0, done.output
    for option in (word for word in arguments[len(words) :] if word.startswith("--")):
        assert re.search(rf"{re.escape(option)}\b", done.output), (
            f"{option} is not an option of thurl {' '.join(words)}"
        )
    for recipe in (word for word in arguments[1:] if word.startswith("recipes/")):
        assert (ROOT / recipe).is_file(), recipe


@pytest.mark.parametrize("arguments", list(commands("make")))
def test_documented_make_targets_exist(arguments):
    targets = [word for word in arguments if "=" not in word and not word.startswith("-")]
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", MAKEFILE, re.M), target


@pytest.mark.parametrize("arguments", [*commands("accelerate"), *commands("torchrun"), *commands("python")])
def test_documented_launches_name_files_that_exist(arguments):
    files = [word for word in arguments if word.endswith((".yaml", ".json")) and "=" not in word]
    for file in files:
        assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("arguments", list(commands("pip")))
def test_documented_installs_name_extras_that_exist(arguments):
    extras = set(PYPROJECT["project"]["optional-dependencies"])
    for named in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
        assert set(named.split(",")) <= extras


def python_blocks():
    for path in PAGES:
        for number, (language, body) in enumerate(code_blocks(path)):
            if language == "python":
                yield pytest.param(body, id=f"{relative(path)}: block {number}")


@pytest.mark.parametrize("code", list(python_blocks()))
def test_documented_imports_exist(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_names_of_the_package_in_pages_exist(path):
    for name in set(re.findall(r"`(thurl(?:\.\w+)+)`", path.read_text(encoding="utf-8"))):
        module, _, attribute = name.rpartition(".")
        if importlib.util.find_spec(module) is not None and hasattr(importlib.import_module(module), attribute):
            continue
        assert importlib.util.find_spec(name) is not None, name


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md"], ids=relative)
def test_relative_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith(("http", "#", "mailto:")):
            assert (path.parent / target.partition("#")[0]).exists(), target


def test_every_page_is_in_the_navigation():
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = {page for entry in navigation for page in entry.values()}
    assert listed == {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}


def test_every_label_format_is_documented():
    from thurl.data.labels import LABEL_FORMATS

    text = (ROOT / "docs" / "data_formats.md").read_text(encoding="utf-8")
    for name, kind in LABEL_FORMATS.items():
        assert f"`{name}`" in text, name
        for option in kind.options:
            assert f"`{option}`" in text, f"{name}: {option}"


def test_every_recipe_section_is_documented():
    from thurl.recipe.visualquality_r1 import VisualQualityR1Recipe

    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for name in VisualQualityR1Recipe.model_fields:
        assert f"| `{name}` |" in text, name
