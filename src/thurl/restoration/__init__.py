"""A compact blind face-restoration baseline: seeded degradations, a U-Net, and its training losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thurl.lazy import lazy_names


# name -> module. Resolved on first use, so that degrading a picture does not import torch.
_PUBLIC = {
    "DegradationConfig": "thurl.restoration.degradation",
    "FrozenCritic": "thurl.restoration.critics",
    "RestorationConfig": "thurl.restoration.config",
    "RestorationEvaluator": "thurl.restoration.evaluation",
    "RestorationImageProcessor": "thurl.restoration.processing",
    "RestorationModel": "thurl.restoration.model",
    "RestorationPairs": "thurl.restoration.dataset",
    "Restorer": "thurl.restoration.restorer",
    "degrade": "thurl.restoration.degradation",
    "draw_degradation": "thurl.restoration.degradation",
}

__all__ = [
    "DegradationConfig",
    "FrozenCritic",
    "RestorationConfig",
    "RestorationEvaluator",
    "RestorationImageProcessor",
    "RestorationModel",
    "RestorationPairs",
    "Restorer",
    "degrade",
    "draw_degradation",
]

if TYPE_CHECKING:
    from thurl.restoration.config import RestorationConfig
    from thurl.restoration.critics import FrozenCritic
    from thurl.restoration.dataset import RestorationPairs
    from thurl.restoration.degradation import DegradationConfig, degrade, draw_degradation
    from thurl.restoration.evaluation import RestorationEvaluator
    from thurl.restoration.model import RestorationModel
    from thurl.restoration.processing import RestorationImageProcessor
    from thurl.restoration.restorer import Restorer

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
