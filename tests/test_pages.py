"""README and docs: commands, options, imports, names, links and tables in them exist."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import shlex
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


def page(name):
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def code_blocks(path):
    return re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


def commands(word):
    for path in PAGES:
        bodies = [body for language, body in code_blocks(path) if language in ("", "bash", "sh", "console")]
        lines = [line for body in bodies for line in body.replace("\\\n", " ").splitlines()]
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


@pytest.mark.parametrize("arguments", list(commands("thurl")))
def test_documented_commands_parse(arguments):
    """By the parser of the command itself: options take the values they are given, no argument is one too many."""
    from typer.main import get_command

    from thurl.cli import app

    command, words = get_command(app), shlex.split(" ".join(arguments), comments=True)
    context = None
    while hasattr(command, "resolve_command"):
        context = command.make_context(command.name, words, parent=context, resilient_parsing=True)
        _, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
    context = command.make_context(command.name, [], parent=context, resilient_parsing=True)
    _, left, _ = command.make_parser(context).parse_args(args=words)
    assert not left, f"{left} is one argument too many"


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
def test_recipes_and_files_named_in_pages_exist(path):
    """`recipes/x.yaml`, `examples/y.py`, `src/z.py` and their like, wherever they stand in the text."""
    text = path.read_text(encoding="utf-8")
    folders = "recipes|accelerate_configs|deepspeed_configs|examples|benchmarks|scripts|src|tests|results"
    for name in set(re.findall(rf"(?<![\w./-])((?:{folders})/[\w./-]+\.(?:ya?ml|json|py|sh))\b", text)):
        assert (ROOT / name).is_file(), name


def test_the_plan_of_the_memory_guide_is_what_the_command_says():
    from typer.testing import CliRunner

    from thurl.cli import app

    rows = re.findall(r"^\| `thurl (plan .*?)` \| (.+?) \| (.+?) \| (.+?) \|$", page("memory.md"), re.M)
    assert len(rows) == 2
    for command, rollout, update, usable in rows:
        done = CliRunner().invoke(app, command.split())
        assert done.exit_code == 0, done.output
        for name, value in (("rollout", rollout), ("update", update), ("usable on each device", usable)):
            assert re.search(rf"^{name} +{re.escape(value)}$", done.output, re.M), (command, name, done.output)


@pytest.mark.parametrize("code", [block for block in python_blocks() if "def " in block.values[0]])
def test_documented_functions_compile(code):
    compile(code, "page", "exec")


def test_the_reward_of_the_guide_keeps_the_contract():
    from thurl.rl.checked_reward import checked_reward

    (code,) = re.findall(r"^```python\n(def .*?)^```", page("rewards.md"), re.M | re.S)
    names = {}
    exec(compile(code, "rewards.md", "exec"), names)
    reward = checked_reward(names["short_answers"])
    completions = ["yes", "", "x" * 300, [{"role": "assistant", "content": "no"}]]
    rewards = reward(prompts=["q"] * 4, completions=completions, completion_ids=[[1]] * 4, step=3)
    assert rewards == [1.0, None, 0.0, 1.0]


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_names_of_the_package_in_pages_exist(path):
    for name in set(re.findall(r"`(thurl(?:\.\w+)+)`", path.read_text(encoding="utf-8"))):
        pkgutil.resolve_name(name)


def headings(path):
    """[(level, title)] outside blocks of code."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [(len(marks), title) for marks, title in re.findall(r"^(#+) (.+)$", text, re.M)]


def anchor(title):
    """As the site makes it: small letters, words joined by hyphens."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md"], ids=relative)
def test_relative_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith(("http", "mailto:")):
            file, _, place = target.partition("#")
            linked = path.parent / file if file else path
            assert linked.exists(), target
            assert not place or place in {anchor(title) for _, title in headings(linked)}, target


ORDER = [
    "Use",
    "The method",
    "Where it is in the code",
    "Recipes",
    "What differs from the official code",
    "Evidence",
    "What did not reproduce",
    "Limits",
]
# Of each page its papers: title of their part of the equations, arXiv number. bilevel.md is a mechanism of two.
PAPERS = {}
for title, name, number in re.findall(
    r"^## (.+)\n\n\[Page\]\((\w+\.md)\), \[arXiv ([\d.]+)\]", page("equations.md"), re.M
):
    if name != "bilevel.md":
        PAPERS.setdefault(name, []).append((title, number))
METHODS = [*PAPERS, "restoration.md"]  # the last is a baseline of ours: no paper, no official code


def section(name, title):
    """What stands below `## title`, up to the next heading of that level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page(name), re.M | re.S)
    return found[1] if found else ""


def test_the_ten_papers_have_pages():
    assert len({number for parts in PAPERS.values() for _, number in parts}) == 10


@pytest.mark.parametrize("name", METHODS)
def test_method_pages_have_one_order(name):
    titles = [title for level, title in headings(ROOT / "docs" / name) if level == 2 and title in ORDER]
    no_paper = {"What differs from the official code", "What did not reproduce"}
    assert titles == [title for title in ORDER if name in PAPERS or title not in no_paper]


@pytest.mark.parametrize("name", PAPERS)
def test_method_pages_name_their_papers_and_link_their_equations(name):
    opening = page(name).partition("\n## ")[0]
    for title, number in PAPERS[name]:
        assert f"https://arxiv.org/abs/{number}" in opening, number
        assert f"(equations.md#{anchor(title)})" in section(name, "The method"), title


@pytest.mark.parametrize("name", METHODS)
def test_code_maps_of_method_pages_name_what_exists(name):
    rows = [line for line in section(name, "Where it is in the code").splitlines() if line.startswith("| ")]
    assert len(rows) > 5, "head and rows"
    for row in rows[1:]:
        named = re.findall(r"`([^`]+)`", row.rstrip("| ").rpartition(" | ")[2])
        assert named, row
        for code in named:
            if "/" in code:
                assert (ROOT / code).is_file(), code
            else:
                assert code.startswith("thurl."), code
                pkgutil.resolve_name(code)


def test_every_recipe_is_on_the_page_of_its_method():
    named = {name: set(re.findall(r"recipes/[\w/]+\.yaml", section(name, "Recipes"))) for name in METHODS}
    assert all(named.values()), named
    shipped = {relative(path) for path in (ROOT / "recipes").rglob("*.yaml")}
    assert set().union(*named.values()) == shipped


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
