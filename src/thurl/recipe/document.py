"""Read a recipe file: safe YAML with line numbers, an optional executable header, command-line overrides.

A recipe may be a Python program at the same time: its first line after the comments is `HEADER`, its last line
`FOOTER`. Python sees a one-line `if` whose body is a raw string holding the whole recipe; YAML sees one more key,
which is dropped here, and a comment. Hence `accelerate launch recipes/x.yaml` works, because launchers run
`python <file>`.

Numbers and words follow YAML 1.2: `1e-6` is a number, `no`, `on` and `1:30` are text. (YAML 1.1 reads `1e-6` as text
and `save_strategy: no` as false, which are two classic ways to train something else than what is written.)
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from thurl.errors import UsageError
from thurl.messages import printable, shown


__all__ = ["FOOTER", "HEADER", "Document", "Location", "find_file", "parse_value", "read_document", "written"]

HEADER = 'if __name__ == "__main__" and __import__("thurl").launch(__file__): r"""'
FOOTER = '# """'

_HEADER_KEY, _HEADER_VALUE = HEADER.rsplit(": ", 1)
_MAX_BYTES = 256 * 1024
_MAX_NODES = 20_000
_MAX_DEPTH = 32

Location = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """Composes nodes only; plain words and numbers are resolved by YAML 1.2 rules."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|)$"), ["~", "n", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN))$"
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


class _Dumper(yaml.SafeDumper):
    """Quotes what is a number for YAML 1.2 only (the text `1e-6`), besides what is one for YAML 1.1."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


@dataclass(frozen=True)
class Document:
    """A recipe file as plain data that remembers where each value came from.

    Attributes:
        path: the file.
        data: dicts, lists and scalars, overrides applied.
        lines: line (counted from 1) of every key and list item in the file, by its path.
        overrides: the overrides as given.
        executable: the file carries the executable header.
    """

    path: Path
    data: dict[str, Any]
    lines: dict[Location, int] = field(repr=False)
    overrides: tuple[str, ...] = ()
    executable: bool = False
    overridden: dict[Location, str] = field(default_factory=dict, repr=False)

    def where(self, path: Sequence[str | int]) -> str:
        """Where a value comes from: `file.yaml:12`, or the override that set it."""
        for length in range(len(path), 0, -1):
            head = tuple(path[:length])
            if head in self.overridden:
                return f"command line `{self.overridden[head]}`"
            if head in self.lines:
                return f"{self.path}:{self.lines[head]}"
        return str(self.path)

    def from_command_line(self, path: Sequence[str | int]) -> bool:
        """Whether an override set this value or a section around it."""
        return any(tuple(path[:length]) in self.overridden for length in range(1, len(path) + 1))


class _Builder:
    """Turns YAML nodes into plain data, counting nodes so that aliases cannot blow up."""

    def __init__(self, name: str):
        self.name = name
        self.problems: list[str] = []
        self.lines: dict[Location, int] = {}
        self.nodes = 0

    def build(self, node: yaml.Node, path: Location = ()) -> Any:
        self.nodes += 1
        if self.nodes > _MAX_NODES or len(path) > _MAX_DEPTH:
            raise UsageError(
                f"{self.name}: expands to more than {_MAX_NODES} values or {_MAX_DEPTH} levels (aliases that multiply "
                "each other?); a recipe is far smaller"
            )
        line = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            items = []
            for index, item in enumerate(node.value):
                self.lines[(*path, index)] = item.start_mark.line + 1
                items.append(self.build(item, (*path, index)))
            return items
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, line)
        self.problems.append(f"{self.name}:{line}: tag `{node.tag}` is refused; a recipe is plain data")
        return None

    def _mapping(self, node: yaml.MappingNode, path: Location) -> dict[str, Any]:
        if node.tag != "tag:yaml.org,2002:map":
            self.problems.append(
                f"{self.name}:{node.start_mark.line + 1}: tag `{node.tag}` is refused; a recipe is plain data"
            )
            return {}
        result: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self.build(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                self.problems.append(
                    f"{self.name}:{line}: key {shown(key)} is not text; keys are plain words (quote it if need be)"
                )
            elif key == "<<":
                self.problems.append(f"{self.name}:{line}: merge keys (`<<`) are refused; write the values out")
            elif key in first:
                self.problems.append(
                    f"{self.name}:{line}: key `{key}` is given twice (first on line {first[key]}); remove one"
                )
            else:
                first[key] = self.lines[(*path, key)] = line
                result[key] = self.build(value_node, (*path, key))
        return result

    def _scalar(self, node: yaml.ScalarNode, line: int) -> Any:
        kind, text = node.tag.removeprefix("tag:yaml.org,2002:"), node.value
        try:
            match kind:
                case "str":
                    return text
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text]
                case "int":
                    return int(text)
                case "float":
                    # Python writes infinity and not-a-number without YAML's dot.
                    return float(re.sub(r"\.(?=[iInN])", "", text))
        except (KeyError, ValueError):
            self.problems.append(f"{self.name}:{line}: {text[:40]!r} is not a valid {kind}")
            return None
        self.problems.append(f"{self.name}:{line}: tag `{node.tag}` is refused; a recipe is plain data")
        return None


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        raise UsageError(printable(f"{place}: not valid YAML: {error.problem or error.context}")) from None
    except yaml.YAMLError as error:
        raise UsageError(printable(f"{name}: not valid YAML: {' '.join(str(error).split())}")) from None
    except RecursionError:
        raise UsageError(f"{name}: nested too deeply; a recipe has at most {_MAX_DEPTH} levels") from None


def parse_value(text: str) -> Any:
    """Value of an override: a YAML scalar (`2e-6`, `true`, `null`, text) or a flow list or mapping.

    Raises:
        UsageError: not valid YAML.
    """
    node = _compose(text, f"value {text[:60]!r}")
    if node is None:
        return None
    builder = _Builder(f"value {text[:60]!r}")
    value = builder.build(node)
    if builder.problems:
        raise UsageError(builder.problems)
    return value


def written(data: Any) -> str:
    """Plain data as a YAML text that `read_document` reads as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=119)


def read_document(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Document:
    """Read a recipe file and apply `a.b.c=value` overrides (numbers index lists: `data.train.0.images=/data`).

    Nothing in the file is executed and no Python object is built from it.

    Raises:
        UsageError: unreadable, too large, not UTF-8, not valid YAML, duplicate keys, tags, aliases that multiply,
            an executable header that would run something else, or an override that does not fit; all problems.
    """
    path = Path(path)
    text = _read_text(path)
    builder = _Builder(str(path))
    node = _compose(text, str(path))
    data = builder.build(node) if node is not None else {}
    if not isinstance(data, dict):
        raise UsageError(f"{path}:1: a recipe is a mapping of sections (`method:`, `model:` ...), not {shown(data)}")
    problems = builder.problems
    executable = any(key.startswith("if __name__") for key in data)
    if executable:
        problems += _header_problems(text, str(path))
        data = {key: value for key, value in data.items() if not key.startswith("if __name__")}
    overrides = tuple(overrides)
    overridden: dict[Location, str] = {}
    for override in overrides:
        try:
            overridden[_apply(data, override)] = override
        except UsageError as error:
            problems += error.problems
    if problems:
        raise UsageError([printable(problem) for problem in problems])
    return Document(path, data, builder.lines, overrides, executable, overridden)


def _read_text(path: Path) -> str:
    try:
        if not path.is_file():
            kind = "is a folder" if path.is_dir() else "does not exist"
            raise UsageError(f"recipe {path} {kind}; `thurl list` shows the recipes that ship")
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"recipe {path} cannot be read: {error.strerror or error}") from None
    if len(raw) > _MAX_BYTES:
        raise UsageError(f"recipe {path} is larger than {_MAX_BYTES // 1024} KiB, which no recipe is")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"recipe {path} is not UTF-8 text (byte {error.start})") from None


def _header_problems(text: str, name: str) -> list[str]:
    """An executable recipe must be exactly the header, one string and the footer: nothing else may run."""
    rows = text.rstrip().splitlines()
    number = next((i for i, row in enumerate(rows, 1) if row.strip() and not row.startswith("#")), 1)
    found = []
    if rows[number - 1] != HEADER:
        found.append(f"{name}:{number}: the first line after the comments must be exactly `{HEADER}`")
    if rows[-1] != FOOTER:
        found.append(f"{name}:{len(rows)}: the last line must be exactly `{FOOTER}`")
    if found:
        return found
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError) as error:
        return [f"{name}:{getattr(error, 'lineno', None) or number}: not valid Python: {error}"]
    statement = body[0]
    only_text = (
        len(body) == 1
        and isinstance(statement, ast.If)
        and len(statement.body) == 1
        and isinstance(statement.body[0], ast.Expr)
        and isinstance(statement.body[0].value, ast.Constant)
    )
    return [] if only_text else [f'{name}:{number}: `"""` inside the recipe would run the text after it as Python']


def _apply(data: dict[str, Any], override: str) -> Location:
    """Set one value in place; returns its path."""
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise UsageError(
            f"override `{override}` must look like `section.key=value`, e.g. `training.learning_rate=2e-6`"
        )
    value = parse_value(text)
    path: list[str | int] = []
    target: Any = data
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(target, list):
            if not key.isdecimal() or int(key) >= len(target):
                raise UsageError(
                    f"override `{override}`: `{'.'.join(map(str, path))}` is a list of {len(target)}; `{key}` is no "
                    "index of it (counted from 0)"
                )
            step: str | int = int(key)
        elif isinstance(target, dict):
            step = key
            if not last and target.get(key) is None:
                target[key] = {}
        else:
            raise UsageError(
                f"override `{override}`: `{'.'.join(map(str, path))}` is {shown(target)}, it has no key `{key}`"
            )
        path.append(step)
        if last:
            target[step] = value
        else:
            target = target[step]
    return tuple(path)


def find_file(name: str, recipe: Path) -> Path | None:
    """Look for a file or folder named in a recipe: as given, then beside the recipe and up to three folders above it.

    So `deepspeed_configs/zero3.json` is found from any working directory.
    """
    wanted = Path(name).expanduser()
    if wanted.is_absolute():
        return wanted if wanted.exists() else None
    folder = recipe.resolve().parent
    for base in (Path.cwd(), folder, *list(folder.parents)[:3]):
        if (base / wanted).exists():
            return wanted if base == Path.cwd() else base / wanted
    return None
