"""What the expansion makes of a video: which edit, which regions, whose face, and the labels that follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thurl.errors import UsageError
from thurl.forensics.deepfake.forgeries import Blend
from thurl.forensics.deepfake.graph import LabelGraph
from thurl.forensics.deepfake.manifest import FaceItem, VideoKey
from thurl.forensics.deepfake.regions import REGIONS
from thurl.forensics.weights import draw_name, weight_problems


__all__ = ["DONORS", "EDITS", "DonorPool", "ExpansionConfig", "Plan", "edit_labels", "plan_of", "region_labels"]

EDITS = ("region", "identity", "expression", "physical")
"""Names of what can be done to a face."""

DONORS = ("aligned", "self", "other")
"""Where a region can come from."""

_LABELS_OF_REGION = {"mouth": ("lip", "mouth")}
_KNOWN = {"identity": ("FaceSwap", "identity"), "expression": ("Face2Face", "smile")}
_REGIONS_OF_EDIT = {"identity": REGIONS, "expression": ("mouth",), "physical": ("eye", "nose", "mouth")}
# A moved mouth needs room around it.
_EXPRESSION_DILATION = 0.25


def _weights(**values: float) -> Any:
    return field(default_factory=lambda: dict(values))


@dataclass(frozen=True)
class ExpansionConfig:
    """What is drawn from. A range is (lowest, highest), drawn uniformly; lengths are shares of the eye distance.

    Args:
        edits: of `EDITS` to a weight of 0 or more.
        regions: of `thurl.forensics.deepfake.regions.REGIONS` to a weight, for the edit "region".
        combine: probability of another region, drawn again and again.
        donors: of `DONORS` to a weight, for the edit "region". Those that a video has none of are left out.
        attributes: global nodes that a region is labelled with, the first that is above it in the graph.
        copies: forged videos per real one.
        dilation: of the region; 5 to 15 % by default.
        jitter: largest displacement of the border.
        feather: standard deviation of the border in pixels at 80 pixels between the eyes.
        colour: how far the donor's colours are moved to the real face's, from 0 to 1.
        least_change: mean change in grey values inside the mask that a picture must have.
        most_outside: and the mean change outside that it may have.
        attempts: pictures that are drawn before a frame is given up.
        seed: of everything.

    Raises:
        UsageError: values outside these rules, all of them.
    """

    edits: Mapping[str, float] = _weights(region=1.0)
    regions: Mapping[str, float] = _weights(eye=1.0, mouth=1.0, nose=1.0)
    combine: float = 0.0
    donors: Mapping[str, float] = _weights(aligned=1.0, self=1.0, other=1.0)
    attributes: tuple[str, ...] = ("physical", "identity")
    copies: int = 1
    dilation: tuple[float, float] = (0.05, 0.15)
    jitter: tuple[float, float] = (0.0, 0.04)
    feather: tuple[float, float] = (2.0, 6.0)
    colour: tuple[float, float] = (0.6, 1.0)
    least_change: float = 2.0
    most_outside: float = 0.1
    attempts: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "attributes", tuple(self.attributes))
        problems: list[str] = []
        for name, known in (("edits", EDITS), ("regions", REGIONS), ("donors", DONORS)):
            problems += weight_problems(name, getattr(self, name), known)
        for name, most in (("dilation", 1.0), ("jitter", 0.5), ("feather", 50.0), ("colour", 1.0)):
            value = tuple(getattr(self, name))
            object.__setattr__(self, name, value)
            if len(value) != 2 or not 0 <= value[0] <= value[1] <= most:
                rule = f"two numbers from 0 to {most:g}, the smaller one first"
                problems.append(f"{name} is {list(value)}; it must be {rule}")
        if not 0 <= self.combine < 1:
            problems.append(f"combine is {self.combine}; it must be a probability below 1")
        if self.copies < 1 or self.attempts < 1:
            problems.append(f"copies is {self.copies}, attempts {self.attempts}; both must be 1 or more")
        if self.least_change < 0 or self.most_outside < 0 or self.seed < 0:
            problems.append("least_change, most_outside and seed must be 0 or more")
        if problems:
            raise UsageError(problems)

    def draw_blend(self, edit: str, rng: np.random.Generator) -> Blend:
        """How one frame is blended."""
        dilation, jitter, feather, colour = (
            float(rng.uniform(*limits)) for limits in (self.dilation, self.jitter, self.feather, self.colour)
        )
        if edit == "expression":
            dilation += _EXPRESSION_DILATION
        # The colours are what is altered where the light is.
        colour = 0.0 if edit == "physical" else colour
        return Blend(dilation, jitter, feather, colour, int(rng.integers(2**63)))


@dataclass(frozen=True)
class Plan:
    """What is made of one copy of a video.

    Attributes:
        edit: one of `EDITS`.
        regions: that are replaced.
        donor: one of `DONORS`, or "expression" or "relit".
        labels: (n,) of the forged faces.
        source: the video whose frames are the donors, None where the face is its own donor.
    """

    edit: str
    regions: tuple[str, ...]
    donor: str
    labels: tuple[int, ...]
    source: VideoKey | None = None

    @property
    def manipulation(self) -> str:
        """Name of the manipulation, marked as made by the expansion."""
        what = "+".join(self.regions) if self.edit == "region" else self.edit
        return f"expanded-{what}"


class DonorPool:
    """The faces that regions can be taken from."""

    def __init__(self, items: Iterable[FaceItem]):
        self._people: dict[str, dict[VideoKey, list[FaceItem]]] = {}
        self._fakes: dict[tuple[str, str, str], dict[VideoKey, dict[int, FaceItem]]] = {}
        for item in items:
            if item.fake == 0 and item.landmarks is not None and item.identities:
                self._people.setdefault(item.split, {}).setdefault(item.video_key, []).append(item)
            elif item.fake == 1 and item.original and item.frame is not None:
                place = (item.dataset, item.split, item.original)
                self._fakes.setdefault(place, {}).setdefault(item.video_key, {})[item.frame] = item
        # Sorted once: every video of a large data set asks for all others.
        self._ordered = {
            split: [(key, frozenset(videos[key][0].identities)) for key in sorted(videos)]
            for split, videos in self._people.items()
        }

    def sources(self, item: FaceItem, donor: str) -> list[VideoKey]:
        """Videos that donate to the video of `item`, in alphabetical order."""
        if donor == "aligned":
            return sorted(self._fakes.get((item.dataset, item.split, item.video), {})) if item.video else []
        if donor == "other" and item.identities:
            return [key for key, people in self._ordered.get(item.split, ()) if people.isdisjoint(item.identities)]
        return []

    def frame(self, item: FaceItem, plan: Plan) -> FaceItem | None:
        """The donor's frame for this one: the same number of an aligned video, any of another person's."""
        if plan.source is None:
            return None
        if plan.donor == "aligned":
            frames = self._fakes[item.dataset, item.split, item.video][plan.source]
            return None if item.frame is None else frames.get(item.frame)
        others = self._people[item.split][plan.source]
        return others[(item.frame or 0) % len(others)]


def plan_of(
    item: FaceItem, graph: LabelGraph, config: ExpansionConfig, pool: DonorPool, rng: np.random.Generator
) -> Plan | str:
    """What is made of a video, or the reason why nothing can be.

    Args:
        item: any of its frames.
        graph, config, pool: of the expansion.
        rng: of this copy of this video.
    """
    edit = draw_name(rng, config.edits)
    wanted: Mapping[str, float] = config.donors
    if edit == "identity":
        wanted = {"other": 1.0}
    elif edit != "region":
        donor = "expression" if edit == "expression" else "relit"
        return Plan(edit, _REGIONS_OF_EDIT[edit], donor, _labels_of_edit(graph, edit))
    sources = {donor: pool.sources(item, donor) for donor in wanted}
    usable = {donor: w for donor, w in wanted.items() if w > 0 and (donor == "self" or sources[donor])}
    regions = _regions(config, rng) if edit == "region" else _REGIONS_OF_EDIT[edit]
    if not usable:
        return f"no donor ({', '.join(donor for donor, w in wanted.items() if w > 0)}) in its split"
    donor = draw_name(rng, usable)
    source = None if donor == "self" else sources[donor][int(rng.integers(len(sources[donor])))]
    if edit == "region":
        return Plan(edit, regions, donor, region_labels(graph, regions, config.attributes), source)
    return Plan(edit, regions, donor, _labels_of_edit(graph, edit), source)


def region_labels(
    graph: LabelGraph, regions: Sequence[str], attributes: Sequence[str] = ("physical", "identity")
) -> tuple[int, ...]:
    """Labels (n,) of a face with these regions replaced: the union over the regions, legal by the graph.

    Every region is labelled with the first of `attributes` that the graph puts above it, or else with the first node
    that it puts there. The mouth is labelled as mouth and lip.

    Raises:
        UsageError: a region that the graph has no node for.
    """
    nodes = {node.name: node for node in graph.nodes}
    on = {graph.names[0]}
    for region in regions:
        for name in _LABELS_OF_REGION.get(region, (region,)):
            if name not in nodes or nodes[name].level != "local":
                local = ", ".join(node.name for node in graph.nodes if node.level == "local")
                raise UsageError(f"region {region!r} has no node in the label graph {graph.name}, which has {local}")
            parents = nodes[name].parents
            on |= {name, next((attribute for attribute in attributes if attribute in parents), parents[0])}
    labels = [int(name in on) for name in graph.names]
    graph.check(labels)
    return tuple(labels)


def edit_labels(graph: LabelGraph, config: ExpansionConfig) -> None:
    """Raises UsageError, with all problems, where the graph has no labels for what `config` may make."""
    problems: list[str] = []
    for edit, weight in config.edits.items():
        regions = [region for region, chance in config.regions.items() if chance > 0]
        for one in ([[region] for region in regions] if edit == "region" else [None]) if weight > 0 else []:
            try:
                if one is None:
                    _labels_of_edit(graph, edit)
                else:
                    region_labels(graph, one, config.attributes)
            except UsageError as error:
                problems += error.problems
    if problems:
        raise UsageError(problems)


def _labels_of_edit(graph: LabelGraph, edit: str) -> tuple[int, ...]:
    if edit == "physical":
        if "physical" not in graph.names:
            raise UsageError(f"edit 'physical' needs a node of this name, which the label graph {graph.name} has not")
        return region_labels(graph, _REGIONS_OF_EDIT[edit], ("physical",))
    for name in _KNOWN[edit]:
        if name in graph.manipulations:
            return tuple(graph.vector(name))
    raise UsageError(
        f"edit {edit!r} needs the labels of {' or '.join(_KNOWN[edit])} among the manipulations of the label graph "
        f"{graph.name}"
    )


def _regions(config: ExpansionConfig, rng: np.random.Generator) -> tuple[str, ...]:
    left = {region: weight for region, weight in config.regions.items() if weight > 0}
    chosen = []
    while left:
        chosen.append(draw_name(rng, left))
        del left[chosen[-1]]
        if rng.random() >= config.combine:
            break
    return tuple(region for region in REGIONS if region in chosen)
