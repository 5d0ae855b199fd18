"""Range coding with integer probabilities: constriction's coder, and one in Python that writes the same bytes.

32-bit words, a 64-bit state and probabilities in 2^-24, as constriction's `RangeEncoder` (Bamler, arXiv 2201.01741);
the algorithm goes back to Martin (1979). docs/ddr_format.md describes it step by step.

A distribution over n symbols is a row of `excess`: frequencies minus 1, whose sum is 2^24 - n, as float32, which holds
such integers exactly. constriction makes frequencies out of "probabilities" p as floor(cumulated p * scale) plus one
for each symbol, with scale = (2^24 - n) / sum(p): for these rows scale is 1, and every frequency is the integer meant.
The first use compares both coders, as this is no promise of constriction's; where they differ, Python's is taken.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from thurl.errors import DataError, MissingRequirementError, UsageError


__all__ = ["CODERS", "PRECISION", "Decoder", "Encoder", "ReferenceDecoder", "ReferenceEncoder", "make_decoder",
           "make_encoder"]  # fmt: skip

logger = logging.getLogger(__name__)

PRECISION = 24
"""Frequencies of a distribution sum to 2 to this power."""

CODERS = ("auto", "constriction", "reference")
"""Names of coders; `auto` takes constriction where it is installed."""

_WORD = 32
_MASK = 2**64 - 1
_LOW = 2**32 - 1

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


class Encoder(Protocol):
    """Writes symbols one after the other."""

    def encode(self, symbols: Integers, excess: Floats) -> None:
        """`symbols` (n,) of the distributions `excess` (n, m), each in 0 to m - 1."""

    def encode_uniform(self, values: Integers, bits: Integers) -> None:
        """`values` (n,) of as many `bits` (n,) each, 0 to 24; no bits, nothing written."""

    def finish(self) -> bytes:
        """All that was written, a multiple of 4 bytes."""


class Decoder(Protocol):
    """Reads what an `Encoder` has written, in the same order with the same distributions."""

    def decode(self, excess: Floats) -> Integers:
        """Symbols (n,) of the distributions `excess` (n, m)."""

    def decode_uniform(self, bits: Integers) -> Integers:
        """Values (n,) of as many `bits` (n,) each."""

    def check_end(self) -> None:
        """Raises DataError when something is left that no symbol was read from."""


class ReferenceEncoder:
    """The coder in Python, slow and plain."""

    def __init__(self) -> None:
        self._lower, self._range = 0, _MASK
        self._words: list[int] = []
        # Words that a carry may still change: how many, and the first; the others are all ones.
        self._pending, self._first = 0, 0

    def encode(self, symbols: Integers, excess: Floats) -> None:
        ends = _cumulative(excess)
        rows = np.arange(len(symbols))
        for left, right in zip(ends[rows, symbols].tolist(), ends[rows, symbols + 1].tolist(), strict=True):
            self._put(left, right - left)

    def encode_uniform(self, values: Integers, bits: Integers) -> None:
        for value, count in zip(values.tolist(), bits.tolist(), strict=True):
            if count:
                self._put(value << (PRECISION - count), 1 << (PRECISION - count))

    def finish(self) -> bytes:
        words, lower = list(self._words), self._lower
        if self._range != _MASK or words:
            point = (lower + _LOW) & _MASK
            if self._pending:
                words += self._settled(carry=point < lower)
            words.append(point >> _WORD)
            if ((lower + self._range) & _MASK) >> _WORD == point >> _WORD:
                words.append(0)
        return np.array(words, "<u4").tobytes()

    def _put(self, left: int, frequency: int) -> None:
        step = self._range >> PRECISION
        self._range = step * frequency
        lower = (self._lower + step * left) & _MASK
        if self._pending and (lower + self._range) & _MASK > lower:
            self._words += self._settled(carry=lower < self._lower)
            self._pending = 0
        self._lower = lower
        if self._range >> _WORD:
            return
        word = lower >> _WORD
        self._lower, self._range = (lower << _WORD) & _MASK, self._range << _WORD
        if self._pending:
            self._pending += 1
        elif (self._lower + self._range) & _MASK > self._lower:
            self._words.append(word)
        else:
            self._pending, self._first = 1, word

    def _settled(self, carry: bool) -> list[int]:
        if carry:
            return [(self._first + 1) & _LOW] + [0] * (self._pending - 1)
        return [self._first] + [_LOW] * (self._pending - 1)


class ReferenceDecoder:
    """The reader in Python.

    Args:
        data: what an encoder's `finish` gave.

    Raises:
        DataError: not a multiple of 4 bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._words = _words(data).tolist()
        self._next = 0
        self._lower, self._range = 0, _MASK
        self._point = (self._word() << _WORD) | self._word()

    def decode(self, excess: Floats) -> Integers:
        ends = _cumulative(excess)
        found = []
        for row in ends:
            step = self._range >> PRECISION
            symbol = int(row.searchsorted(self._quantile(step), side="right")) - 1
            left = int(row[symbol])
            self._take(step, left, int(row[symbol + 1]) - left)
            found.append(symbol)
        return np.array(found, np.int64)

    def decode_uniform(self, bits: Integers) -> Integers:
        found = []
        for count in bits.tolist():
            value = 0
            if count:
                step = self._range >> PRECISION
                value = self._quantile(step) >> (PRECISION - count)
                self._take(step, value << (PRECISION - count), 1 << (PRECISION - count))
            found.append(value)
        return np.array(found, np.int64)

    def check_end(self) -> None:
        if self._next < len(self._words):
            raise _left_over(len(self._words) - self._next)

    def _quantile(self, step: int) -> int:
        found = ((self._point - self._lower) & _MASK) // step
        if found >> PRECISION:
            raise _impossible()
        return found

    def _take(self, step: int, left: int, frequency: int) -> None:
        self._lower = (self._lower + step * left) & _MASK
        self._range = step * frequency
        if not self._range >> _WORD:
            self._lower, self._range = (self._lower << _WORD) & _MASK, self._range << _WORD
            self._point = ((self._point << _WORD) & _MASK) | self._word()

    def _word(self) -> int:
        """The next word, and zeros behind the end, as the last words may be cut."""
        position = self._next
        self._next += 1
        return self._words[position] if position < len(self._words) else 0


class _FastEncoder:
    def __init__(self) -> None:
        self._coder = _constriction().queue.RangeEncoder()

    def encode(self, symbols: Integers, excess: Floats) -> None:
        if len(symbols):
            self._coder.encode(symbols.astype(np.int32), _families()[0], excess)

    def encode_uniform(self, values: Integers, bits: Integers) -> None:
        used = bits > 0
        if used.any():
            sizes = np.left_shift(1, bits[used]).astype(np.int32)
            self._coder.encode(values[used].astype(np.int32), _families()[1], sizes)

    def finish(self) -> bytes:
        return np.asarray(self._coder.get_compressed()).astype("<u4").tobytes()


class _FastDecoder:
    def __init__(self, data: bytes) -> None:
        self._coder = _constriction().queue.RangeDecoder(_words(data).astype(np.uint32))

    def decode(self, excess: Floats) -> Integers:
        if not len(excess):
            return np.zeros(0, np.int64)
        return self._read(_families()[0], excess)

    def decode_uniform(self, bits: Integers) -> Integers:
        values = np.zeros(len(bits), np.int64)
        used = bits > 0
        if used.any():
            values[used] = self._read(_families()[1], np.left_shift(1, bits[used]).astype(np.int32))
        return values

    def check_end(self) -> None:
        if not self._coder.maybe_exhausted():
            raise _left_over(None)

    def _read(self, family: Any, parameters: NDArray[Any]) -> Integers:
        try:
            return np.asarray(self._coder.decode(family, parameters)).astype(np.int64)
        except AssertionError:
            raise _impossible() from None


def make_encoder(coder: str = "auto") -> Encoder:
    """An encoder by name, one of `CODERS`; all write the same bytes.

    Raises:
        UsageError: another name.
        MissingRequirementError: `constriction`, which is not installed or does not do what it should.
    """
    return _FastEncoder() if _fast(coder) else ReferenceEncoder()


def make_decoder(data: bytes, coder: str = "auto") -> Decoder:
    """A decoder by name, see `make_encoder`.

    Raises:
        DataError: not a multiple of 4 bytes.
    """
    return _FastDecoder(data) if _fast(coder) else ReferenceDecoder(data)


def _fast(coder: str) -> bool:
    if coder not in CODERS:
        raise UsageError(f"coder: {coder!r} must be one of {', '.join(CODERS)}")
    if coder == "reference":
        return False
    reason = _why_not_fast()
    if reason and coder == "constriction":
        raise MissingRequirementError(f'{reason}; pip install "thurl[distillation]", or take the coder `reference`')
    return not reason


@lru_cache(maxsize=1)
def _why_not_fast() -> str:
    """What keeps constriction from being used; empty: nothing. Says so once where it is installed."""
    if importlib.util.find_spec("constriction") is None:
        return "constriction is not installed"
    rng = np.random.default_rng(0)
    excess = np.zeros((64, 9), np.float32)
    excess[:, :8] = rng.integers(0, 2 ** rng.integers(1, 20, (64, 8)))
    excess[:, 8] = 2**PRECISION - 9 - excess.sum(1, dtype=np.float64)
    symbols, bits = rng.integers(0, 9, 64), rng.integers(0, 18, 64)
    values = rng.integers(0, np.left_shift(1, bits))
    written = []
    try:
        for encoder in (_FastEncoder(), ReferenceEncoder()):
            encoder.encode(symbols, excess)
            encoder.encode_uniform(values, bits)
            written.append(encoder.finish())
        decoder = _FastDecoder(written[1])
        same = written[0] == written[1] and (decoder.decode(excess) == symbols).all()
        if same and (decoder.decode_uniform(bits) == values).all():
            return ""
        reason = "this version of constriction writes other bytes than the format asks for"
    except Exception as error:
        reason = f"this version of constriction cannot be used ({type(error).__name__}: {error})"
    logger.warning("%s: the slower coder in Python is taken", reason)
    return reason


@lru_cache(maxsize=1)
def _constriction() -> Any:
    import constriction  # type: ignore[import-untyped]

    return constriction.stream


@lru_cache(maxsize=1)
def _families() -> tuple[Any, Any]:
    model = _constriction().model
    return model.Categorical(perfect=False), model.Uniform()


def _cumulative(excess: Floats) -> Integers:
    """(n, m + 1): where each symbol begins, and the sum 2^24 at the end."""
    ends = np.zeros((excess.shape[0], excess.shape[1] + 1), np.int64)
    np.cumsum(excess.astype(np.int64) + 1, axis=1, out=ends[:, 1:])
    return ends


def _words(data: bytes) -> NDArray[np.uint32]:
    if len(data) % 4:
        raise DataError(f"{len(data)} bytes of range-coded data: must be a multiple of 4; the file is damaged")
    return np.frombuffer(data, "<u4")


def _impossible() -> DataError:
    return DataError("range-coded data that no encoder writes; the file is damaged: copy or write it again")


def _left_over(words: int | None) -> DataError:
    some = "" if words is None else f"{4 * words} "
    return DataError(f"{some}bytes are left over after the last symbol; the file is damaged: copy or write it again")
