"""The rules of a label graph: its legal combinations, and what can be wrong with it, as messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from thurl.messages import nearest, shown


if TYPE_CHECKING:
    from thurl.forensics.deepfake.graph import LabelGraph

__all__ = ["LEVELS", "MOST_NODES", "form_problems", "legal_states", "node_problems", "state_problems"]

LEVELS = ("binary", "global", "local")
"""The three tasks, from the top."""

MOST_NODES = 16
"""All 2^n combinations are listed, so more are refused."""

_KEYS = ("name", "caution", "templates", "nodes", "exclusions", "manipulations")
_NODE_KEYS = ("name", "level", "word", "parents")


def form_problems(content: Any) -> list[str]:
    """What is not of the right form; whether it makes sense is for `LabelGraph` to say."""
    if not isinstance(content, Mapping):
        return [f"holds {shown(content)}; a mapping with the keys {', '.join(_KEYS)} is needed"]
    problems = [f"unknown key {shown(key)}{nearest(key, _KEYS)}" for key in content if key not in _KEYS]
    problems += [f"`{key}` is missing" for key in ("name", "templates", "nodes") if key not in content]
    for key in ("name", "caution"):
        if key in content and not isinstance(content[key], str):
            problems.append(f"`{key}` is {shown(content[key])}; text is needed")
    if not _is_mapping(content.get("templates", {}), str):
        problems.append("`templates` must give a sentence for each level")
    nodes = content.get("nodes", [])
    for place, row in enumerate(nodes if isinstance(nodes, list) else [nodes]):
        wrong = not isinstance(row, Mapping) or not isinstance(nodes, list)
        wrong = wrong or not all(isinstance(row.get(key, ""), str) for key in ("name", "level", "word"))
        if wrong or not row.get("name") or not row.get("level") or not _is_names(row.get("parents", [])):
            problems.append(
                f"node {place}: {shown(row)}; needed are `name`, `level`, and `parents` as a list of names"
            )
        else:
            problems += [
                f"node {row['name']}: unknown key {shown(key)}{nearest(key, _NODE_KEYS)}"
                for key in row
                if key not in _NODE_KEYS
            ]
    exclusions = content.get("exclusions") or []
    if not isinstance(exclusions, list) or not all(_is_names(pair) for pair in exclusions):
        problems.append("`exclusions` must be a list of pairs of names")
    if not _is_mapping(content.get("manipulations") or {}, list):
        problems.append("`manipulations` must give a list of names for each")
    return problems


def _is_mapping(value: Any, kind: type) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and (_is_names(item) if kind is list else isinstance(item, kind))
        for name, item in value.items()
    )


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def node_problems(graph: LabelGraph) -> list[str]:
    """What is wrong with the nodes and the names."""
    problems = []
    names = [node.name for node in graph.nodes]
    levels = {node.name: node.level for node in graph.nodes}
    if not 1 <= len(names) <= MOST_NODES:
        problems.append(
            f"{len(names)} nodes; 1 to {MOST_NODES} are possible, since all combinations are listed. Merge some"
        )
    problems += [f"two nodes are called {name}" for name in sorted({name for name in names if names.count(name) > 1})]
    for node in graph.nodes:
        if node.level not in LEVELS:
            problems.append(f"node {node.name} has the level {node.level!r}; it must be one of {', '.join(LEVELS)}")
            continue
        above = LEVELS[LEVELS.index(node.level) - 1] if node.level != "binary" else None
        wrong = [parent for parent in node.parents if above is None or levels.get(parent) != above]
        if wrong:
            rule = "the binary node has no parents" if above is None else f"its parents are {above} nodes"
            problems.append(f"node {node.name} has the parent {wrong[0]}{nearest(wrong[0], names)}; {rule}")
        if above is not None and not node.parents:
            problems.append(f"node {node.name} has no parents; name at least one {above} node")
    known = [level for level in levels.values() if level in LEVELS]
    if known.count("binary") != 1:
        problems.append(f"{known.count('binary')} binary nodes; exactly one is needed")
    if known != sorted(known, key=LEVELS.index):
        problems.append("nodes must be in the order binary, global, local")
    for level in dict.fromkeys(known):
        if not _is_template(graph.templates.get(level)):
            problems.append(f"the template of level {level} must be a sentence with one {{}} for the word")
    if extra := [level for level in graph.templates if level not in LEVELS]:
        problems.append(f"template {shown(extra[0])}: levels are {', '.join(LEVELS)}")
    listed: list[tuple[str, Iterable[str]]] = [("exclusions", pair) for pair in graph.exclusions]
    listed += [(f"manipulation {name}", on) for name, on in graph.manipulations.items()]
    for where, members in listed:
        problems += [f"{where}: {shown(m)} is no node{nearest(m, names)}" for m in members if m not in levels]
    problems += [
        f"exclusion {list(pair)} must name two nodes"
        for pair in graph.exclusions
        if len({*pair}) != 2 or len(pair) != 2
    ]
    return problems


def legal_states(graph: LabelGraph) -> np.ndarray:
    """All combinations that the rules of `thurl.forensics.deepfake.graph` allow: (S, n) bool, lexicographic order."""
    count = len(graph.nodes)
    rows = (np.arange(2**count)[:, None] >> np.arange(count - 1, -1, -1) & 1).astype(bool)
    place = {name: column for column, name in enumerate(graph.names)}
    fits = np.ones(len(rows), dtype=bool)
    for column, node in enumerate(graph.nodes):
        if node.parents:
            fits &= ~rows[:, column] | rows[:, [place[parent] for parent in node.parents]].any(axis=1)
        children = [place[child] for child in graph.children(node.name)]
        if node.level == "global" and children:
            fits &= ~rows[:, column] | rows[:, children].any(axis=1)
    for first, second in graph.exclusions:
        fits &= ~(rows[:, place[first]] & rows[:, place[second]])
    return rows[fits]


def state_problems(graph: LabelGraph) -> list[str]:
    """What is wrong with the legal combinations of a graph whose nodes are right."""
    never = [name for name, on in zip(graph.names, graph.legal.T, strict=True) if not on.any()]
    problems = [
        f"node {name} is on in no legal combination; mend its parents, children or exclusions" for name in never
    ]
    for name, on in graph.manipulations.items():
        if problem := graph.problem({node: int(node in on) for node in graph.names}):
            problems.append(f"manipulation {name}: {problem}")
    return problems


def _is_template(text: Any) -> bool:
    try:
        return isinstance(text, str) and text.format("a") != text.format("b") and text.count("{") == 1
    except (IndexError, KeyError, ValueError):
        return False
