"""Label graphs: which combinations of fake, altered attributes and altered regions can be.

"Semantics-Oriented Multitask Learning for DeepFake Detection: A Joint Embedding Approach" (arXiv 2408.16305). One node
says whether a face is fake, below it are global attributes, below these local regions. A combination of answers is
legal if

- a node is on only where one of its parents is on, the first node excepted,
- a global node is on only where one of its children is on, if it has any,
- no two nodes that exclude each other are on together (the official graphs have none of these).

"Fake and nothing else" is legal. A graph is plain data, a YAML file or a dictionary of the same form; two ship with
thurl. Reading and checking labels needs no torch.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from thurl.errors import DataError, UsageError
from thurl.forensics.deepfake.graph_checks import LEVELS, form_problems, legal_states, node_problems, state_problems
from thurl.messages import nearest, shown


if TYPE_CHECKING:
    import torch

__all__ = ["SHIPPED", "UNKNOWN", "LabelGraph", "Node", "graph_from", "load_graph"]

logger = logging.getLogger(__name__)

SHIPPED = ("ffpp", "ffsc")
"""FaceForensics++ and FFSC."""

UNKNOWN = -1
"""Label of what is not known."""

_LONGEST = 1 << 20  # bytes of a file; a graph of 16 nodes has two thousand


@dataclass(frozen=True)
class Node:
    """One question about a face.

    Attributes:
        name: short, unique in its graph.
        level: one of `LEVELS`.
        word: what stands in the sentence.
        parents: names of nodes of the level above; none for the first node.
    """

    name: str
    level: str
    word: str
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelGraph:
    """Nodes, what goes together, and the sentences of a joint embedding.

    Attributes:
        name: of the graph.
        nodes: in the order of the columns: the binary node, then the global ones, then the local ones.
        templates: level to sentence, with `{}` for the word.
        exclusions: pairs of names that are never on together.
        manipulations: name of a way to make faces to the names of the nodes that are on in them.
        caution: what is not certain about the graph; "" if nothing.

    Raises:
        UsageError: with everything that is wrong.
    """

    name: str
    nodes: tuple[Node, ...]
    templates: Mapping[str, str]
    exclusions: tuple[tuple[str, str], ...] = ()
    manipulations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    caution: str = ""

    def __post_init__(self) -> None:
        problems = node_problems(self) or state_problems(self)
        if problems:
            raise UsageError([f"label graph {self.name}: {problem}" for problem in problems])

    # -- what it consists of -----------------------------------------------------------------------------------------

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(node.name for node in self.nodes)

    @cached_property
    def tasks(self) -> dict[str, slice]:
        """Level to its columns; a level without nodes is left out."""
        sizes = {level: sum(node.level == level for node in self.nodes) for level in LEVELS}
        ends = dict(zip(LEVELS, itertools.accumulate(sizes.values()), strict=True))
        return {level: slice(ends[level] - size, ends[level]) for level, size in sizes.items() if size}

    @cached_property
    def legal(self) -> np.ndarray:
        """(S, n) bool: all legal combinations in lexicographic order, the first column the most significant."""
        return legal_states(self)

    @cached_property
    def states(self) -> torch.Tensor:
        """`legal` as a tensor."""
        import torch

        return torch.from_numpy(self.legal)

    def prompts(self) -> list[str]:
        """One sentence per node."""
        return [self.templates[node.level].format(node.word) for node in self.nodes]

    def plain(self) -> dict[str, Any]:
        """What `graph_from` takes, JSON values."""
        return {
            "name": self.name,
            "caution": self.caution,
            "templates": dict(self.templates),
            "nodes": [
                {"name": node.name, "level": node.level, "word": node.word, "parents": list(node.parents)}
                for node in self.nodes
            ],
            "exclusions": [list(pair) for pair in self.exclusions],
            "manipulations": {name: list(on) for name, on in self.manipulations.items()},
        }

    def children(self, name: str) -> list[str]:
        """Names of the nodes below one."""
        return [node.name for node in self.nodes if name in node.parents]

    # -- labels ------------------------------------------------------------------------------------------------------

    def vector(self, manipulation: str) -> list[int]:
        """Labels (n,) of the faces that a known manipulation makes.

        Raises:
            UsageError: the graph does not know it.
        """
        if manipulation not in self.manipulations:
            raise UsageError(
                f"manipulation {manipulation!r} is not in the label graph {self.name}, which knows "
                f"{', '.join(self.manipulations) or 'none'}{nearest(manipulation, self.manipulations)}"
            )
        return [int(name in self.manipulations[manipulation]) for name in self.names]

    def row(self, labels: Mapping[str, Any] | Sequence[Any]) -> list[int]:
        """Labels as a list over the columns of 1, 0 and -1, which is unknown.

        Args:
            labels: by name, where a name that is missing is unknown, or one per column; 1, 0, true, false, and None or
                -1 for unknown.

        Raises:
            DataError: another value, a name that is no node, another number of labels.
        """
        if isinstance(labels, Mapping):
            if wrong := [name for name in labels if name not in self.names]:
                raise DataError(
                    f"label {shown(wrong[0])} is no node of the label graph {self.name} "
                    f"({', '.join(self.names)}){nearest(wrong[0], self.names)}"
                )
            values = [labels.get(name) for name in self.names]
        else:
            values = list(labels)
            if len(values) != len(self.names):
                raise DataError(f"{len(values)} labels; the label graph {self.name} has {len(self.names)} nodes")
        return [_label(name, value) for name, value in zip(self.names, values, strict=True)]

    def problem(self, labels: Mapping[str, Any] | Sequence[Any]) -> str:
        """Why labels cannot be, "" if a legal combination agrees with all that are known.

        Args:
            labels: as `row` takes them.

        Raises:
            DataError: as `row`.
        """
        row = self.row(labels)
        if self.completable(row):
            return ""
        value = dict(zip(self.names, row, strict=True))
        for node in self.nodes:
            if value[node.name] != 1:
                continue
            if node.parents and all(value[parent] == 0 for parent in node.parents):
                return f"{node.name} is 1, but none of what it is a part of is ({', '.join(node.parents)})"
            children = self.children(node.name) if node.level == "global" else []
            if children and all(value[child] == 0 for child in children):
                return f"{node.name} is 1, but none of the regions it shows in is ({', '.join(children)})"
        for pair in self.exclusions:
            if all(value[name] == 1 for name in pair):
                return f"{' and '.join(pair)} exclude each other, and both are 1"
        known = ", ".join(f"{name} {label}" for name, label in value.items() if label != UNKNOWN)
        return f"no legal combination has {known}"

    def check(self, labels: Mapping[str, Any] | Sequence[Any]) -> None:
        """Raise if labels, all or some of them known, cannot be.

        Raises:
            DataError: says which rule they break.
        """
        if problem := self.problem(labels):
            raise DataError(f"illegal labels for the label graph {self.name}: {problem}")

    def completable(self, row: Sequence[int]) -> bool:
        """Whether a legal combination agrees with the known labels of a row (n,) of 1, 0 and -1."""
        known = np.asarray(row) != UNKNOWN
        return bool((self.legal[:, known] == (np.asarray(row)[known] == 1)).all(axis=1).any())

    def implied(self, row: Sequence[int]) -> list[int]:
        """A row with all unknown labels filled in that follow from the known ones: a real face has nothing altered.

        Args:
            row: (n,) of 1, 0 and -1.

        Raises:
            DataError: illegal labels.
        """
        self.check(row)
        known = np.asarray(row) != UNKNOWN
        left = self.legal[(self.legal[:, known] == (np.asarray(row)[known] == 1)).all(axis=1)]
        return [1 if column.all() else UNKNOWN if column.any() else 0 for column in left.T]


def load_graph(name_or_path: str | os.PathLike[str]) -> LabelGraph:
    """A label graph by its name or from a YAML file; what is not certain about it is logged.

    Args:
        name_or_path: one of `SHIPPED`, or a file like theirs.

    Raises:
        UsageError: no such graph, or everything that is wrong with it.
    """
    given = os.fspath(name_or_path)
    if given in SHIPPED:
        text = resources.files(__package__).joinpath("graphs", f"{given}.yaml").read_text(encoding="utf-8")
    else:
        text = _read(given)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"label graph {given}: not readable as YAML: {error}") from None
    graph = graph_from(content, where=given)
    if graph.caution:
        logger.warning("Label graph %s: %s.", graph.name, " ".join(graph.caution.split()))
    return graph


def graph_from(content: Any, where: str = "label graph") -> LabelGraph:
    """A label graph from plain data: what a YAML file holds, or `LabelGraph.plain` gave.

    Args:
        content: mapping with `name`, `nodes`, `templates` and, where there are any, `exclusions`, `manipulations` and
            `caution`. A node has `name`, `level`, `parents` and `word`, its name where that is missing.
        where: what messages call it.

    Raises:
        UsageError: everything that is wrong.
    """
    problems = form_problems(content)
    if problems:
        raise UsageError([f"{where}: {problem}" for problem in problems])
    return LabelGraph(
        name=content["name"],
        nodes=tuple(
            Node(row["name"], row["level"], row.get("word", row["name"]), tuple(row.get("parents") or ()))
            for row in content["nodes"]
        ),
        templates=dict(content["templates"]),
        exclusions=tuple(tuple(pair) for pair in content.get("exclusions") or ()),
        manipulations={name: tuple(on) for name, on in (content.get("manipulations") or {}).items()},
        caution=content.get("caution") or "",
    )


def _read(path: str) -> str:
    file = Path(path)
    if not file.is_file():
        raise UsageError(
            f"label graph {path!r}: neither one of {', '.join(SHIPPED)} nor a file{nearest(path, SHIPPED)}"
        )
    if file.stat().st_size > _LONGEST:
        raise UsageError(f"label graph {path}: {file.stat().st_size} bytes; at most {_LONGEST} are read")
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"label graph {path}: not readable: {error}") from None


def _label(name: str, value: Any) -> int:
    if value is None:
        return UNKNOWN
    if not isinstance(value, int | np.integer) or value not in (0, 1, UNKNOWN):
        raise DataError(f"label {name} is {shown(value)}; it must be 0, 1 or null, which is unknown")
    return int(value)
