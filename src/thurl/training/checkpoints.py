"""Checkpoint folders that are either whole or recognised as broken. Needs no torch.

A checkpoint is written below `_unfinished`, gets a manifest (sizes and checksums of all its files) as its last file
and only then its name `checkpoint-<step>`, by one rename. A run that is killed while writing leaves `_unfinished`,
which nobody takes for a checkpoint; a folder damaged afterwards no longer agrees with its manifest.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from thurl.errors import DataError, UsageError


__all__ = [
    "MANIFEST",
    "UNFINISHED",
    "checkpoint_problems",
    "checkpoint_settings",
    "choose_checkpoint",
    "finish_checkpoint",
    "last_whole_checkpoint",
    "remove_old_checkpoints",
    "write_manifest",
]

logger = logging.getLogger(__name__)

MANIFEST = "thurl_checkpoint.json"
UNFINISHED = "_unfinished"
"""Folder, beside the checkpoints, of the one being written. Pushes to the Hub leave out names that begin with `_`."""

_NAME = re.compile(r"checkpoint-(\d+)")
_CHUNK = 1 << 22  # bytes


def write_manifest(
    folder: str | os.PathLike[str],
    *,
    step: int,
    settings: Mapping[str, Any] | None = None,
    resumable: bool = True,
) -> None:
    """Bring all files of `folder` to the disk and write down their sizes and checksums; the last thing to be written.

    Args:
        folder: of the checkpoint.
        step: optimizer steps done.
        settings: what a run that resumes exactly must have in common with this one.
        resumable: False for a checkpoint that holds weights only.
    """
    folder = Path(folder)
    files = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, _checksum(path, sync=True)]
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = {
        "format": 1,
        "step": step,
        "saved": time.time(),
        "resumable": resumable,
        "settings": dict(settings or {}),
        "files": files,
    }
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(json.dumps(manifest, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(folder)


def checkpoint_problems(folder: str | os.PathLike[str]) -> list[str]:
    """What is wrong with a checkpoint, one line per file; empty when it is whole and can be resumed from."""
    folder = Path(folder)
    try:
        manifest = _manifest(folder)
    except DataError as error:
        return [str(error)]
    problems = [] if manifest["resumable"] else ["holds weights only (`save_only_model`)"]
    for name, (size, checksum) in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != size:
            problems.append(f"{name} has {path.stat().st_size} bytes, not {size}")
        elif _checksum(path) != checksum:
            problems.append(f"{name} has another content than was written")
    return problems


def checkpoint_settings(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in the manifest of a checkpoint.

    Raises:
        DataError: there is no readable manifest.
    """
    return dict(_manifest(Path(folder))["settings"])


def last_whole_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The checkpoint below `folder` that was written last and is whole; None if there is none.

    Broken ones are named in a warning each, with what is wrong with them.
    """
    found = []
    for path in Path(folder).glob("checkpoint-*"):
        match = _NAME.fullmatch(path.name)
        if match is None or not path.is_dir():
            continue
        try:
            # Not the highest step: a run may have been taken back to an earlier one on purpose.
            order = (float(_manifest(path)["saved"]), int(match[1]))
        except DataError:
            order = (path.stat().st_mtime, int(match[1]))
        found.append((order, path))
    for _, path in sorted(found, reverse=True):
        problems = checkpoint_problems(path)
        if not problems:
            return path
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        logger.warning("%s is not whole and is left out: %s%s", path, "; ".join(problems[:3]), more)
    return None


def choose_checkpoint(wanted: str | bool, folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The folder to resume from; None: start anew.

    Args:
        wanted: `"auto"`: the last whole checkpoint in `folder`, None if there is none; True: the same, but an error
            if there is none; otherwise a checkpoint's folder.
        folder: of the run.
        settings: of this run, to be compared with those of the checkpoint.

    Raises:
        UsageError: it is damaged, not there, or of a run with other settings.
    """
    if wanted is True or wanted == "auto":
        found = last_whole_checkpoint(folder)
        if found is None and wanted is True:
            raise UsageError(f"There is no whole checkpoint in {folder}; start anew, or use 'auto'.")
    else:
        found = Path(str(wanted))
        if not found.is_dir():
            raise UsageError(f"{found} is no folder; give a checkpoint folder, or 'auto'.")
        if not (found / MANIFEST).is_file():
            logger.warning(
                "%s has no %s: what transformers saved is restored, the run does not go on exactly", found, MANIFEST
            )
            return str(found)
        problems = checkpoint_problems(found)
        if problems:
            other = last_whole_checkpoint(found.parent)
            raise UsageError(
                f"{found} cannot be resumed from: {'; '.join(problems[:3])}. "
                + (f"The last whole one is {other}; " if other else "There is no whole one beside it; ")
                + "'auto' takes the last whole one or starts anew."
            )
    if found is None:
        return None
    saved = checkpoint_settings(found)
    differing = [
        f"`{name}` was {saved[name]!r}, now {value!r}"
        for name, value in settings.items()
        if name in saved and saved[name] != value
    ]
    if differing:
        raise UsageError(
            f"{found} belongs to a run with other settings: {'; '.join(differing)}. Take the same, or start a new run "
            "from its weights (`model.name_or_path`) in another `output_dir`."
        )
    return str(found)


def finish_checkpoint(unfinished: Path, final: Path) -> None:
    """Give a checkpoint with its manifest its name. One of that name, left by an earlier run, is replaced."""
    old = None
    if final.exists():
        old = unfinished.parent / f"replaced-{final.name}"
        os.rename(final, old)
    os.rename(unfinished, final)
    _sync_folder(final.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def remove_old_checkpoints(folder: Path, limit: int | None, keep: Iterable[Path]) -> None:
    """Remove the oldest checkpoints until `limit` are left, none of those in `keep`; None or 0: remove nothing."""
    if not limit or limit < 1:
        return
    paths = [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    spare = sorted({path.resolve() for path in paths} - {path.resolve() for path in keep}, key=_age)
    for path in spare[: max(0, len(paths) - limit)]:
        # Without its manifest it is no checkpoint any more, also when this is interrupted.
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)


def _age(path: Path) -> tuple[int, int]:
    return (path.stat().st_mtime_ns, int(path.name.rpartition("-")[2]))


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{MANIFEST} is missing: it was not written by thurl, or not to its end")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = manifest["files"]
        complete = isinstance(files, dict) and {"saved", "resumable", "settings"} <= set(manifest)
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise DataError(f"{MANIFEST} cannot be read")
    return manifest


def _checksum(path: Path, *, sync: bool = False) -> str:
    """CRC-32 of a file: finds damage, at the speed of the disk; it is no protection against intent."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
        if sync:
            os.fsync(file.fileno())
    return f"{value:08x}"


def _sync_folder(folder: Path) -> None:
    """Bring names to the disk, where the file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        logger.debug("%s cannot be synchronised", folder)
    finally:
        os.close(descriptor)
