"""What was pushed, back on this machine: a repository's folder, or one file of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from thurl.errors import MissingRequirementError
from thurl.hub.names import is_hub_name
from thurl.hub.secrets import without_secrets
from thurl.messages import first_line


__all__ = ["hub_file", "hub_folder", "snapshot"]


def snapshot(name: str, patterns: Sequence[str], *, repo_type: str = "model", revision: str | None = None) -> Path:
    """The folder in the cache with those files of a repository that match `patterns`.

    Raises:
        MissingRequirementError: the Hub does not give it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type=repo_type, revision=revision, allow_patterns=list(patterns)))
    # Anything from a wrong name to a broken connection; the library's own message says which.
    except Exception as error:
        raise MissingRequirementError(_not_given(name, repo_type, error)) from error


def hub_folder(name_or_path: str | os.PathLike[str], patterns: Sequence[str], *, revision: str | None = None) -> Path:
    """The folder itself, or that of a repository's files; a name that can only be a path is given back as it is.

    Raises:
        MissingRequirementError: it is `owner/name`, no such folder is here, and the Hub does not give it.
    """
    text = os.fspath(name_or_path)
    return snapshot(text, patterns, revision=revision) if is_hub_name(text) else Path(text)


def hub_file(name_or_path: str | os.PathLike[str], file: str, *, repo_type: str = "model") -> Path:
    """A path of this machine as it is, or `file` of the repository `owner/name`.

    Raises:
        MissingRequirementError: no such file is here, and the Hub does not give it.
    """
    text = os.fspath(name_or_path)
    if not is_hub_name(text):
        return Path(text)
    found = snapshot(text, [file], repo_type=repo_type) / file
    if not found.is_file():
        raise MissingRequirementError(f"{text}: no such file here, and the repository of that name has no {file}")
    return found


def _not_given(name: str, repo_type: str, error: Exception) -> str:
    kind = "" if repo_type == "model" else f" --repo-type {repo_type}"
    reason = without_secrets(first_line(error))
    return (
        f"{name}: nothing of that name here, and the Hub does not give it: {reason}. Check the name, or download it "
        f"on a machine with network (`hf download {name}{kind} --local-dir FOLDER`) and give the folder"
    )
