"""Learners that take gradient steps, through the shared trainer (`thurl.continual.fitting`).

`base`: what they have in common, and what a learner of this kind has to say itself. `tuning`: which tensors of the
encoder are trained, the whole, a low-rank change, adapters or none. One module per family of learners.
"""

from __future__ import annotations

from thurl.continual.gradient.base import GradientLearner, Step
from thurl.continual.gradient.finetune import Finetune, LoRA
from thurl.continual.gradient.first_task import APER, FirstTaskLearner, TunedRanPAC
from thurl.continual.gradient.replay import ExperienceReplay
from thurl.continual.gradient.slca import SLCALike


__all__ = [
    "APER",
    "ExperienceReplay",
    "Finetune",
    "FirstTaskLearner",
    "GradientLearner",
    "LoRA",
    "SLCALike",
    "Step",
    "TunedRanPAC",
]
