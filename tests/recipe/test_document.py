from __future__ import annotations

import math
import runpy

import pytest

from thurl.errors import UsageError
from thurl.recipe.document import FOOTER, HEADER, find_file, parse_value, read_document


def write(tmp_path, text, name="recipe.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(call):
    with pytest.raises(UsageError) as error:
        call()
    return error.value.problems


def test_scalars_follow_yaml_1_2(tmp_path):
    text = """
    rate: 1e-6
    strategy: no
    time: 1:30
    flag: true
    nothing: null
    octal: 010
    count: -3
    half: .5
    big: 1_000
    date: 2024-01-02
    """
    assert read_document(write(tmp_path, text)).data == {
        "rate": 1e-6,
        "strategy": "no",
        "time": "1:30",
        "flag": True,
        "nothing": None,
        "octal": "010",
        "count": -3,
        "half": 0.5,
        "big": "1_000",
        "date": "2024-01-02",
    }
    assert parse_value(".inf") == math.inf and math.isnan(parse_value(".nan"))
    assert parse_value("-.inf") == -math.inf


def test_lines_are_remembered(tmp_path):
    document = read_document(write(tmp_path, "a: 1\nb:\n  c:\n    - x\n    - {d: 2}\n"))
    assert document.where(("b", "c", 1, "d")).endswith("recipe.yaml:5")
    assert document.where(("b", "c", 0)).endswith(":4")
    assert document.where(("b", "missing")).endswith(":2")


def test_duplicate_keys_name_both_lines(tmp_path):
    path = write(tmp_path, "a: 1\nb:\n  x: 1\n  x: 2\na: 3\n")
    found = problems_of(lambda: read_document(path))
    assert len(found) == 2
    assert ":4: key `x` is given twice (first on line 3)" in found[0]
    assert ":5: key `a` is given twice (first on line 1)" in found[1]


def test_alias_bombs_are_refused_quickly(tmp_path):
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert "expands to more than" in problems_of(lambda: read_document(write(tmp_path, "\n".join(rows))))[0]


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a, c: *a}"])
def test_recursive_aliases_are_refused(tmp_path, text):
    assert "expands to more than" in problems_of(lambda: read_document(write(tmp_path, text)))[0]


def test_plain_aliases_work(tmp_path):
    assert read_document(write(tmp_path, "a: &x [1]\nb: *x")).data == {"a": [1], "b": [1]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: !!python/object/apply:os.system [ls]",
            "tag `tag:yaml.org,2002:python/object/apply:os.system` is refused",
        ),
        ("a: !env HOME", "tag `!env` is refused"),
        ("a: !!int x", "'x' is not a valid int"),
        ("a: {<<: {b: 1}}", "merge keys"),
        ("1: a", "key 1 (int) is not text"),
        ("? [a]\n: b", "is not text"),
        ("- a", "a recipe is a mapping"),
        ("just text", "a recipe is a mapping"),
        ("a: [1", "not valid YAML"),
        ("a: 1\n\tb: 2", "recipe.yaml:2: not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: " + "[" * 60 + "]" * 60, "levels"),
        ("a: \x07", "not valid YAML"),
        ("#" * 300_000, "larger than"),
        ("a: 9" + "9" * 5000, "is not a valid int"),
    ],
)
def test_refused(tmp_path, text, message):
    assert message in problems_of(lambda: read_document(write(tmp_path, text)))[0]


def test_unreadable_files(tmp_path):
    assert "does not exist" in problems_of(lambda: read_document(tmp_path / "no.yaml"))[0]
    assert "is a folder" in problems_of(lambda: read_document(tmp_path))[0]
    (tmp_path / "latin.yaml").write_bytes("a: ä".encode("latin-1"))
    assert "not UTF-8" in problems_of(lambda: read_document(tmp_path / "latin.yaml"))[0]


def test_overrides(tmp_path):
    path = write(tmp_path, "a: {b: 1}\nlist:\n  - {x: 1}\n  - {x: 2}\nempty:\n")
    overrides = ["a.b=2e-6", "list.1.x=/data/my pictures", "new.key=[1, two]", "empty.k=null", "a.c=x=y"]
    document = read_document(path, overrides)
    assert document.data == {
        "a": {"b": 2e-6, "c": "x=y"},
        "list": [{"x": 1}, {"x": "/data/my pictures"}],
        "empty": {"k": None},
        "new": {"key": [1, "two"]},
    }
    assert document.where(("a", "b")) == "command line `a.b=2e-6`"
    assert document.from_command_line(("list", 1, "x")) and not document.from_command_line(("list", 0, "x"))
    assert document.overrides == tuple(overrides)


def test_wrong_overrides_are_all_named(tmp_path):
    path = write(tmp_path, "a: {b: 1}\nlist: [1]\n")
    found = problems_of(lambda: read_document(path, ["a.b.c=1", "list.7=1", "list.x=1", "novalue", "a..b=1", "a.b=["]))
    assert len(found) == 6
    assert "is 1 (int), it has no key `c`" in found[0]
    assert "is a list of 1; `7` is no index" in found[1]


def executable(body, header=HEADER, footer=FOOTER):
    return f"# what it does\n\n{header}\n{body}\n{footer}\n"


def test_executable_header_is_dropped(tmp_path):
    document = read_document(write(tmp_path, executable('method: x\npath: "C:\\\\new"\nquote: \'""\'')))
    assert document.executable
    assert document.data == {"method": "x", "path": "C:\\new", "quote": '""'}
    assert document.lines["method",] == 4


def test_executable_recipe_is_python_that_does_nothing_when_imported(tmp_path):
    path = write(tmp_path, executable("method: x"), "recipe.py")
    runpy.run_path(str(path), run_name="__mp_main__")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (executable("a: 1", header=HEADER.replace("thurl", "thurll")), "must be exactly"),
        (executable("a: 1", footer="# end"), "the last line must be exactly"),
        (executable('a: 1\n# """\nimport os\n#r"""'), "would run the text after it"),
        (executable('a: 1\n# """; import os; r"""'), "would run the text after it"),
        ("b: 2\n" + executable("a: 1"), "first line after the comments"),
    ],
)
def test_executable_recipe_cannot_smuggle_code(tmp_path, text, message):
    found = problems_of(lambda: read_document(write(tmp_path, text)))
    assert any(message in line or "not valid" in line for line in found)


def test_files_are_found_around_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "a.json").write_text("{}")
    (tmp_path / "recipes" / "tiny").mkdir(parents=True)
    recipe = tmp_path / "recipes" / "tiny" / "r.yaml"
    recipe.write_text("a: 1")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert find_file("configs/a.json", recipe) == tmp_path / "configs" / "a.json"
    monkeypatch.chdir(tmp_path)
    assert str(find_file("configs/a.json", recipe)) == "configs/a.json"
    assert find_file("configs/b.json", recipe) is None
