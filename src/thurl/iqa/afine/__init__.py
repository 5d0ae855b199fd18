"""A-FINE, a full-reference metric whose references need not be perfect (arXiv 2503.11221)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thurl.lazy import lazy_names


# name -> module. Resolved on first use, so that the command line does not import torch.
_PUBLIC = {
    "AFine": "thurl.iqa.afine.metric",
    "AFineConfig": "thurl.iqa.afine.config",
    "AFineFeatures": "thurl.iqa.afine.features",
    "AFineModel": "thurl.iqa.afine.model",
    "AFineOutput": "thurl.iqa.afine.outputs",
    "AFineReward": "thurl.iqa.afine.reward",
    "AFineRow": "thurl.iqa.afine.files",
    "convert_checkpoint": "thurl.iqa.afine.official",
    "load_afine": "thurl.iqa.afine.metric",
    "pair_files": "thurl.iqa.afine.pairing",
    "reward_of": "thurl.iqa.afine.reward",
    "score_pairs": "thurl.iqa.afine.files",
}

__all__ = [
    "AFine",
    "AFineConfig",
    "AFineFeatures",
    "AFineModel",
    "AFineOutput",
    "AFineReward",
    "AFineRow",
    "convert_checkpoint",
    "load_afine",
    "pair_files",
    "reward_of",
    "score_pairs",
]

if TYPE_CHECKING:
    from thurl.iqa.afine.config import AFineConfig
    from thurl.iqa.afine.features import AFineFeatures
    from thurl.iqa.afine.files import AFineRow, score_pairs
    from thurl.iqa.afine.metric import AFine, load_afine
    from thurl.iqa.afine.model import AFineModel
    from thurl.iqa.afine.official import convert_checkpoint
    from thurl.iqa.afine.outputs import AFineOutput
    from thurl.iqa.afine.pairing import pair_files
    from thurl.iqa.afine.reward import AFineReward, reward_of

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
