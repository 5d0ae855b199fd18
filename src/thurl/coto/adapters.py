"""Low-rank adapters as PEFT saves them: read, checked, changed and written back, without a model and without pickle.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. Every adapted module has a pair of factors `A`
(r, in) and `B` (out, r) with the update `scaling * B @ A`, scaling alpha / r, or alpha / sqrt(r) for rsLoRA.
Kinds of adapters: :mod:`thurl.coto.kinds`.
Config fields, file names and tensor names: PEFT 0.21 (`peft.tuners.lora`, `peft.tuners.hira`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from thurl.coto.kinds import kind_of
from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.hub.fetch import hub_folder
from thurl.training.results import write_atomically


__all__ = [
    "Adapter",
    "Factors",
    "check_alike",
    "extra_mean",
    "layer_of",
    "natural",
    "read_adapter",
    "retarget",
    "wide",
    "write_adapter",
]

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."

_NAMES = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "magnitude",
    "hira_A": "a",
    "hira_B": "b",
    "hira_embedding_A": "a",
    "hira_embedding_B": "b",
}
_TENSOR = re.compile(rf"(?P<path>.+)\.(?P<name>{'|'.join(map(re.escape, _NAMES))})")
_STRANGE = re.compile(r"\.(lora|hira)_[A-Za-z_]+")


@dataclass(frozen=True)
class Factors:
    """One adapted module.

    Attributes:
        a: (r, in), in = input channels times kernel size for convolutions.
        b: (out, r). For embeddings in = vocabulary, out = width, and the layer adds the transposed product.
        scaling: factor in front of `b @ a`.
        magnitude: DoRA's vector with the shape PEFT gives it, else None.
        keys: names of the tensors in the file, per field.
        tails: dimensions behind the second one of `a` and of `b` in the file (kernel sizes), () for linear layers.
    """

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    magnitude: torch.Tensor | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    tails: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    @property
    def rank(self) -> int:
        """Number of rows of `a`."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the update."""
        return self.b.shape[0], self.a.shape[1]

    def delta(self) -> torch.Tensor:
        """`scaling * b @ a`, (out, in). Dense: for tests and small layers."""
        return self.scaling * (self.b @ self.a)


@dataclass(frozen=True)
class Adapter:
    """An adapter folder in memory. Operations make new ones; none changes its input.

    Attributes:
        kind: `lora`, `dora` or `hira`.
        config: contents of `adapter_config.json`.
        modules: path of the module in the base model -> factors, in file order sorted by `natural` path.
        extra: further trained tensors (`modules_to_save`, biases) by their name in the file.
        source: where it was read, for messages.
    """

    kind: str
    config: Mapping[str, Any]
    modules: Mapping[str, Factors]
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)
    source: str = "adapter"

    @property
    def ranks(self) -> list[int]:
        """The different ranks, ascending."""
        return sorted({factors.rank for factors in self.modules.values()})

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Tensors under the names PEFT saves them by, contiguous, with their kernel dimensions."""
        tensors = {name: tensor.contiguous() for name, tensor in self.extra.items()}
        for factors in self.modules.values():
            a_tail, b_tail = factors.tails
            tensors[factors.keys["a"]] = factors.a.reshape(factors.rank, -1, *a_tail).contiguous()
            tensors[factors.keys["b"]] = factors.b.reshape(-1, factors.rank, *b_tail).contiguous()
            if factors.magnitude is not None:
                tensors[factors.keys["magnitude"]] = factors.magnitude.contiguous()
        return tensors


def layer_of(path: str) -> tuple[str, int] | None:
    """Stack and number of the layer a module belongs to: `model.layers.12.mlp.up_proj` -> (`model.layers`, 12).

    The first number counts, so that an expert or a sub-block belongs to its layer, as in PEFT's `layers_to_transform`.

    Returns:
        None for a module outside every numbered stack.
    """
    parts = path.split(".")
    for position, part in enumerate(parts):
        if part.isascii() and part.isdigit():
            return ".".join(parts[:position]), int(part)
    return None


def read_adapter(folder: str | os.PathLike[str]) -> Adapter:
    """Read an adapter folder, or a repository of the Hub. Nothing in it is executed: JSON and safetensors only.

    Raises:
        MissingRequirementError: no such folder, config or safetensors file.
        UsageError: a kind of adapter these tools are not defined for; the message names it and says why.
        DataError: files that contradict each other or hold values that are not finite.
    """
    folder = hub_folder(folder, ["adapter_config.json", WEIGHTS_NAME])
    config = _read_config(folder)
    kind = kind_of(config, str(folder))
    weights = folder / WEIGHTS_NAME
    if not weights.is_file():
        pickled = folder / "adapter_model.bin"
        fix = (
            f"{pickled.name} is a pickle, which may run code and is not read; save the adapter again with "
            "`save_pretrained(..., safe_serialization=True)`"
            if pickled.is_file()
            else "save the adapter with PEFT's `save_pretrained`"
        )
        raise MissingRequirementError(f"{folder}: no {WEIGHTS_NAME}; {fix}")
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{weights}: not a readable safetensors file ({error}); copy or save the adapter again"
        ) from None
    return _assemble(kind, config, tensors, str(folder))


def write_adapter(
    adapter: Adapter,
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    note: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder that plain PEFT loads.

    Args:
        adapter: what to write.
        folder: made if it is not there.
        overwrite: replace an adapter that lies there.
        note: how it was made, for `coto_tools.json` beside it (PEFT warns of unknown keys in its own config).

    Raises:
        UsageError: the folder already holds an adapter and `overwrite` is false, or nothing is left to write.
    """
    folder = Path(folder)
    if not adapter.modules:
        raise UsageError(f"{adapter.source}: no adapted module is left, and PEFT loads no empty adapter; keep some")
    if (folder / CONFIG_NAME).exists() and not overwrite:
        raise UsageError(f"{folder} already holds an adapter; choose another folder or ask to overwrite it")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{WEIGHTS_NAME}.{os.getpid()}"
    try:
        save_file(adapter.state_dict(), partial, metadata={"format": "pt"})
        os.replace(partial, folder / WEIGHTS_NAME)
    finally:
        partial.unlink(missing_ok=True)
    write_atomically(folder / CONFIG_NAME, json.dumps(dict(adapter.config), indent=2, sort_keys=True) + "\n")
    if note is not None:
        write_atomically(folder / "coto_tools.json", json.dumps(dict(note), indent=2) + "\n")


def retarget(adapter: Adapter, modules: Mapping[str, Factors], *, unit_scaling: bool = False) -> Adapter:
    """The adapter with other `modules`, and a config that makes PEFT build exactly these.

    A changed set of modules is written as a regular expression of the full paths: a list of names would also match
    modules of other towers whose path ends alike. Initialisation becomes PEFT's default, with which a module that is
    not in the file does nothing.

    Args:
        adapter: gives kind, config and extra tensors.
        modules: new factors by path.
        unit_scaling: the factors carry their whole scale; write alpha = r per module, whatever the ranks are.
    """
    config = dict(adapter.config)
    if adapter.kind != "hira":
        config.update(init_lora_weights=True, eva_config=None)
    else:
        config.update(init_weights=True)
    if set(modules) != set(adapter.modules):
        paths = sorted(modules)
        config.update(
            target_modules="|".join(re.escape(path) for path in paths),
            exclude_modules=None,
            layers_to_transform=None,
            layers_pattern=None,
        )
    if unit_scaling:
        modules = {path: replace(factors, scaling=1.0) for path, factors in modules.items()}
        ranks = {path: factors.rank for path, factors in modules.items()}
        common = max(sorted(set(ranks.values())), key=list(ranks.values()).count)
        # `^` pins the pattern to the whole path; PEFT would otherwise match it as an ending.
        pattern = {"^" + re.escape(path): rank for path, rank in ranks.items() if rank != common}
        config.update(r=common, rank_pattern=pattern)
        if adapter.kind != "hira":
            config.update(lora_alpha=common, alpha_pattern=dict(pattern), use_rslora=False)
    return replace(adapter, config=config, modules=dict(modules))


def check_alike(adapters: Sequence[Adapter], *, factors: bool) -> None:
    """Raise if adapters cannot be combined.

    Args:
        adapters: at least one.
        factors: whether their factors are to be combined entry by entry, which needs the same modules, ranks and
            scalings; otherwise only modules that several of them adapt need the same (out, in).

    Raises:
        UsageError: with all reasons found.
    """
    first = adapters[0]
    problems = []
    for other in adapters[1:]:
        pair = f"{first.source} and {other.source}"
        if first.kind != other.kind:
            problems.append(f"{pair}: kinds {first.kind} and {other.kind}; combine adapters of one kind")
            continue
        shared = [path for path in first.modules if path in other.modules]
        for path in shared:
            mine, yours = first.modules[path], other.modules[path]
            if mine.shape != yours.shape:
                problems.append(f"{pair}: {path} has shapes {mine.shape} and {yours.shape}; the base models differ")
                break
        if factors:
            problems += _unlike_factors(first, other, shared, pair)
        if set(first.extra) != set(other.extra) or any(
            first.extra[name].shape != other.extra[name].shape for name in first.extra
        ):
            names = sorted(set(first.extra) ^ set(other.extra))[:3] or sorted(first.extra)[:3]
            problems.append(
                f"{pair}: further trained tensors (modules_to_save, biases) differ: {', '.join(names)}; "
                "combine adapters that train the same modules"
            )
    if problems:
        raise UsageError(problems)


def extra_mean(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """Weighted sum of the tensors that are no factors; these are whole weights, so every space agrees on it."""
    names = adapters[0].extra
    return {
        name: torch.stack(
            [weight * wide(adapter.extra[name]) for adapter, weight in zip(adapters, weights, strict=True)]
        ).sum(dim=0)
        for name in names
    }


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """At least float32: half-precision factors would lose what a combination is exact about."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _unlike_factors(first: Adapter, other: Adapter, shared: Iterable[str], pair: str) -> list[str]:
    problems = []
    lonely = sorted(set(first.modules) ^ set(other.modules))
    if lonely:
        problems.append(
            f"{pair}: {len(lonely)} modules are adapted by only one of them ({lonely[0]}, ...); factors need the same "
            "modules, use the delta space"
        )
    for path in shared:
        mine, yours = first.modules[path], other.modules[path]
        if mine.rank != yours.rank:
            problems.append(
                f"{pair}: ranks {mine.rank} and {yours.rank} at {path}; factors need one rank, use the delta space"
            )
            break
        if abs(mine.scaling - yours.scaling) > 1e-12 * abs(mine.scaling):
            problems.append(
                f"{pair}: scalings {mine.scaling:g} and {yours.scaling:g} at {path} (alpha / r, or alpha / "
                "sqrt(r) with use_rslora); factors need one scaling, use the delta space"
            )
            break
    return problems


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise MissingRequirementError(
            f"{folder}: no {CONFIG_NAME}; give the folder that PEFT's `save_pretrained` wrote"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not JSON ({error}); copy or save the adapter again") from None
    if not isinstance(config, dict):
        raise DataError(f"{path}: a {type(config).__name__} where an object of settings belongs")
    return config


def _assemble(kind: str, config: dict[str, Any], tensors: Mapping[str, torch.Tensor], source: str) -> Adapter:
    found: dict[str, dict[str, tuple[str, torch.Tensor]]] = {}
    extra = {}
    problems = []
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            problems.append(f"{source}: {key} holds values that are not finite; the training diverged")
        match = _TENSOR.fullmatch(key)
        if match is not None:
            found.setdefault(match["path"], {})[_NAMES[match["name"]]] = (key, tensor)
        elif _STRANGE.search(key):
            problems.append(f"{source}: {key} is no tensor of a {kind} adapter that is known here")
        else:
            extra[key] = tensor
    wanted = {"a", "b"} | ({"magnitude"} if kind == "dora" else set())
    modules = {}
    for stored in sorted(found, key=natural):
        parts = found[stored]
        if set(parts) != wanted:
            problems.append(
                f"{source}: {stored} has {', '.join(sorted(parts))} where {', '.join(sorted(wanted))} belong"
            )
            continue
        a, b = parts["a"][1], parts["b"][1]
        path = stored.removeprefix(PREFIX)
        rank, scaling = _expected(kind, config, path)
        if a.dim() < 2 or b.dim() < 2 or not a.shape[0] == b.shape[1] == rank or not a.numel() * b.numel():
            problems.append(
                f"{source}: {path} has A {tuple(a.shape)} and B {tuple(b.shape)}, the config says rank {rank}; "
                "shards of a distributed run or grouped convolutions are not supported"
            )
            continue
        modules[path] = Factors(
            a=a.flatten(1),
            b=b.reshape(b.shape[0], rank),
            scaling=scaling,
            magnitude=parts["magnitude"][1] if "magnitude" in parts else None,
            keys={name: key for name, (key, _) in parts.items()},
            tails=(tuple(a.shape[2:]), tuple(b.shape[2:])),
        )
    if not modules and not problems:
        problems.append(f"{source}: {WEIGHTS_NAME} holds no low-rank factors")
    if problems:
        raise DataError("; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else ""))
    return Adapter(kind=kind, config=config, modules=modules, extra=extra, source=source)


def _expected(kind: str, config: Mapping[str, Any], path: str) -> tuple[int, float]:
    """Rank and scaling that PEFT gives the module at `path`."""
    from peft.utils.other import get_pattern_key

    ranks = config.get("rank_pattern") or {}
    rank = int(ranks.get(get_pattern_key(list(ranks), path), config["r"]))
    if kind == "hira":
        return rank, 1.0
    alphas = config.get("alpha_pattern") or {}
    alpha = float(alphas.get(get_pattern_key(list(alphas), path), config["lora_alpha"]))
    return rank, alpha / (rank**0.5 if config.get("use_rslora") else rank)


def natural(path: str) -> list[tuple[int, int, str]]:
    """Sort key with numbers in numeric order: layer 2 before layer 10."""
    return [(0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part) for part in path.split(".")]
