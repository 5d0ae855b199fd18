"""One way to the Hub for whatever was trained: one commit with the files of a folder and its card, or nothing.

The folder is only read. Whatever fails says why and how to try again.
"""

from __future__ import annotations

import json
import logging
import shlex
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thurl.errors import DataError, MissingRequirementError, PushError, UsageError
from thurl.hub.files import CARD, RunFiles, run_files
from thurl.hub.names import PLACEHOLDER, is_hub_name, name_problem
from thurl.hub.secrets import hide_secrets, known_tokens, without_secrets
from thurl.messages import printable


__all__ = ["Destination", "Pushed", "login_problem", "push_folder"]

logger = logging.getLogger(__name__)

_SECONDS = 10.0
_TEXT_BYTES = 2**24
_REASONS = {
    401: ("the token is not accepted", "log in (`hf auth login`), or set HF_TOKEN to a token that may write"),
    402: ("the account would have to pay for it", "see the account's billing page, or push to another account"),
    403: ("it is not allowed", "check the token's right to write, the name's owner, and the account's storage"),
    404: ("there is no such repository for this token", "check the name and the token's rights"),
    409: ("the repository is being changed", "wait a minute"),
    413: ("the request is larger than the Hub takes", "check what is in the folder, and the account's limits"),
    429: ("there were too many requests", "wait some minutes"),
    507: ("the storage is full", "make room in the account, or push to another one"),
}


@dataclass(frozen=True)
class Destination:
    """Where to push.

    Args:
        name: `user/name`; made if it is not there.
        private: visible to its owner only; None: the account's setting.
        revision: branch, made if need be; None: main.
        base_model: name on the Hub of the model an adapter belongs to, where the run had it in a folder.
    """

    name: str
    private: bool | None = None
    revision: str | None = None
    base_model: str | None = None

    def command(self, folder: str) -> str:
        """The command that pushes a folder there."""
        words = ["thurl", "push", folder, "--to", self.name]
        words += {True: ["--private"], False: ["--public"], None: []}[self.private]
        words += ["--revision", self.revision] if self.revision else []
        words += ["--base-model", self.base_model] if self.base_model else []
        return shlex.join(words)


@dataclass(frozen=True)
class Pushed:
    """What was pushed: address, full name, kind of repository, commit, and the files by their path there."""

    url: str
    name: str
    repo_type: str
    commit: str
    files: tuple[str, ...]


def push_folder(
    folder: Path, to: Destination, *, token: str | None = None, message: str | None = None, again: str | None = None
) -> Pushed:
    """Push what `thurl.hub.files.run_files` finds, with the card, in one commit.

    Args:
        folder: of a run, a model, an adapter, a distilled data set or a sequence.
        to: where.
        token: None: the one that is logged in.
        message: of the commit.
        again: how to try again, for messages; None: the command, on a folder that stays.

    Raises:
        UsageError: a name that cannot be, or nothing to push.
        DataError: a card that the Hub would not take, weights that are not whole, or a token in a file.
        MissingRequirementError: nobody is logged in.
        PushError: the Hub or the way to it failed. The repository has no new commit, or, where only the answer got
            lost, a whole one; pushing again then changes nothing.
    """
    if problem := name_problem(to.name):
        raise UsageError(f"`{printable(without_secrets(to.name))}` {problem}")
    found = run_files(folder)
    contents = _contents(folder, found, to)
    _check_no_token(contents, token)
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if token is None and get_token() is None:
        login = _login("the Hub does not know who pushes")
        raise MissingRequirementError(f"{login}, then `{to.command(str(folder))}`")
    hide_secrets()
    operations = [CommitOperationAdd(path, str(what) if isinstance(what, Path) else what) for path, what in contents]
    api = HfApi(token=token)
    try:
        url = api.create_repo(to.name, repo_type=found.repo_type, private=to.private, exist_ok=True)
        if to.revision:
            api.create_branch(url.repo_id, repo_type=found.repo_type, branch=to.revision, exist_ok=True)
        commit = api.create_commit(
            url.repo_id,
            operations,
            commit_message=message or f"Pushed by thurl from {folder.resolve().name}",
            repo_type=found.repo_type,
            revision=to.revision,
        )
    # Whatever the client raises: HTTP and network errors, wrapped ones of its threads, refused metadata, lost files.
    except Exception as error:
        why, fix = _why(error)
        if again is None:
            fix = f"{fix}, then `{to.command(str(folder))}`. All files are in {folder} as they were"
        else:
            fix = f"{fix}, then {again}"
        what = folder if again is None else "the data"
        raise PushError(f"{what} was not pushed to {to.name}: {why}. To try again: {fix}.") from error
    return Pushed(str(url), url.repo_id, found.repo_type, commit.oid, tuple(path for path, _ in contents))


def login_problem() -> str | None:
    """Why nothing could be pushed from here, found by one short request; None where it seems it could."""
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so nothing can be pushed; unset it, or push afterwards with `thurl push`"
    if get_token() is None:
        return _login("`training.push_to_hub` needs a login")
    hide_secrets()
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(HfApi().whoami())
        except Exception as error:  # see push_folder
            answers.append(error)

    # In a thread, because the client would wait for ever.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    account = answers[0] if answers else TimeoutError(f"no answer within {_SECONDS:.0f} seconds")
    if isinstance(account, Exception):
        why, fix = _why(account)
        return f"nothing can be pushed: {why}; {fix}, or push afterwards with `thurl push`"
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        return "the token may only read; set HF_TOKEN to one that may write, or push afterwards with `thurl push`"
    return None


def _login(what: str) -> str:
    return f"{what}: run `hf auth login`, or set HF_TOKEN to a token that may write"


def _contents(folder: Path, found: RunFiles, to: Destination) -> list[tuple[str, Path | bytes]]:
    """Paths in the repository and what belongs there; the card first, which the client checks first."""
    contents: list[tuple[str, Path | bytes]] = [(CARD, _card(folder, found, to))]
    for name, path in found.files.items():
        if found.adapter and name == "adapter_config.json":
            contents.append((name, _adapter_config(path, to.base_model)))
        else:
            contents.append((name, path))
    return contents


def _card(folder: Path, found: RunFiles, to: Destination) -> bytes:
    """The card of the folder, or a short one, with the name of the repository and the base model put in."""
    from huggingface_hub import DatasetCard, ModelCard

    place = folder / CARD
    text = place.read_text(encoding="utf-8") if place.is_file() else _short_card()
    text = text.replace(PLACEHOLDER, to.name)
    try:
        card: Any = (ModelCard if found.repo_type == "model" else DatasetCard)(text)
        if to.base_model and found.repo_type == "model":
            card.data.base_model = to.base_model
            if found.adapter:
                card.data.base_model_relation = "adapter"
        elif found.adapter and not is_hub_name(str(card.data.get("base_model") or "")):
            card.data.base_model = None
        return str(card).encode()
    except Exception as error:  # YAML errors and all that the client makes of unusual metadata
        raise DataError(
            f"{place}: the metadata at its top cannot be used ({error}); mend or remove the file"
        ) from None


def _short_card() -> str:
    return f"---\ntags: [thurl]\n---\n\n# {PLACEHOLDER}\n\nSaved with thurl; nothing more is known.\n"


def _adapter_config(path: Path, base_model: str | None) -> bytes:
    """The configuration without the folder of this machine in which its base model lies."""
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not readable ({error}); save the adapter again") from None
    if base_model is None and (base is None or is_hub_name(str(base))):
        return path.read_bytes()
    if base_model is None:
        logger.warning(
            "The adapter's base model is a folder of this machine, which nobody else has: whoever loads it must name "
            "the base. Push the base as well and name it with `--base-model` (in a recipe: `hub.base_model`)."
        )
    return json.dumps({**config, "base_model_name_or_path": base_model}, indent=2).encode() + b"\n"


def _check_no_token(contents: list[tuple[str, Path | bytes]], token: str | None) -> None:
    tokens = [secret.encode() for secret in {*known_tokens(), *([token] if token else [])}]
    for name, what in contents:
        if name.endswith((".safetensors", ".ddr", ".parquet")):
            continue
        if isinstance(what, Path) and what.stat().st_size > _TEXT_BYTES:
            continue
        data = what.read_bytes() if isinstance(what, Path) else what
        if any(secret in data for secret in tokens):
            raise DataError(f"{name} holds your token of the Hub, which would be published; remove it from the file")


def _why(error: BaseException) -> tuple[str, str]:
    """Reason and remedy of what the client raised, without secrets."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for link in chain:
        response = getattr(link, "response", None)
        code = getattr(response, "status_code", None)
        if isinstance(code, int):
            other = ("the Hub failed", "wait some minutes") if code >= 500 else ("it refuses", "mend what it says")
            reason, fix = _REASONS.get(code, other)
            said = getattr(link, "server_message", None)
            return f"the Hub answered {code}, {reason}{f': {_clean(said)}' if said else ''}", fix
    broken = next((link for link in chain if type(link).__module__.startswith(("httpx", "httpcore"))), None)
    if broken is not None:
        return f"the connection broke ({type(broken).__name__}: {_clean(broken)})", "check the network"
    return f"{type(error).__name__}: {_clean(error)}", "mend that or wait"


def _clean(text: object) -> str:
    lines = str(text).strip().splitlines() or [type(text).__name__]
    return printable(without_secrets(" ".join(lines)[:400]))
