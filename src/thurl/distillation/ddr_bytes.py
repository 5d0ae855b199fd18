"""Bytes of a `.ddr` file: lengths, sections and checksums, each checked before anything is done with it."""

from __future__ import annotations

import zlib

from thurl.errors import DataError


__all__ = ["Reader", "Writer"]

# Lengths are below 2^35, far above every cap.
_VARINT_BYTES = 5


class Writer:
    """Collects the bytes of a file."""

    def __init__(self) -> None:
        self.data = bytearray()

    def section(self, payload: bytes, lead: bytes = b"") -> None:
        """`lead`, the length of `payload`, `payload`, and the CRC-32 of all three."""
        part = lead + _varint(len(payload)) + payload
        self.data += part
        self.checksum(zlib.crc32(part))

    def checksum(self, value: int) -> None:
        """Four bytes, the lowest first."""
        self.data += value.to_bytes(4, "little")


class Reader:
    """Reads a file from its beginning; every error says which bytes it is about.

    Args:
        data: the whole file.
        name: what messages call it.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self.data = data
        self.name = name
        self.position = 0

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes.

        Raises:
            DataError: the file ends before.
        """
        if count > len(self.data) - self.position:
            raise DataError(
                f"{self.name}: {what} needs bytes {self.position} to {self.position + count}, but the file ends at "
                f"{len(self.data)}: it is truncated or damaged. Copy it again"
            )
        self.position += count
        return self.data[self.position - count : self.position]

    def section(self, what: str, *, most: int | None = None, lead: int = 0) -> bytes:
        """The payload of the next section, of at most `most` bytes; `lead` bytes of it have been read already.

        Raises:
            DataError: truncated, longer than `most` bytes, or of another checksum.
        """
        start = self.position - lead
        length = self._varint(what)
        if most is not None and length > most:
            raise DataError(
                f"{self.name}: bytes {start} to {self.position}: {what} of {length} bytes, at most {most} are read; "
                "the file is damaged or made to harm"
            )
        payload = self.take(length, what)
        found = zlib.crc32(self.data[start : self.position])
        if found != self.checksum(what):
            raise DataError(
                f"{self.name}: bytes {start} to {self.position}: the checksum of {what} does not fit; the file is "
                "damaged. Copy it again"
            )
        return payload

    def checksum(self, what: str) -> int:
        """The next four bytes."""
        return int.from_bytes(self.take(4, f"the checksum of {what}"), "little")

    def _varint(self, what: str) -> int:
        value = 0
        for i in range(_VARINT_BYTES):
            (byte,) = self.take(1, f"the length of {what}")
            value |= (byte & 127) << (7 * i)
            if byte < 128:
                return value
        raise DataError(
            f"{self.name}: bytes {self.position - _VARINT_BYTES} to {self.position}: the length of {what} does not "
            "end; the file is damaged. Copy it again"
        )


def _varint(value: int) -> bytes:
    """Seven bits in a byte, the lowest first; the highest bit of a byte says that another follows."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
