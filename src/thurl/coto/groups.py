"""Which adapters share a draw: pure functions of module paths, no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from thurl.errors import UsageError


__all__ = ["group_modules", "initial_by_group", "layer_key", "plain_path", "select", "tower_of"]

# Parts that wrappers put into a path: they must not make a group of their own or depend on how the model was wrapped.
_WRAPPERS = {"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
_PEFT_ROOT = ("base_model", "model")

_BETWEEN = re.compile(r"merger|projector|connector|aligner|abstractor|resampler")
_VISION = re.compile(r"^(visual|vision|image|vit$)")
_AUDIO = re.compile(r"^(audio|speech)")


def plain_path(path: str) -> str:
    """Module path without what PEFT, DDP, FSDP and torch.compile add.

    Nested `ParamWrapper`s of PEFT (several parameters of one mixture-of-experts module) are `...base_layer` of each
    other; they are one adapted module and get one path.
    """
    parts = [part for part in path.split(".") if part not in _WRAPPERS]
    if tuple(parts[:2]) == _PEFT_ROOT:
        parts = parts[2:]
    while parts and parts[-1] == "base_layer":
        parts.pop()
    return ".".join(parts)


def layer_key(path: str) -> str:
    """The path up to and including its last number: `model.layers.12`. A path without one is its own key."""
    parts = path.split(".")
    for index in range(len(parts) - 1, -1, -1):
        if parts[index].isdecimal():
            return ".".join(parts[: index + 1])
    return path


def tower_of(path: str) -> str | None:
    """ "vision", "audio", "language", or None for what lies between two towers (merger, projector).

    A path component that begins with `visual`, `vision` or `image` (or is `vit`) tells a vision tower, `audio` or
    `speech` an audio tower; everything else belongs to the language model.
    """
    parts = path.split(".")
    if any(_BETWEEN.search(part) for part in parts):
        return None
    if any(_VISION.search(part) for part in parts):
        return "vision"
    if any(_AUDIO.search(part) for part in parts):
        return "audio"
    return "language"


def select(paths: Sequence[str], include: Sequence[str] | None, exclude: Sequence[str] | None) -> list[int]:
    """Positions of the paths in which a pattern of `include` is found (None: all) and none of `exclude`."""
    return [
        index
        for index, path in enumerate(paths)
        if (include is None or any(re.search(pattern, path) for pattern in include))
        and not any(re.search(pattern, path) for pattern in exclude or ())
    ]


def initial_by_group(groups: Mapping[str, Sequence[str]], initial_p: float | Mapping[str, float]) -> tuple[float, ...]:
    """p0 of each group.

    Args:
        groups: key to module paths.
        initial_p: one for all; or regular expression to p0, where the first that is found in a path of the group
            counts ("" is found in every path).

    Raises:
        UsageError: groups that no expression fits.
    """
    if not isinstance(initial_p, Mapping):
        return (initial_p,) * len(groups)
    found = {
        key: next((p for pattern, p in initial_p.items() if any(re.search(pattern, path) for path in paths)), None)
        for key, paths in groups.items()
    }
    missing = [key for key, p in found.items() if p is None]
    if missing:
        raise UsageError(
            f"`initial_p` has no expression for {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}: each "
            f"group of adapters needs one of {', '.join(map(repr, initial_p))}; add '' at the end for all others."
        )
    return tuple(p for p in found.values() if p is not None)


def group_modules(paths: Sequence[str], by: str | int | Callable[[str], str]) -> dict[str, list[int]]:
    """Group adapted modules.

    Args:
        paths: plain module paths in the order of `named_modules`; the same path twice is one module.
        by: "layer", "module", a number of modules per chunk, or a function from path to key.

    Returns:
        Key to positions in `paths`, keys in the order of first appearance.

    Raises:
        UsageError: a function whose key is not a text, or an unknown `by`.
    """
    groups: dict[str, list[int]] = {}
    if isinstance(by, int) and not isinstance(by, bool):
        order = {path: number for number, path in enumerate(dict.fromkeys(paths))}
        for index, path in enumerate(paths):
            groups.setdefault(f"chunk {order[path] // by}", []).append(index)
        return groups
    if by == "layer":
        key: Callable[[str], str] = layer_key
    elif by == "module":
        key = str
    elif callable(by):
        key = by
    else:
        raise UsageError(f"`group_by` is {by!r}; it is 'layer', 'module', a number or a function.")
    for index, path in enumerate(paths):
        name = key(path)
        if not isinstance(name, str):
            raise UsageError(f"`group_by` gave {name!r} for {path!r}; a key is a text.")
        groups.setdefault(name, []).append(index)
    return groups
