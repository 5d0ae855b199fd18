"""What a metric of the evaluator is, and where metrics come from.

A metric is a class with a name, what it needs beside the restored picture, a direction, a range and the weights it
requires. `register_metric` makes it known; a package can also name the module that does so under the entry point group
`thurl.face_metrics`. Nothing heavy may happen before the constructor: requirements of all chosen metrics are checked
first, so that one message lists everything that is missing.

    @register_metric
    class Brightness(Metric):
        name = "brightness"
        range = (0.0, 1.0)

        def score(self, batch):
            return batch.pixels("restored").mean(dim=(1, 2, 3))
"""

from __future__ import annotations

import logging
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from thurl.errors import MissingRequirementError, UsageError
from thurl.messages import nearest


if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = [
    "ENTRY_POINTS",
    "NEEDS",
    "FaceBatch",
    "Metric",
    "MetricContext",
    "Package",
    "SetMetric",
    "SetResult",
    "WeightFile",
    "metric_class",
    "metric_names",
    "register_metric",
]

logger = logging.getLogger(__name__)

ENTRY_POINTS = "thurl.face_metrics"
"""Entry point group; a value is a module whose import registers metrics, or a metric class."""

NEEDS = ("gt", "landmarks", "lq")
"""What a metric can ask for beside the restored picture."""

TIERS = ("classic", "learned")

_BUILT_IN = ("classic_metrics", "learned_metrics", "set_metrics")
_registry: dict[str, type[Metric]] = {}
_state = {"loaded": False}


@dataclass(frozen=True)
class WeightFile:
    """Weights that a metric requires.

    Attributes:
        name: what `weights={name: path}` calls them.
        files: accepted names inside the weights folder; the first that is there is taken. A folder counts as well.
        where: where to get them.
        size: bytes, as text, where it is known.
        sha256: digest of the file, where it is known.
    """

    name: str
    files: tuple[str, ...]
    where: str
    size: str = "unknown"
    sha256: str = "unknown"


@dataclass(frozen=True)
class Package:
    """A Python package that a metric requires and that thurl does not install.

    Attributes:
        module: import name.
        note: how to get it, and what to know first, such as its licence.
    """

    module: str
    note: str


@dataclass(frozen=True)
class MetricContext:
    """What metrics are built from.

    Attributes:
        weights_dir: folder in which weights are looked for; None when there is none.
        weights: paths of single weights by the name of their `WeightFile`; they win over the folder.
        device: torch device of learned metrics.
        seed: for metrics that draw, such as those with random crops.
        options: further settings of single metrics, such as `{"qalign": "4bit"}`.
        allow_remote_code: whether a metric may run code that comes with its weights.
    """

    weights_dir: Path | None = None
    weights: Mapping[str, Path] = field(default_factory=dict)
    device: str = "cpu"
    seed: int = 0
    options: Mapping[str, str] = field(default_factory=dict)
    allow_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.weights_dir is not None:
            object.__setattr__(self, "weights_dir", Path(self.weights_dir))
        object.__setattr__(self, "weights", {name: Path(path) for name, path in self.weights.items()})

    def find(self, wanted: WeightFile) -> Path | None:
        """Where the weights lie; None when they are not there."""
        if wanted.name in self.weights:
            path = self.weights[wanted.name]
            return path if path.exists() else None
        if self.weights_dir is None:
            return None
        return next((self.weights_dir / name for name in wanted.files if (self.weights_dir / name).exists()), None)

    def require(self, wanted: WeightFile) -> Path:
        """Where the weights lie.

        Raises:
            MissingRequirementError: they are not there.
        """
        path = self.find(wanted)
        if path is None:
            raise MissingRequirementError(f"{self.expected(wanted)} is not there. {wanted.where}")
        return path

    def expected(self, wanted: WeightFile) -> str:
        """Where the weights would be looked for, for a message."""
        if wanted.name in self.weights:
            return str(self.weights[wanted.name])
        folder = self.weights_dir if self.weights_dir is not None else Path("WEIGHTS_DIR")
        return " or ".join(str(folder / name) for name in wanted.files) or f"--weights {wanted.name}=PATH"


class FaceBatch:
    """Pictures of one size, with what belongs to them.

    Args:
        keys: `dataset/name` of each picture, (B,).
        pictures: "restored" and, where there, "lq" and "gt" to (B, 3, H, W) uint8 RGB. All of one kind have one size;
            the sizes of the kinds may differ.
        landmarks: (B, 5, 2) float64 pixels of the LQ picture, or of the restored one where there is no LQ.
        digests: SHA-1 of each restored file; seeds what a metric draws, so that it does not depend on the batch.
    """

    def __init__(
        self,
        keys: Sequence[str],
        pictures: Mapping[str, torch.Tensor],
        landmarks: np.ndarray | None = None,
        digests: Sequence[str] = (),
    ):
        self.keys = tuple(keys)
        self.pictures = dict(pictures)
        self.landmarks = landmarks
        self.digests = tuple(digests) or tuple("" for _ in self.keys)
        self._cached: dict[tuple[str, Any, str], torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        # Between processes only the bytes travel, not what was computed from them.
        return self.__dict__ | {"_cached": {}}

    def pixels(self, kind: str, dtype: torch.dtype | None = None, device: str = "cpu") -> torch.Tensor:
        """Pictures of one kind in [0, 1], (B, 3, H, W); float64 by default, on the CPU."""
        import torch

        dtype = dtype or torch.float64
        key = (kind, dtype, device)
        if key not in self._cached:
            self._cached[key] = self.pictures[kind].to(device).to(dtype) / 255
        return self._cached[key]

    def single(self, index: int) -> FaceBatch:
        """One picture as a batch."""
        pictures = {kind: tensor[index : index + 1] for kind, tensor in self.pictures.items()}
        landmarks = None if self.landmarks is None else self.landmarks[index : index + 1]
        return FaceBatch(self.keys[index : index + 1], pictures, landmarks, self.digests[index : index + 1])


class Metric(ABC):
    """One number per picture. Subclasses set the class attributes and write `score`.

    Attributes:
        name: column and option name: lower case, digits and underscores.
        needs: subset of `NEEDS`; a picture without one of them gets an empty cell and an error.
        lower_is_better: direction, used by comparisons; None for a number that describes and does not judge.
        range: smallest and largest value; infinite where there is no bound.
        requires: weights and packages.
        version: changes whenever results change; part of the key under which results are kept.
        tier: "classic" (no weights, computed on the CPU, also in worker processes) or "learned".
        explicit: left out of groups such as `all`; chosen by name only.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    lower_is_better: ClassVar[bool | None] = False
    range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    requires: ClassVar[tuple[WeightFile | Package, ...]] = ()
    version: ClassVar[str] = "1"
    tier: ClassVar[str] = "learned"
    explicit: ClassVar[bool] = False

    def __init__(self, context: MetricContext):
        self.context = context

    @classmethod
    def missing(cls, context: MetricContext) -> list[str]:
        """What is required and not there: one message per item, with place, size, digest and source."""
        messages = []
        for item in cls.requires:
            if isinstance(item, Package):
                if not _importable(item.module):
                    messages.append(f"Python package `{item.module}` is not installed. {item.note}")
            elif context.find(item) is None:
                messages.append(
                    f"{context.expected(item)} is not there (size: {item.size}, sha256: {item.sha256}). {item.where}"
                )
        return messages

    @abstractmethod
    def score(self, batch: FaceBatch) -> torch.Tensor:
        """One value per picture, (B,) of any floating dtype; NaN where the metric is not defined.

        Raises:
            DataError: the pictures are not fit for the metric; the message becomes the pictures' error.
        """

    def fingerprint(self) -> str:
        """What identifies the results besides `name` and `version`: digests of weights, precision, seeds."""
        return ""


@dataclass(frozen=True)
class SetResult:
    """Outcome of a metric of a whole set.

    Attributes:
        value: the number; NaN where it is not defined.
        details: further numbers for the summary (intervals, counts).
        warnings: what a reader must know before comparing it.
    """

    value: float
    details: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class SetMetric(Metric):
    """One number per set, from one feature vector per picture: `features`, then `update` in order, then `compute`."""

    @property
    def feature_name(self) -> str:
        """Under which the features are kept; two metrics with one name and one fingerprint share them."""
        return self.name

    def score(self, batch: FaceBatch) -> torch.Tensor:
        raise TypeError(f"{self.name} is a metric of a whole set: call `features`, `update` and `compute`")

    @abstractmethod
    def features(self, batch: FaceBatch) -> torch.Tensor:
        """(B, D) float32 features of the restored pictures."""

    @abstractmethod
    def update(self, features: np.ndarray) -> None:
        """Add the rows (B, D) of some pictures, in the order of the set."""

    @abstractmethod
    def compute(self) -> SetResult:
        """The metric of all pictures so far."""


def register_metric(cls: type[Metric]) -> type[Metric]:
    """Class decorator that makes a metric known under its name.

    Raises:
        UsageError: a name that is no column name or is taken, an unknown need or tier.
    """
    problems = []
    if not re.fullmatch("[a-z][a-z0-9_]*", cls.name):
        problems.append(f"metric name {cls.name!r}: lower case letters, digits and underscores are needed")
    taken = _registry.get(cls.name)
    if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        problems.append(f"metric name {cls.name!r} is taken by {taken.__module__}.{taken.__qualname__}; take another")
    if unknown := set(cls.needs) - set(NEEDS):
        problems.append(f"metric {cls.name!r} needs {', '.join(sorted(unknown))}: choose from {', '.join(NEEDS)}")
    if cls.tier not in TIERS:
        problems.append(f"metric {cls.name!r} has the tier {cls.tier!r}: choose from {', '.join(TIERS)}")
    if problems:
        raise UsageError(problems)
    _registry[cls.name] = cls
    return cls


def metric_names(tier: str | None = None) -> list[str]:
    """Names of all metrics, or of one tier, sorted."""
    _load_all()
    return sorted(name for name, cls in _registry.items() if tier is None or cls.tier == tier)


def metric_class(name: str) -> type[Metric]:
    """The metric of a name.

    Raises:
        UsageError: no such metric.
    """
    _load_all()
    if name not in _registry:
        raise UsageError(f"metric {name!r} does not exist{nearest(name, _registry)}; see `thurl faces metrics`")
    return _registry[name]


def _load_all() -> None:
    if _state["loaded"]:
        return
    _state["loaded"] = True
    for module in _BUILT_IN:
        import_module(f"thurl.iqa.face_restoration.{module}")
    for point in _points():
        try:
            loaded = point.load()
            if isinstance(loaded, type) and issubclass(loaded, Metric):
                register_metric(loaded)
        except Exception as error:  # somebody else's package must not stop an evaluation that does not use it
            logger.warning("metrics of %s (%s) cannot be loaded: %s", point.name, point.value, error)


def _points() -> Iterable[Any]:
    return entry_points(group=ENTRY_POINTS)


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
