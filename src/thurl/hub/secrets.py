"""No token on a screen, in a log or in a file: texts of other libraries pass through here before they are shown."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any


__all__ = ["HideSecrets", "hide_secrets", "known_tokens", "texts_without_secrets", "without_secrets"]

HIDDEN = "(hidden)"
_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
_SHORTEST = 6
_PATTERNS = (
    (re.compile(r"\bhf_[A-Za-z0-9_]{6,}"), HIDDEN),  # tokens of the Hub
    (re.compile(r"(?<=://)[^/\s@'\"]+@"), f"{HIDDEN}@"),  # user and password of an address
    (re.compile(r"(?i)(\b(?:bearer|basic)\s+)[\w.~+/=-]{6,}"), rf"\1{HIDDEN}"),
    # Addresses that are signed for an upload can be used by whoever reads them.
    (re.compile(r"(?i)([?&][\w.-]*(?:signature|token|credential|secret|key)[\w.-]*=)[^&\s'\"<>]+"), rf"\1{HIDDEN}"),
)


def known_tokens() -> tuple[str, ...]:
    """The tokens this process may send: those of the environment and of the login, the longest first."""
    found = {os.environ.get(name, "").strip() for name in _VARIABLES}
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", os.path.join(os.path.expanduser("~"), ".cache")), "huggingface"
    )
    try:
        with open(os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token"), encoding="utf-8") as file:
            found.add(file.read(4096).strip())
    except (OSError, UnicodeDecodeError):
        pass  # no login
    return tuple(sorted((token for token in found if len(token) >= _SHORTEST), key=len, reverse=True))


def without_secrets(text: str, tokens: Sequence[str] | None = None) -> str:
    """`text` with tokens, passwords in addresses and signatures of addresses replaced by "(hidden)".

    Args:
        tokens: `known_tokens()` when None.
    """
    for token in known_tokens() if tokens is None else tokens:
        text = text.replace(token, HIDDEN)
    for pattern, shown in _PATTERNS:
        text = pattern.sub(shown, text)
    return text


def texts_without_secrets(values: Any) -> Any:
    """Plain data with `without_secrets` applied to every text in it; keys of mappings stay."""
    tokens = known_tokens()

    def hidden(value: Any) -> Any:
        if isinstance(value, str):
            return without_secrets(value, tokens)
        if isinstance(value, Mapping):
            return {key: hidden(item) for key, item in value.items()}
        return [hidden(item) for item in value] if isinstance(value, list | tuple) else value

    return hidden(values)


class HideSecrets(logging.Filter):
    """Takes secrets out of every record of a handler."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = known_tokens()

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = without_secrets(record.getMessage(), self.tokens), None
        if record.exc_info:
            record.exc_text = without_secrets(_as_text(record.exc_info[1]), self.tokens)
        return True


def hide_secrets() -> None:
    """From now on the handlers of the root logger and of the Hub's client hide secrets, and so do tracebacks."""
    handlers = [*logging.getLogger().handlers]
    for name in ("huggingface_hub", "transformers", "datasets", "httpx"):
        handlers += logging.getLogger(name).handlers
    for handler in handlers:
        if not any(isinstance(known, HideSecrets) for known in handler.filters):
            handler.addFilter(HideSecrets())
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _hook


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(without_secrets("".join(traceback.format_exception(kind, error, trace))))


def _as_text(error: BaseException | None) -> str:
    return "" if error is None else "".join(traceback.format_exception(error)).rstrip()
