"""Pools that the authors of arXiv 2507.17221 released, as plain tensors, a codec or integers.

A released file (`pool_origin.pt`, `pool_quantized.pt`) is a pickle of objects of the official code, by the name
`{class}_{slice}`. Nothing of it is executed: `thurl.training.released_files` keeps the attributes of the few classes
named here and refuses every other. What is read can be written as safetensors, with the official indices:
`{class}_{slice}.grids.{level}`, `.ap.{i}` (entropy network), `.up.0` (upsampling), `.sp.{i}` (synthesis).

In a "quantised" pool the networks are multiples of powers of two, whose exponents the file does not tell; they are
found again as the greatest common divisor. Its latents are still floats, rounded where they are used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from thurl.distillation.codec import LatentCodec
from thurl.distillation.coded import CodedGroup, CodedSlice
from thurl.distillation.decoder_networks import NETWORKS, Networks
from thurl.distillation.geometry import CodecConfig
from thurl.errors import DataError, UsageError
from thurl.training.released_files import Record, read_checkpoint


__all__ = ["ReleasedSlice", "coded_pool", "pool_codec", "read_pool", "write_pool"]

_CLASSES = (
    "core.ts.tensor_data_func_v6.DPParams",
    "ts.tensor_data_func_v6.DPParams",
    "torch.nn.modules.container.ParameterList",
)
_KEYS = {"arm": "ap", "upsampling": "up", "synthesis": "sp"}
_FINEST = 16


@dataclass(frozen=True)
class ReleasedSlice:
    """One slice of a pool.

    Args:
        label: the class.
        index: number of the slice in its class.
        config: shapes; the gain is the official 16.
        grids: float32 (samples, h, w) per level.
        networks: `arm`, `upsampling`, `synthesis`: float32 tensors in the order of the shapes in `config`.
    """

    label: int
    index: int
    config: CodecConfig
    grids: tuple[torch.Tensor, ...]
    networks: Networks

    @property
    def samples(self) -> int:
        """Samples in the slice."""
        return len(self.grids[0])


def read_pool(path: str | os.PathLike[str]) -> tuple[ReleasedSlice, ...]:
    """Slices of a pool, by class and number.

    Args:
        path: a released `.pt` file, or a `.safetensors` file of `write_pool`.

    Raises:
        MissingRequirementError: no such file.
        DataError: a file with something else than such pools, named where it is; nothing of it is executed.
    """
    content = read_checkpoint(path, records=_CLASSES)
    if not isinstance(content, Mapping) or not content:
        raise DataError(f"{path}: not a pool; a dictionary of slices by `class_slice` is needed")
    if all(isinstance(value, torch.Tensor) for value in content.values()):
        pools = _pools_of_tensors(path, content)
    else:
        pools = {key: _pool_of_objects(path, key, value) for key, value in content.items()}
    found = []
    for key, pool in pools.items():
        match = re.fullmatch(r"(\d{1,6})_(\d{1,6})", str(key))
        if match is None:
            raise DataError(f"{path}: {str(key)[:40]!r} is not the name of a slice, `class_slice` such as 3_0")
        found.append(_slice(f"{path}, slice {key}", int(match[1]), int(match[2]), pool))
    return tuple(sorted(found, key=lambda part: (part.label, part.index)))


def write_pool(slices: Sequence[ReleasedSlice], path: str | os.PathLike[str]) -> None:
    """Writes the tensors of slices as safetensors, by the official indices."""
    tensors: dict[str, torch.Tensor] = {}
    for part in slices:
        name = f"{part.label}_{part.index}"
        tensors |= {f"{name}.grids.{i}": grid.unsqueeze(1) for i, grid in enumerate(part.grids)}
        for net, key in _KEYS.items():
            tensors |= {f"{name}.{key}.{i}": value for i, value in enumerate(part.networks[net])}
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)


def pool_codec(slices: Sequence[ReleasedSlice]) -> LatentCodec:
    """A codec of slices of one shape and one number of samples, in their order."""
    if len({(part.config, part.samples) for part in slices}) != 1:
        raise UsageError("slices of several shapes or numbers of samples: a codec holds equal ones, at least one")
    codec = LatentCodec(slices[0].config, len(slices), slices[0].samples, generator=torch.Generator())
    with torch.no_grad():
        for level, grid in enumerate(codec.grids):
            grid.copy_(torch.stack([part.grids[level] for part in slices]))
    codec.set_networks([part.networks for part in slices])
    return codec


def coded_pool(slices: Sequence[ReleasedSlice]) -> tuple[CodedSlice, ...]:
    """Integers of the slices of a quantised pool.

    Raises:
        DataError: networks that are no multiples of 2^-16, hence not quantised, or integers that are too large. Make
            a codec with `pool_codec` and quantise that.
    """
    found = []
    for part in slices:
        symbols = pool_codec([part]).symbols()
        labels = np.full(part.samples, part.label, np.int32)
        groups = {}
        for net in NETWORKS:
            for kind, wide in (("weight", True), ("bias", False)):
                values = [value for value in part.networks[net] if (value.ndim >= 2) == wide]
                if values:
                    groups[f"{net}_{kind}"] = _recover(values, f"slice {part.label}_{part.index}, {net} {kind}")
        found.append(CodedSlice(part.config, labels, tuple(level[0].numpy() for level in symbols), groups))
    return tuple(found)


def _recover(values: Sequence[torch.Tensor], where: str) -> CodedGroup:
    """The largest step of at most 1 that all values are multiples of."""
    fine = [value.double().numpy() * 2.0**_FINEST for value in values]
    flat = np.concatenate([np.ravel(value) for value in fine])
    if (flat != np.rint(flat)).any() or np.abs(flat).max(initial=0) >= 2.0**62:
        raise DataError(f"{where}: no multiples of 2^-{_FINEST}, hence not quantised; use `post_quantise` first")
    divisor = int(np.gcd.reduce(flat.astype(np.int64)))
    shift = _FINEST if divisor == 0 else min(_FINEST, (divisor & -divisor).bit_length() - 1)
    integers = [np.rint(value / 2.0**shift) for value in fine]
    if max(np.abs(value).max(initial=0) for value in integers) > 65535:
        raise DataError(f"{where}: a quantised value is above 65535 in size; use `post_quantise` first")
    return CodedGroup(_FINEST - shift, tuple(_int32(value) for value in integers))


def _int32(values: NDArray[np.float64]) -> NDArray[np.int32]:
    return values.astype(np.int32)


def _pools_of_tensors(path: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, list[torch.Tensor]]]:
    pools: dict[str, dict[str, dict[int, torch.Tensor]]] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(\d+_\d+)\.(grids|ap|up|sp)\.(\d{1,4})", str(name))
        if match is None:
            raise DataError(f"{path}: {str(name)[:60]!r} is not a tensor of a pool, such as 3_0.grids.0")
        pools.setdefault(match[1], {}).setdefault(match[2], {})[int(match[3])] = tensor
    return {
        key: {part: [members[i] for i in sorted(members)] for part, members in pool.items()}
        for key, pool in pools.items()
    }


def _pool_of_objects(path: Any, key: str, value: Any) -> dict[str, list[torch.Tensor]]:
    holder = value.get("param") if isinstance(value, Mapping) else None
    pool = holder.state.get("pool") if isinstance(holder, Record) else None
    if not isinstance(pool, Mapping):
        raise DataError(f"{path}, slice {str(key)[:40]}: no `param` with a `pool`, as the released files have it")
    return {str(name): _members(f"{path}, slice {key}, {name}", members) for name, members in pool.items()}


def _members(where: str, value: Any) -> list[torch.Tensor]:
    if isinstance(value, Record):  # a ParameterList keeps its members by number
        held = value.state.get("_parameters")
        value = _by_number(held) if isinstance(held, Mapping) else None
    if not isinstance(value, (list, tuple)):
        raise DataError(f"{where}: not a list of tensors")
    return list(value)


def _by_number(members: Mapping[str, Any]) -> list[Any] | None:
    names = [str(i) for i in range(len(members))]
    return [members[name] for name in names] if set(names) == set(members) else None


def _slice(where: str, label: int, index: int, pool: Mapping[str, Sequence[Any]]) -> ReleasedSlice:
    missing = {"grids", *_KEYS.values()} - set(pool)
    if missing:
        raise DataError(f"{where}: no {', '.join(sorted(missing))}; a slice has grids, ap, up and sp")
    grids = [_tensor(where, grid) for grid in pool["grids"]]
    networks = {net: [_tensor(where, value) for value in pool[key]] for net, key in _KEYS.items()}
    arm, synthesis = networks["arm"], networks["synthesis"]
    if not grids or any(grid.ndim != 4 or grid.shape[1] != 1 or len(grid) != len(grids[0]) for grid in grids):
        raise DataError(f"{where}: grids of shapes {[tuple(g.shape) for g in grids]}; (samples, 1, h, w) are needed")
    if len(arm) < 4 or arm[0].ndim != 2 or len(synthesis) < 8 or any(w.ndim != 4 for w in synthesis[:-4:2]):
        raise DataError(f"{where}: networks of {len(arm)} and {len(synthesis)} tensors that are not the official ones")
    height, width = grids[0].shape[2:]
    widths = tuple(len(weight) for weight in synthesis[:-6:2])
    try:
        config = CodecConfig(height, width, len(synthesis[-6]), arm[0].shape[1], len(arm) // 2 - 1, widths)
    except UsageError as error:
        raise DataError(f"{where}: {'; '.join(error.problems)}") from None
    shapes = {net: [tuple(value.shape) for value in networks[net]] for net in NETWORKS}
    wanted = {net: list(getattr(config, f"{net}_shapes")) for net in NETWORKS}
    sizes = tuple((grid.shape[2], grid.shape[3]) for grid in grids)
    if shapes != wanted or sizes != config.level_sizes:
        raise DataError(f"{where}: grids {sizes} and networks {shapes} do not fit each other; {wanted} are needed")
    return ReleasedSlice(label, index, config, tuple(grid[:, 0] for grid in grids), networks)


def _tensor(where: str, value: Any) -> torch.Tensor:
    """Float32 and dense, checked before anything is computed or allocated from what the file claims."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.layout != torch.strided:
        raise DataError(f"{where}: {type(value).__name__} found where a dense tensor of floats is needed")
    held = value.untyped_storage().nbytes() if value.device.type == "cpu" else 0
    if value.numel() == 0 or held < value.numel() * value.element_size():
        raise DataError(f"{where}: a tensor of shape {tuple(value.shape)} with fewer values than that")
    plain = value.detach().float().contiguous()
    if not plain.isfinite().all():
        raise DataError(f"{where}: values that are not finite")
    return plain
