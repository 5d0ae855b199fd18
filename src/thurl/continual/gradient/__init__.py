"""Learners that take gradient steps, through the shared trainer (`thurl.continual.fitting`).

`base`: what they have in common, and what a learner of this kind has to say itself. `tuning`: which tensors of the
encoder are trained, the whole, a low-rank change, adapters or none. One module per family of learners.
"""

from __future__ import annotations

from thurl.continual.gradient.base import GradientLearner, Step
from thurl.continual.gradient.ewc import EWC
from thurl.continual.gradient.finetune import Finetune, LoRA
from thurl.continual.gradient.first_task import APER, FirstTaskLearner, TunedRanPAC
from thurl.continual.gradient.icarl import ICaRL
from thurl.continual.gradient.joint import Joint
from thurl.continual.gradient.l2p import L2PLike
from thurl.continual.gradient.lwf import LwF
from thurl.continual.gradient.replay import ExperienceReplay
from thurl.continual.gradient.slca import SLCALike


__all__ = [
    "APER",
    "EWC",
    "ExperienceReplay",
    "Finetune",
    "FirstTaskLearner",
    "GradientLearner",
    "ICaRL",
    "Joint",
    "L2PLike",
    "LoRA",
    "LwF",
    "SLCALike",
    "Step",
    "TunedRanPAC",
]
