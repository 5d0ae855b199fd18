"""The page of equations: every function is there, public, in its file, names its source and has the test beside it."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "equations.md"
LINK = re.compile(r"\[`([\w./]+)`\]\(\.\./([\w./]+)\)")
PAPERS = (
    "2505.14460", "2506.05713", "2501.02207", "2507.22824", "2503.11221", "2504.14600", "2507.17221", "2503.04655",
    "2411.01948", "2408.16305",
)  # fmt: skip


def rows():
    paper = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if found := re.search(r"\[arXiv ([\d.]+)\]", line):
            paper = found[1]
        if line.startswith("| ") and (links := LINK.findall(line)):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            yield pytest.param(paper, cells, links, id=links[0][0] + ": " + cells[0])


def lookup(name):
    """What a dotted name means, and the module and first attribute on the way to it."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:length])
        try:
            if importlib.util.find_spec(module_name) is None:
                continue
        except ModuleNotFoundError:  # the parent is a module, not a package
            continue
        found = module = importlib.import_module(module_name)
        for part in parts[length:]:
            found = getattr(found, part)
        return found, module, parts[length:]
    raise AssertionError(f"{name} is in no module")


def code_of(found):
    """The function itself: of a property, of a value that is computed once, behind decorators."""
    return inspect.unwrap(getattr(found, "fget", None) or getattr(found, "func", found))


def test_the_ten_papers_are_there():
    found = {row.values[0] for row in rows()}
    assert found == set(PAPERS)


@pytest.mark.parametrize(("paper", "cells", "links"), list(rows()))
def test_an_equation_is_where_the_page_says(paper, cells, links):
    assert len(cells) == 5, cells
    (name, file), (_, test) = links
    found, module, attributes = lookup(name)
    assert attributes[0] in module.__all__ or attributes[0] in importlib.import_module(module.__package__).__all__
    assert not any(part.startswith("_") for part in attributes)
    function = code_of(found)
    assert Path(inspect.getsourcefile(function)) == ROOT / file
    word = attributes[-2] if attributes[-1] == "forward" else attributes[-1]
    assert re.search(rf"\b{word}\b", (ROOT / test).read_text(encoding="utf-8")), f"{test} does not use {word}"


@pytest.mark.parametrize(("paper", "cells", "links"), list(rows()))
def test_an_equation_names_its_source(paper, cells, links):
    """Its own docstring, its class's or its file's: the number of the paper, or the name the page's section has."""
    source = cells[1]
    if source.startswith("ours"):
        pytest.skip("ours has no source to name")
    found, module, attributes = lookup(links[0][0])
    home = importlib.import_module(code_of(found).__module__)
    owner = getattr(module, attributes[0])
    text = "\n".join(inspect.getdoc(part) or "" for part in (found, owner, home))
    numbers = re.findall(r"\d{4}\.\d{5}", source) or [paper]
    names = {"2503.11221": "A-FINE", "2503.04655": "CLDyB", "2504.14600": "NTIRE", "2505.14460": "Q-Insight"}
    assert any(number in text or (number in names and names[number] in text) for number in numbers), text
