"""What the settings of a manifest cover: shares, reasons, makers and histograms, as data, as text and as a picture.

To be read before training: a setting that few photographs have earns little, a setting that is nearly constant ranks
nothing, and a single maker teaches the maker's processing instead of the setting.
"""

from __future__ import annotations

import bisect
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from thurl.forensics.exif.manifest import FaceRecord
from thurl.forensics.exif.scan import ScanResult, SkippedFile
from thurl.forensics.exif.settings import SETTINGS
from thurl.forensics.exif.tasks import CATEGORICAL_TASKS, ORDINAL_TASKS, class_names


__all__ = ["BINS", "coverage", "coverage_plot", "coverage_text"]

BINS: Mapping[str, tuple[float, ...]] = {
    "iso": (50, 100, 200, 400, 800, 1600, 3200, 6400),
    "aperture": (1.4, 2, 2.8, 4, 5.6, 8, 11, 16),
    "exposure_time": (1 / 4000, 1 / 1000, 1 / 500, 1 / 250, 1 / 125, 1 / 60, 1 / 30, 1 / 4, 1),
    "focal_length": (5, 10, 20, 35, 50, 85, 135, 200, 400),
}
"""Inner borders of the histograms, in the units of the settings; a value on a border counts above it."""

_UNITS = {"iso": "ISO", "aperture": "f-number", "exposure_time": "s", "focal_length": "mm"}
_SHOWN = 15
# Shares above which the report says so; ours.
_ONE_SIDED, _TIED = 0.9, 0.5
_BAR = 24


def coverage(found: ScanResult | Sequence[FaceRecord]) -> dict[str, Any]:
    """Figures of a scan or of a manifest, ready for JSON.

    Returns:
        `photographs`; `skipped`, reason to count, with sizes and names in a reason cut off; `skipped_files`, path to
        reason; `not_read`, ending to the number of files in a format that is not read; `groups`, `cameras`, their
        numbers; `all_ordinal`, `all_settings`, photographs that have all four, all nine; `tied_pairs`, ordinal
        setting to the share of pairs with equal values, `None` below two values; `settings`, setting to `present`,
        `absent` (reason to count) and `histogram`: for ordinal ones `borders` and `counts` (one more) with
        `quartiles` (5 numbers, `None` when never present), for categorical ones class to count; `cameras_by_count`,
        camera to count; `notes`, sentences about what such photographs cannot teach.
    """
    skipped: Sequence[SkippedFile] = found.skipped if isinstance(found, ScanResult) else ()
    records = found.records if isinstance(found, ScanResult) else list(found)
    have = Counter(sum(name in record.settings.values for name in ORDINAL_TASKS) for record in records)
    cameras = Counter(record.camera or "unknown" for record in records)
    report = {
        "photographs": len(records),
        "skipped": _counts(Counter(_kind(item.reason) for item in skipped)),
        "skipped_files": {item.image: item.reason for item in skipped},
        "not_read": dict(found.not_read) if isinstance(found, ScanResult) else {},
        "groups": len({record.group or record.image for record in records}),
        "cameras": len({record.camera for record in records if record.camera}),
        "all_ordinal": have[len(ORDINAL_TASKS)],
        "all_settings": sum(len(record.settings.values) == len(SETTINGS) for record in records),
        "tied_pairs": {name: _ties(_values(records, name)) for name in ORDINAL_TASKS},
        "settings": {name: _setting(records, name) for name in SETTINGS},
        "cameras_by_count": _counts(cameras),
    }
    return {**report, "notes": _notes(report)}


def coverage_text(report: Mapping[str, Any]) -> str:
    """The report as plain text for a terminal or a log, about 100 characters wide.

    Args:
        report: what `coverage` returned.
    """
    total = report["photographs"]
    lines = [
        f"{total} photographs, {report['cameras']} camera models, {report['groups']} "
        f"group{'' if report['groups'] == 1 else 's'}; "
        f"{report['all_ordinal']} have all four ordinal settings, {report['all_settings']} all nine.",
        "",
        f"{'setting':<17} {'present':>8} {'share':>6}  absent because",
    ]
    for name in SETTINGS:
        item = report["settings"][name]
        why = ", ".join(f"{reason} {count}" for reason, count in item["absent"].items())
        share = item["present"] / total if total else 0.0
        lines.append(f"{name:<17} {item['present']:>8} {share:>6.1%}  {why}".rstrip())
    for name in SETTINGS:
        item = report["settings"][name]
        if not item["present"]:
            continue
        title = name
        if name in ORDINAL_TASKS:
            low, _, middle, _, high = item["quartiles"]
            ties = report["tied_pairs"][name]
            title += (
                f" ({_UNITS[name]}): median {_value(name, middle)}, from {_value(name, low)} to {_value(name, high)}"
            )
            title += f", {ties:.0%} of pairs tied" if ties is not None else ""
        lines += ["", title]
        top = max(_bars(name, item).values())
        lines += [
            f"  {label:<18} {count:>8}  {'#' * round(_BAR * count / top)}".rstrip()
            for label, count in _bars(name, item).items()
        ]
    lines += _listed("cameras", report["cameras_by_count"]) + _listed("skipped files", report["skipped"])
    lines += _listed("files in formats that are not read", report.get("not_read", {}))
    notes = report.get("notes", [])
    lines += ["", "before training", *(f"  {note}" for note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def coverage_plot(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes the nine histograms as one picture; the ending of `path` decides the format (PNG, SVG, PDF).

    Args:
        report: what `coverage` returned.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(12, 9), layout="constrained")
    FigureCanvasAgg(figure)
    total = report["photographs"]
    for axes, name in zip(figure.subplots(3, 3).flat, SETTINGS, strict=True):
        item = report["settings"][name]
        bars = _bars(name, item)
        axes.barh(range(len(bars)), list(bars.values()), color="0.35")
        axes.set_yticks(range(len(bars)), list(bars), fontsize=7)
        axes.invert_yaxis()
        axes.set_title(f"{name}: {item['present']} of {total}", fontsize=9)
        axes.tick_params(axis="x", labelsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.savefig(path)


def _notes(report: Mapping[str, Any]) -> list[str]:
    total = report["photographs"]
    notes = []
    if total > 1 and report["groups"] == 1:
        notes.append(
            "All photographs are in one group and cannot be split: keep each source in a folder of its own, or group "
            "by camera or by file."
        )
    for name in SETTINGS:
        item = report["settings"][name]
        if total and not item["present"]:
            notes.append(f"{name} is in no photograph: its task learns nothing.")
        elif name in CATEGORICAL_TASKS and item["present"]:
            label, most = max(item["histogram"].items(), key=lambda pair: pair[1])
            if most == item["present"]:
                notes.append(f"{name} is always {label}: its task learns nothing.")
            elif most > _ONE_SIDED * item["present"]:
                notes.append(f"{name} is {label} in {most / item['present']:.0%}: there is little to tell apart.")
        elif name in ORDINAL_TASKS and (report["tied_pairs"][name] or 0) > _TIED:
            notes.append(f"{name} is the same in {report['tied_pairs'][name]:.0%} of pairs: it ranks little.")
    return notes


def _setting(records: Sequence[FaceRecord], name: str) -> dict[str, Any]:
    absent = Counter(record.settings.absent[name] for record in records if name in record.settings.absent)
    values = _values(records, name)
    item: dict[str, Any] = {"present": len(values), "absent": _counts(absent)}
    if name in CATEGORICAL_TASKS:
        counts = Counter(values)
        item["histogram"] = {label: counts[label] for label in class_names(name)}
        return item
    borders = BINS[name]
    places = Counter(bisect.bisect_right(borders, value) for value in values)
    item["histogram"] = {"borders": list(borders), "counts": [places[i] for i in range(len(borders) + 1)]}
    ordered = sorted(values)
    last = len(ordered) - 1
    # Values that occur, not interpolated ones: f/4.75 is no aperture.
    item["quartiles"] = [ordered[round(last * share)] for share in (0, 0.25, 0.5, 0.75, 1)] if ordered else None
    return item


def _values(records: Sequence[FaceRecord], name: str) -> list[Any]:
    return [record.settings.values[name] for record in records if name in record.settings.values]


def _ties(values: Sequence[float]) -> float | None:
    pairs = len(values) * (len(values) - 1) // 2
    return sum(n * (n - 1) // 2 for n in Counter(values).values()) / pairs if pairs else None


def _bars(name: str, item: Mapping[str, Any]) -> dict[str, int]:
    if name in CATEGORICAL_TASKS:
        return dict(item["histogram"])
    borders, counts = item["histogram"]["borders"], item["histogram"]["counts"]
    shown = [_value(name, border) for border in borders]
    labels = [f"below {shown[0]}", *(f"{a} to {b}" for a, b in zip(shown, shown[1:], strict=False))]
    return dict(zip([*labels, f"{shown[-1]} or more"], counts, strict=True))


def _value(name: str, value: float) -> str:
    return f"1/{1 / value:.0f}" if name == "exposure_time" and value < 0.3 else f"{value:.4g}"


def _counts(counter: Mapping[str, int]) -> dict[str, int]:
    """Most frequent first; equal ones by name, so that the report does not depend on the order of the files."""
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))


def _kind(reason: str) -> str:
    """A reason without the details that make every file's its own."""
    if reason.startswith("same file as"):
        return "same file as another"
    if reason[:1].isdigit():
        return "too large"
    return reason.split(" (")[0].split(": ")[0].split(";")[0]


def _listed(title: str, counts: Mapping[str, int]) -> list[str]:
    if not counts:
        return []
    items = list(counts.items())
    more = len(items) - _SHOWN
    lines = ["", title] + [f"  {count:>8}  {name}" for name, count in items[:_SHOWN]]
    return lines + ([f"  {'':>8}  and {more} more"] if more > 0 else [])
