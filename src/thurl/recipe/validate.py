"""From a recipe file to a checked recipe object: every problem at once, each with its line, without heavy imports."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from thurl.data.labels import LABEL_FORMATS
from thurl.errors import UsageError
from thurl.hub.secrets import without_secrets
from thurl.messages import closest, nearest, printable, shown
from thurl.recipe.document import Document, Location, find_file, read_document
from thurl.recipe.fields import Problem
from thurl.recipe.methods import METHODS, load_attribute
from thurl.recipe.schemas import load_schema
from thurl.recipe.sections import Section, format_tag
from thurl.text.questions import QUESTION_FORMATS


__all__ = ["LoadedRecipe", "load_recipe", "resolved"]


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that passed validation.

    Attributes:
        recipe: the method's recipe object; files it names have been looked up.
        document: the file it came from.
        missing: data files that are not here yet and whose source says where to get them. They stop a run (exit 3),
            not a validation.
    """

    recipe: Any
    document: Document
    missing: tuple[str, ...] = ()


def load_recipe(path: str | Path, overrides: Iterable[str] = (), *, processes: int | None = None) -> LoadedRecipe:
    """Read, override and validate a recipe. Needs no model, GPU or network and imports no torch.

    Args:
        path: recipe file.
        overrides: `a.b.c=value` strings.
        processes: number of processes to check batch sizes for; `None` for `WORLD_SIZE`, or 1.

    Raises:
        UsageError: all problems found, one message each: `file.yaml:12: training.lr: unknown key ...`.
    """
    document = read_document(path, overrides)
    recipe_class, problems = _recipe_class(document)
    data, missing, file_problems = _look_up_files(document, recipe_class)
    problems += file_problems
    sections, section_problems = _validate_sections(recipe_class, data)
    problems += section_problems
    # Combinations are judged even when single training fields are wrong; the recipe class leaves those out.
    problems += recipe_class.cross_problems({"training": data.get("training")} | sections, processes)
    if problems:
        unique = dict.fromkeys(
            _message(document, where, text) for where, text in sorted(problems, key=_order(document))
        )
        raise UsageError(list(unique))
    # Unchecked: each section was validated alone, the combinations above, for `processes` rather than this launch.
    return LoadedRecipe(recipe_class.model_construct(**sections), document, tuple(missing))


def resolved(recipe: Any, *, defaults: bool = False) -> dict[str, Any]:
    """A recipe as plain data with every section's defaults filled in; `defaults` adds the trainer's as well.

    Fields without a use under the recipe's other values are left out, so the result is a recipe that says the same.
    """
    recipe_class = type(recipe)
    data = _used(recipe, recipe.model_dump(mode="json"))
    if defaults:
        given = data["training"]
        fields = load_schema(_schema_of(recipe_class))["fields"]
        training = {name: field["default"] for name, field in fields.items()} | given
        sections = {name: getattr(recipe, name) for name in recipe_class.model_fields}
        problems = recipe_class.cross_problems(sections | {"training": training})
        refused = {path[1] for path, _ in problems if path[0] == "training" and len(path) > 1}
        data["training"] = {name: value for name, value in training.items() if name in given or name not in refused}
    return data


def _used(value: Any, data: Any) -> Any:
    """`data`, which is `value` as JSON values, without the fields that its sections call unused."""
    if isinstance(value, Section):
        unused = value.unused()
        return {name: _used(getattr(value, name), item) for name, item in data.items() if name not in unused}
    if isinstance(value, Mapping):
        return {name: _used(item, data[name]) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_used(*pair) for pair in zip(value, data, strict=True)]
    return data


def _schema_of(recipe_class: Any) -> str:
    """The trainer whose fields `training` holds."""
    return getattr(recipe_class, "training_schema", "grpo_config")


def _recipe_class(document: Document) -> tuple[Any, list[Problem]]:
    """Class of the method, or of the one that was probably meant, so that the rest can be checked as well."""
    method = document.data.get("method")
    if isinstance(method, str) and method in METHODS:
        return load_attribute(METHODS[method].recipe), []
    if "method" in document.data:
        message = f"{shown(method)} is not one of {', '.join(METHODS)}{nearest(method, METHODS)}"
    else:
        message = f"required key `method` is missing (one of {', '.join(METHODS)})"
    meant = next(iter(METHODS)) if len(METHODS) == 1 else closest(method, METHODS)
    if meant is None:
        raise UsageError(_message(document, ("method",), message))
    return load_attribute(METHODS[meant].recipe), [(("method",), message)]


def _order(document: Document) -> Any:
    def key(problem: Problem) -> tuple[int, str]:
        path = problem[0]
        lines = [document.lines[path[:n]] for n in range(len(path), 0, -1) if tuple(path[:n]) in document.lines]
        return (lines[0] if lines else 0, ".".join(map(str, path)))

    return key


def _message(document: Document, path: tuple[str | int, ...], text: str) -> str:
    return printable(without_secrets(f"{document.where(path)}: {'.'.join(map(str, path))}: {text}"))


# --- sections ---------------------------------------------------------------------------------------------------


def _validate_sections(recipe_class: Any, data: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Validate each section alone, so that one broken section hides no problem of another."""
    sections: dict[str, Any] = {}
    problems: list[Problem] = []
    fields, schema = dict(recipe_class.model_fields), _schema_of(recipe_class)
    for name in data:
        if name not in fields:
            problems.append(((name,), _unknown_section(name, fields, schema)))
    for name, field in fields.items():
        if name == "method":
            sections[name] = data.get(name)  # judged when the class was chosen
            continue
        if name not in data:
            if field.is_required():
                problems.append(((name,), f"required section `{name}:` is missing"))
            else:
                sections[name] = field.get_default(call_default_factory=True)
            continue
        annotation = typing.Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        if data[name] is None and not _allows_none(annotation) and not field.is_required():
            sections[name] = field.get_default(call_default_factory=True)  # `reward:` with every line commented out
            continue
        try:
            sections[name] = TypeAdapter(annotation).validate_python(data[name])
        except ValidationError as error:
            problems += _translate(error, name, annotation, data[name], schema)
    return sections, problems


def _unknown_section(name: str, fields: Mapping[str, Any], schema: str) -> str:
    hint = nearest(name, fields)
    if not hint and name in load_schema(schema)["fields"]:
        hint = f"; it belongs under `training:` (`training.{name}`)"
    return f"unknown section{hint or '; the sections are ' + ', '.join(fields)}"


def _translate(error: ValidationError, section: str, annotation: Any, data: Any, schema: str) -> list[Problem]:
    """Pydantic's errors in our words, with paths that exist in the recipe."""
    merged: dict[tuple[str | int, ...], list[str]] = {}
    for item in error.errors(include_url=False):
        location = tuple(part for part in item["loc"] if not (isinstance(part, str) and part.startswith("<")))
        kind, context = item["type"], item.get("ctx", {})
        if kind == "recipe_problems":
            for path, text in context["problems"]:
                merged.setdefault((section, *location, *path), []).append(text)
            continue
        if kind == "too_short" and context["actual_length"] < len(item["input"]):
            continue  # pydantic counts the items that are right, and the wrong ones are named already
        if kind == "union_tag_invalid" and context["discriminator"].startswith(format_tag.__name__):
            location, text = (*location, "format"), _unknown_format(item["input"], context["expected_tags"])
        elif kind in ("missing", "extra_forbidden"):
            *parents, key = location
            if kind == "missing":
                text = f"required key `{key}` is missing"
            else:
                owner = _model_at(annotation, item["loc"][:-1])
                text = f"unknown key `{key}`{_key_hint(str(key), owner, schema)}"
        else:
            location = _existing(location, data)
            value = shown(item["input"])
            if kind == "literal_error":
                text = f"is {value}, but must be {context['expected']}{nearest(item['input'], _choices(context))}"
            else:
                must = item["msg"].replace("Input should be", "must be").replace("Input should", "must")
                text = f"is {value}, but {_plain_words(must)}"
        merged.setdefault((section, *location), []).append(text)
    return [(path, _joined(texts)) for path, texts in merged.items()]


def _unknown_format(source: Any, tags: str) -> str:
    formats = [tag.strip(" '<>") for tag in tags.split(",")]
    given = source.get("format") if isinstance(source, Mapping) else None
    if given is None:
        return f"required key `format` is missing; the formats are {', '.join(formats)}"
    return f"`{printable(str(given))}` is not one of {', '.join(formats)}{nearest(str(given), formats)}"


def _plain_words(text: str) -> str:
    for kind, words in (("tuple", "list"), ("dictionary", "mapping"), ("string", "text"), ("integer", "whole number")):
        text = text.replace(f"valid {kind}", words)
    text = re.sub(
        r"(?:Tuple|List|Dictionary) should (have at \w+ \d+ items?) after validation, not \d+", r"must \1", text
    )
    return text.replace("must be a text", "must be text")


def _joined(texts: list[str]) -> str:
    """Several messages on one place are the branches of a union: `is X, but must be a or b`."""
    first, *others = dict.fromkeys(texts)
    if not others:
        return first
    head = first.partition(", but ")[0]
    return " or ".join([first, *(text.removeprefix(f"{head}, but must be ") for text in others)])


def _choices(context: Mapping[str, Any]) -> list[str]:
    return [part.strip().strip("'") for part in str(context["expected"]).replace(" or ", ", ").split(",")]


def _key_hint(key: str, owner: type[BaseModel] | None, schema: str) -> str:
    names = list(owner.model_fields) if owner else []
    hint = nearest(key, names)
    if not hint and key in load_schema(schema)["fields"]:
        hint = f"; it belongs under `training:` (`training.{key}`)"
    return hint or (f"; the keys are {', '.join(names)}" if names else "")


def _existing(location: tuple[str | int, ...], data: Any) -> tuple[str | int, ...]:
    """Cut off what pydantic appends for the branches of a union, which is no key of the recipe."""
    path: list[str | int] = []
    for part in location:
        if isinstance(data, dict) and part in data or isinstance(data, list) and isinstance(part, int):
            data = data[part]
            path.append(part)
        else:
            break
    return tuple(path)


def _allows_none(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation)


def _model_at(annotation: Any, location: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The section class that owns the keys at `location`, found along the annotations."""
    models = _models(annotation)
    for part in location:
        if isinstance(part, int):
            continue
        if part.startswith("<"):
            models = [model for model in models if _tag_of(model) == part] or models
            continue
        models = [inner for model in models if part in model.model_fields for inner in _models_of(model, part)]
    return models[0] if models else None


def _tag_of(model: type[BaseModel]) -> str | None:
    return getattr(model, "source_tag", None)


def _models_of(model: type[BaseModel], name: str) -> list[type[BaseModel]]:
    return _models(model.model_fields[name].annotation)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in typing.get_args(annotation) for model in _models(part)]


# --- files ------------------------------------------------------------------------------------------------------


def _look_up_files(document: Document, recipe_class: Any) -> tuple[dict[str, Any], list[str], list[Problem]]:
    """Replace the files a recipe names by where they are.

    A source that says where to `obtain` its files may lack them (`missing`); any other absent file is a mistake.
    """
    data = _copy(document.data)
    missing: dict[str, str] = {}
    problems: list[Problem] = []

    def look_up(holder: Any, path: tuple[str | int, ...], obtain: str | None = None) -> None:
        name = holder.get(path[-1]) if isinstance(holder, dict) else None
        if not isinstance(name, str) or not name:
            return
        found = find_file(name, document.path)
        if found is not None:
            holder[path[-1]] = str(found)
        elif obtain and not document.from_command_line(path):
            missing.setdefault(name, _message(document, path, f"{name} is not here; get it from {obtain}"))
        else:
            problems.append((path, f"{name} does not exist (looked in the working directory and around the recipe)"))

    for section, key in (("data", "train"), ("data", "validation"), ("evaluation", "sources")):
        holder = data.get(section)
        sources = holder.get(key) if isinstance(holder, dict) else None
        for index, source in enumerate(sources if isinstance(sources, list) else []):
            if not isinstance(source, dict):
                continue
            obtain = source.get("obtain") if isinstance(source.get("obtain"), str) else None
            for name in _file_keys(str(source.get("format"))):
                look_up(source, (section, key, index, name), obtain)
    look_up(data.get("training"), ("training", "deepspeed"))
    for pattern in getattr(recipe_class, "files", ()):
        for holder, path in _places(data, pattern):
            obtain = holder.get("obtain")
            look_up(holder, path, obtain if isinstance(obtain, str) else None)
    model = data.get("model")
    # Absent weights stop a run and not a validation, whatever names them.
    for key in getattr(recipe_class, "weights", ()):
        if isinstance(model, dict) and isinstance(model.get(key), str):
            model[key] = str(find_file(model[key], document.path) or model[key])
    if isinstance(model, dict) and isinstance(model.get("name_or_path"), str):
        found = find_file(model["name_or_path"], document.path)
        if found is not None and found.is_dir():
            model["name_or_path"] = str(found)
    return data, list(missing.values()), problems


def _places(data: Any, pattern: Location, done: Location = ()) -> Iterator[tuple[dict[str, Any], Location]]:
    """The mappings that hold the last key of `pattern`, with its path; `*` stands for every key of a mapping and every
    item of a list."""
    head, *rest = pattern
    if isinstance(data, list) and head == "*" and rest:
        for place, item in enumerate(data):
            yield from _places(item, tuple(rest), (*done, place))
    if not isinstance(data, dict):
        return
    if not rest:
        if head in data:
            yield data, (*done, head)
        return
    for key in list(data) if head == "*" else [head]:
        yield from _places(data.get(key), tuple(rest), (*done, key))


def _file_keys(source_format: str) -> tuple[str, ...]:
    if source_format in ("degraded_photos", "distorted_photos", "textures"):
        return ("photos",)
    if source_format in ("bundled_photos", "folder"):
        return ("folder",) if source_format == "folder" else ()
    if source_format in QUESTION_FORMATS:
        return ("file",)
    known = LABEL_FORMATS.get(source_format)
    usual = ("images", "references", "reference_list")
    return ("labels", *usual) if known is None or known.is_file else usual


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
