"""Which picture files are compared with which references."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from thurl.data.image_files import find_images


__all__ = ["Match", "Pair", "pair_files"]

Match = Literal["name", "prefix"]


@dataclass(frozen=True)
class Pair:
    """A picture and its reference.

    Attributes:
        dis: path of the picture.
        ref: path of the reference; None for scoring without one, and where none was found.
        problem: why there is no reference; empty otherwise.
    """

    dis: str
    ref: str | None = None
    problem: str = ""


def pair_files(
    ref: str | os.PathLike[str] | None,
    dis: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    recursive: bool = False,
    match: Match = "name",
) -> tuple[list[Pair], list[str]]:
    """Pictures of a file or folder with their references.

    Args:
        ref: a file, the reference of every picture; a folder with one reference per picture or per group of
            pictures; None for none.
        dis: picture files and folders.
        recursive: also pictures in subfolders, of both sides.
        match: how a folder of references is searched. "name": the same path below its folder, whatever the ending
            (`0001.png` for `0001.jpg`). "prefix": the longest reference name that the picture's name is or begins
            with, up to a character that is no letter or digit (`0001.png` for `swinir/0001_x4.png`), in any subfolder.

    Returns:
        One pair per picture, in order, with a problem where no reference or several fit; and the references that no
        picture asked for.

    Raises:
        DataError: files or folders that do not exist, or hold no pictures.
    """
    inputs = [dis] if isinstance(dis, str | os.PathLike) else list(dis)
    roots = [Path(item).expanduser() for item in inputs]
    pictures = find_images(roots, recursive=recursive)
    if ref is None:
        return [Pair(str(picture)) for picture in pictures], []
    root = Path(ref).expanduser()
    references = find_images([root], recursive=recursive)
    if not root.is_dir():
        return [Pair(str(picture), str(references[0])) for picture in pictures], []
    known: dict[str, list[str]] = {}
    for reference in references:
        known.setdefault(_key(reference, [root], match), []).append(str(reference))
    pairs = [_pair(picture, _key(picture, roots, match), known, root, match) for picture in pictures]
    used = {pair.ref for pair in pairs}
    return pairs, [str(reference) for reference in references if str(reference) not in used]


def _key(path: Path, roots: list[Path], match: Match) -> str:
    if match == "name":
        for root in roots:
            if root.is_dir() and path.is_relative_to(root):
                return path.relative_to(root).with_suffix("").as_posix()
    return path.stem


def _pair(picture: Path, key: str, known: dict[str, list[str]], root: Path, match: Match) -> Pair:
    found = known.get(key)
    if found is None and match == "prefix":
        # From the longest beginning down; a name may only end where a letter or digit does not go on.
        ends = [end for end in range(len(key) - 1, 0, -1) if not key[end].isalnum() and key[:end] in known]
        found = known[key[: ends[0]]] if ends else None
    if found is None:
        hint = "; with `prefix` the beginning of a name is enough" if match == "name" else ""
        return Pair(str(picture), None, f"no reference for {key!r} in {root}{hint}")
    if len(found) > 1:
        return Pair(str(picture), None, f"{len(found)} references fit: {', '.join(found[:3])}; leave one")
    return Pair(str(picture), found[0])
