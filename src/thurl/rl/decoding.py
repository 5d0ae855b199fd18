"""How answers are obtained from a model, and what becomes of them: settings, reading, summary. No torch in here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from thurl.errors import UsageError
from thurl.rl.parsing import SCORE_RANGE, parse_score


__all__ = ["Decoding", "QualityScore", "failed_score", "make_decoding", "read_answer", "summarise_answers"]

# 256 tokens is what the model was trained with; twice that leaves room for a model that reasons longer.
_NEW_TOKENS = {"think": 512, "direct": 32, "expected": 2, "describe": 512}


@dataclass(frozen=True)
class Decoding:
    """How answers are obtained; recorded with every result.

    Args:
        mode: "think", "direct", "expected" or "describe".
        n_samples: answers drawn per picture.
        seed: seed of the draws.
        temperature: 0 takes the most likely token (one answer); otherwise as in `generate`.
        top_k: keep the k most likely tokens; 0 keeps all. The published code of VisualQuality-R1 uses 50.
        top_p: keep the most likely tokens up to this probability; 1 keeps all.
        max_new_tokens: length limit of an answer; None: 512 (think, describe) or 32 (direct).
        resample: how often a failed answer is drawn again.
        decimals: decimals read in mode "expected", 0 or 1.
        min_mass: mode "expected" fails where the five digits together have a smaller probability than this: what
            is then read is the noise of a model that would not answer with a number.
        parse: how an answer is read, see `thurl.rl.parsing.parse_score`.
        out_of_range: what an answer outside [1, 5] is: "invalid" a failure, "clip" the nearest end, "keep" as written.

    Raises:
        UsageError: values out of range, and several samples of a deterministic answer.
    """

    mode: str = "think"
    n_samples: int = 1
    seed: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int | None = None
    resample: int = 0
    decimals: int = 1
    min_mass: float = 1e-3
    parse: Literal["strict", "official"] = "strict"
    out_of_range: Literal["invalid", "clip", "keep"] = "invalid"

    def __post_init__(self) -> None:
        problems = []
        for name, allowed in (
            ("mode", tuple(_NEW_TOKENS)),
            ("parse", ("strict", "official")),
            ("out_of_range", ("invalid", "clip", "keep")),
            ("decimals", (0, 1)),
        ):
            if getattr(self, name) not in allowed:
                problems.append(f"`{name}` is {getattr(self, name)!r}: choose one of {', '.join(map(str, allowed))}")
        for name, low in (("n_samples", 1), ("temperature", 0), ("top_k", 0), ("resample", 0), ("max_new_tokens", 1)):
            value = getattr(self, name)
            if value is not None and not value >= low:
                problems.append(f"`{name}` is {value}: it must be at least {low}")
        if not 0 < self.top_p <= 1:
            problems.append(f"`top_p` is {self.top_p}: it must be above 0 and at most 1")
        deterministic = self.mode == "expected" or self.temperature == 0
        if deterministic and (self.n_samples > 1 or self.resample):
            problems.append(
                f"`n_samples` is {self.n_samples} and `resample` {self.resample}, but "
                + ("mode 'expected'" if self.mode == "expected" else "temperature 0")
                + " always gives the same answer: leave them at 1 and 0, or draw with a temperature above 0"
            )
        if problems:
            raise UsageError(problems)

    @property
    def new_tokens(self) -> int:
        """The length limit in force."""
        return self.max_new_tokens if self.max_new_tokens is not None else _NEW_TOKENS[self.mode]

    def settings(self) -> dict[str, Any]:
        """The settings that have an effect in this mode, for a results file."""
        if self.mode == "expected":
            names = ("mode", "decimals", "min_mass")
        else:
            names = tuple(f.name for f in fields(self) if f.name not in ("decimals", "min_mass"))
        return {**{name: value for name, value in asdict(self).items() if name in names}} | (
            {} if self.mode == "expected" else {"max_new_tokens": self.new_tokens}
        )


@dataclass(frozen=True)
class QualityScore:
    """The score of one picture.

    Attributes:
        score: mean over the usable answers, in [1, 5] unless `out_of_range="keep"`; NaN when there is none.
        std: unbiased standard deviation over the usable answers, NaN for fewer than two; in mode "expected" the
            standard deviation of the answer's distribution.
        text: the first usable answer, or the first failed one when all failed; empty in mode "expected".
        ok: whether there is a score.
        error: why not, empty otherwise.
        samples: score of every answer, NaN where it failed.
        texts: every answer.
        mass: mode "expected": probability of the five digits together; None otherwise.
    """

    score: float
    std: float
    text: str
    ok: bool
    error: str = ""
    samples: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()
    mass: float | None = None

    @property
    def n_ok(self) -> int:
        """Number of usable answers."""
        return sum(not math.isnan(sample) for sample in self.samples)


def make_decoding(decoding: Decoding | None, options: Mapping[str, Any]) -> Decoding:
    """`decoding` (or the defaults) with single fields replaced; UsageError on an unknown one."""
    known = {field.name for field in fields(Decoding)}
    if unknown := sorted(set(options) - known):
        raise UsageError(f"unknown option {', '.join(unknown)}: choose from {', '.join(sorted(known))}")
    if decoding is None:
        return Decoding(**options)
    return replace(decoding, **options) if options else decoding


def read_answer(text: str, ended: bool, decoding: Decoding) -> tuple[float, str]:
    """The score in an answer and an empty string, or NaN and the reason; `ended`: the model stopped by itself."""
    value = parse_score(text, mode=decoding.parse)
    if value is None or not math.isfinite(value):
        if not ended:
            return math.nan, f"no answer within {decoding.new_tokens} tokens: raise max_new_tokens"
        return math.nan, "no single number inside <answer> </answer>"
    low, high = SCORE_RANGE
    if not low <= value <= high:
        if decoding.out_of_range == "invalid":
            return math.nan, f"answer {value:g} is outside [{low:g}, {high:g}]"
        if decoding.out_of_range == "clip":
            value = min(max(value, low), high)
    return value, ""


def failed_score(reason: str) -> QualityScore:
    """A score that is not there, with the reason."""
    return QualityScore(math.nan, math.nan, "", False, error=reason)


def summarise_answers(answers: Sequence[tuple[float, str, str]]) -> QualityScore:
    """One score out of the (score or NaN, text, reason) of every answer to one picture."""
    samples = tuple(value for value, _, _ in answers)
    texts = tuple(text for _, text, _ in answers)
    good = [(value, text) for value, text, _ in answers if not math.isnan(value)]
    if not good:
        return QualityScore(math.nan, math.nan, texts[0], False, answers[0][2], samples, texts)
    values = [value for value, _ in good]
    std = statistics.stdev(values) if len(values) > 1 else math.nan
    return QualityScore(statistics.fmean(values), std, good[0][1], True, "", samples, texts)
