"""A-FINE, a full-reference metric whose references need not be perfect (arXiv 2503.11221)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any


# name -> module. Resolved on first use, so that the command line does not import torch.
_PUBLIC = {
    "AFineConfig": "thurl.iqa.afine.config",
    "AFineFeatures": "thurl.iqa.afine.features",
    "AFineModel": "thurl.iqa.afine.model",
    "AFineOutput": "thurl.iqa.afine.outputs",
}

__all__ = ["AFineConfig", "AFineFeatures", "AFineModel", "AFineOutput"]

if TYPE_CHECKING:
    from thurl.iqa.afine.config import AFineConfig
    from thurl.iqa.afine.features import AFineFeatures
    from thurl.iqa.afine.model import AFineModel
    from thurl.iqa.afine.outputs import AFineOutput


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
