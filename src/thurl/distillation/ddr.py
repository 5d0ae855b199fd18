"""The `.ddr` file: a distilled data set in as many bytes as it is said to have, read alike on every machine.

docs/ddr_format.md describes it byte by byte. `write` and `read` turn a `CodedDataset` into a file and back; `load`
gives its pictures. Nothing in a file is executed, and sizes are checked before memory is taken.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from thurl.distillation.coded import CodedDataset, CodedSlice
from thurl.distillation.ddr_bytes import Reader, Writer
from thurl.distillation.ddr_header import Header, SlicePlan, header_of, pack_header, unpack_header
from thurl.distillation.ddr_limits import MAX_BYTES, check_size, read_content
from thurl.distillation.integer import decode_images
from thurl.distillation.label_stream import decode_labels, encode_labels, labels_of_runs
from thurl.distillation.latent_stream import decode_latents, encode_latents
from thurl.distillation.net_stream import decode_nets, encode_nets
from thurl.distillation.range_coder import make_decoder, make_encoder
from thurl.errors import DataError
from thurl.hub.fetch import hub_file


if TYPE_CHECKING:
    from thurl.distillation.ddr_dataset import DdrDataset

__all__ = ["MAGIC", "VERSION", "DdrFile", "Rate", "decode", "encode", "inspect", "load", "rate", "read",
           "write"]  # fmt: skip

MAGIC = b"DDR1"
VERSION = 1
"""Layouts up to this one are read."""

_MAX_HEADER = 2**22
_MAX_LABELS = 2**34
_END = 8


@dataclass(frozen=True)
class Rate:
    """Where the bits of a file are, whole numbers; their sum is 8 times its size.

    Args:
        latents, nets, labels: range-coded or plain contents.
        header: all else: magic, header, lengths, checksums.
        classes: number of classes.
    """

    latents: int
    nets: int
    labels: int
    header: int
    classes: int

    @property
    def total_bits(self) -> int:
        """8 times the size of the file."""
        return self.latents + self.nets + self.labels + self.header

    def row(self) -> dict[str, Any]:
        """`latents`, `nets`, `labels`, `header`, `total_bits`, and `bpc`: bits per class, all counted."""
        parts = {name: getattr(self, name) for name in ("latents", "nets", "labels", "header")}
        return {**parts, "total_bits": self.total_bits, "bpc": self.total_bits / self.classes}


@dataclass(frozen=True)
class DdrFile:
    """A file as read.

    Args:
        dataset: its integers.
        rate: where its bits are.
        picture_checksum: CRC-32 that the decoded pictures must have.
        name: what messages call it.
        data: its bytes.
    """

    dataset: CodedDataset
    rate: Rate
    picture_checksum: int
    name: str
    data: bytes = field(repr=False)

    def images(self) -> NDArray[np.uint8]:
        """All pictures, uint8 (samples, channels, height, width), slice after slice.

        Raises:
            DataError: they are not the ones that were written.
        """
        found = np.concatenate([decode_images(part) for part in self.dataset.slices])
        if zlib.crc32(found.data) != self.picture_checksum:
            raise DataError(
                f"{self.name}: the checksum of the decoded pictures does not fit: the file was made by a program that "
                "decodes differently. Write it anew with this version"
            )
        return found


def encode(dataset: CodedDataset, *, coder: str = "auto", max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a file.

    Args:
        dataset: what to write.
        coder: one of `thurl.distillation.range_coder.CODERS`; all write the same bytes.
        max_bytes: largest size of all pictures, 8 bits per value.

    Raises:
        DataError: a data set that could not be read again: too large, values out of range.
    """
    check_size([SlicePlan(part.config, len(part.labels), ()) for part in dataset.slices], max_bytes, "the data set")
    # Labels in the header cost next to nothing where classes come in order; where they do not, coded ones are shorter.
    candidates = [
        _head(dataset, implicit, coder) for implicit in ((True, False) if len(dataset.classes) > 1 else (True,))
    ]
    head, label_sections = min(candidates, key=lambda pair: len(pair[0].data) + sum(map(len, pair[1])))
    checksum = 0
    for part in dataset.slices:
        nets, latents = make_encoder(coder), make_encoder(coder)
        encode_nets(nets, part.nets)
        encode_latents(latents, part)
        head.section(nets.finish())
        head.section(latents.finish())
        checksum = zlib.crc32(decode_images(part).data, checksum)
    for payload in label_sections:
        head.section(payload)
    head.checksum(checksum)
    head.checksum(zlib.crc32(head.data))
    return bytes(head.data)


def decode(data: bytes, name: str = "file", *, coder: str = "auto", max_bytes: int = MAX_BYTES) -> DdrFile:
    """Read the bytes of a file; pictures are decoded by `DdrFile.images` only.

    Args:
        data: the whole file.
        name: what messages call it.
        coder: see `encode`.
        max_bytes: see `encode`.

    Raises:
        DataError: truncated, damaged, from another program, of a newer version, too large.
    """
    reader = Reader(data, name)
    header = _read_head(reader)
    check_size(header.slices, max_bytes, name)
    payloads = [
        (reader.section(f"the nets of slice {i}"), reader.section(f"the latents of slice {i}"))
        for i in range(len(header.slices))
    ]
    hard = None if header.implicit else reader.section("the labels")
    soft = reader.section("the soft labels") if header.soft else None
    picture_checksum = reader.checksum("the pictures")
    whole = zlib.crc32(data[: reader.position])
    if whole != reader.checksum("the file") or reader.position != len(data):
        raise DataError(
            f"{name}: bytes {reader.position - _END} to {len(data)}: the checksum of the file does not fit, or bytes "
            "follow it; the file is damaged. Copy it again"
        )
    labels = _labels(header, hard, name, coder)
    slices = tuple(
        _slice(plan, nets, latents, labels[i], f"{name}: slice {i}", coder)
        for i, (plan, (nets, latents)) in enumerate(zip(header.slices, payloads, strict=True))
    )
    dataset = CodedDataset(
        slices, header.classes, header.mean, header.std, header.hints, _soft_labels(header, soft, name)
    )
    bits = {
        "latents": 8 * sum(len(latents) for _, latents in payloads),
        "nets": 8 * sum(len(nets) for nets, _ in payloads),
        "labels": 8 * (len(hard or b"") + len(soft or b"")),
    }
    rest = 8 * len(data) - sum(bits.values())
    rate = Rate(**bits, header=rest, classes=len(header.classes))
    return DdrFile(dataset, rate, picture_checksum, name, bytes(data))


def write(
    dataset: CodedDataset, path: str | os.PathLike[str], *, coder: str = "auto", max_bytes: int = MAX_BYTES
) -> Rate:
    """Write a file in one step; it is read back and compared before it appears.

    Args:
        dataset: what to write.
        path: of the file; folders are made, a file of this name is replaced.
        coder, max_bytes: see `encode`.

    Raises:
        DataError: see `encode`; `path` cannot be written.
    """
    from thurl.training.results import write_atomically

    if Path(path).is_dir():
        raise DataError(f"{path}: this is a folder; give the name of a file")
    data = encode(dataset, coder=coder, max_bytes=max_bytes)
    back = decode(data, str(path), coder=coder, max_bytes=max_bytes)
    if not _same(dataset, back.dataset):
        raise DataError(f"{path}: what was to be written does not read back as the same; nothing was written")
    try:
        write_atomically(path, data)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    return back.rate


def rate(dataset: CodedDataset) -> Rate:
    """Where the bits of a data set's file would be, without writing it."""
    return decode(encode(dataset)).rate


def inspect(path: str | os.PathLike[str], *, coder: str = "auto", max_bytes: int = MAX_BYTES) -> DdrFile:
    """Read a file and check all of it but the pictures.

    Args:
        path: also `owner/name`, a data set on the Hub, for its `data.ddr`.

    Raises:
        DataError: see `decode`; no such file, or not a file.
        MissingRequirementError: the Hub does not give it.
    """
    return decode(
        read_content(hub_file(path, "data.ddr", repo_type="dataset"), max_bytes),
        str(path),
        coder=coder,
        max_bytes=max_bytes,
    )


def read(path: str | os.PathLike[str], *, coder: str = "auto", max_bytes: int = MAX_BYTES) -> CodedDataset:
    """The integers of a file, see `inspect`."""
    return inspect(path, coder=coder, max_bytes=max_bytes).dataset


def load(path: str | os.PathLike[str], *, coder: str = "auto", max_bytes: int = MAX_BYTES) -> DdrDataset:
    """The pictures of a file as a torch data set, checked against the checksum of those that were written."""
    from thurl.distillation.ddr_dataset import DdrDataset

    return DdrDataset(inspect(path, coder=coder, max_bytes=max_bytes))


def _head(dataset: CodedDataset, implicit: bool, coder: str) -> tuple[Writer, list[bytes]]:
    """The file up to the first slice, and the sections of labels."""
    writer, sections = Writer(), []
    writer.section(pack_header(header_of(dataset, implicit)), MAGIC + bytes([VERSION]))
    if not implicit:
        encoder = make_encoder(coder)
        encode_labels(encoder, dataset.labels, len(dataset.classes))
        sections.append(encoder.finish())
    if dataset.soft_labels is not None:
        if not np.isfinite(dataset.soft_labels).all():
            raise DataError("soft labels hold a number that is not finite; they must be logits below 65504 in size")
        sections.append(dataset.soft_labels.astype("<f2").tobytes())
    return writer, sections


def _read_head(reader: Reader) -> Header:
    if reader.data[:4] != MAGIC:
        found = reader.data[:4].hex(" ") or "nothing"
        raise DataError(f"{reader.name}: bytes 0 to 4 are {found}: this is not a .ddr file, or its start is damaged")
    reader.take(4, "the magic number")
    version = reader.take(1, "the version")[0]
    if version > VERSION or version == 0:
        raise DataError(
            f"{reader.name}: byte 4: version {version}, this thurl reads 1 to {VERSION}; update thurl, or copy the "
            "file again if it should be older"
        )
    return unpack_header(reader.section("the header", most=_MAX_HEADER, lead=5), reader.name)


def _labels(header: Header, payload: bytes | None, name: str, coder: str) -> list[NDArray[np.int32]]:
    """Labels of each slice."""
    if payload is None:
        return [labels_of_runs(plan.runs) for plan in header.slices]
    count = sum(plan.samples for plan in header.slices)
    if count * len(header.classes) > _MAX_LABELS:
        raise DataError(f"{name}: {count} coded labels of {len(header.classes)} classes are more than are read")
    try:
        decoder = make_decoder(payload, coder)
        every = decode_labels(decoder, count, len(header.classes))
        decoder.check_end()
    except DataError as error:
        raise DataError(f"{name}: the labels: {error}") from None
    return np.split(every, np.cumsum([plan.samples for plan in header.slices])[:-1])


def _soft_labels(header: Header, payload: bytes | None, name: str) -> NDArray[np.float16] | None:
    if payload is None:
        return None
    shape = sum(plan.samples for plan in header.slices), len(header.classes)
    if len(payload) != 2 * shape[0] * shape[1]:
        raise DataError(f"{name}: soft labels of {len(payload)} bytes, {2 * shape[0] * shape[1]} are needed")
    values = np.frombuffer(payload, "<f2").reshape(shape).astype(np.float16)
    if not np.isfinite(values).all():
        raise DataError(f"{name}: a soft label is not finite; the file is damaged. Copy it again")
    return values


def _slice(
    plan: SlicePlan, nets: bytes, latents: bytes, labels: NDArray[np.int32], name: str, coder: str
) -> CodedSlice:
    try:
        decoder = make_decoder(nets, coder)
        groups = decode_nets(decoder, plan.config)
        decoder.check_end()
        decoder = make_decoder(latents, coder)
        levels = decode_latents(decoder, plan.config, plan.samples, groups)
        decoder.check_end()
        return CodedSlice(plan.config, labels, levels, groups)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


def _same(one: CodedDataset, other: CodedDataset) -> bool:
    """Whether all integers agree."""
    for a, b in zip(one.slices, other.slices, strict=True):
        pairs = [(a.labels, b.labels), *zip(a.latents, b.latents, strict=True)]
        for name, group in a.nets.items():
            pairs += list(zip(group.values, b.nets[name].values, strict=True))
            if group.exponent != b.nets[name].exponent:
                return False
        if a.config != b.config or not all(np.array_equal(x, y) for x, y in pairs):
            return False
    if (one.classes, one.mean, one.std) != (other.classes, other.mean, other.std):
        return False
    if one.soft_labels is None or other.soft_labels is None:
        return one.soft_labels is other.soft_labels
    return np.array_equal(one.soft_labels, other.soft_labels)
