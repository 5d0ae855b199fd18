"""Learning without forgetting: the model before the task is asked what it thinks of the new samples."""

from __future__ import annotations

from thurl.continual.gradient.losses import Distilling, Local


__all__ = ["LwF"]


class LwF(Distilling, Local):
    """Cross-entropy and distillation, on the samples of the new task alone (arXiv 1606.09282).

    Temperature 2 and weight 1 are the paper's; PyCIL weighs distillation by 3. Without distillation and with
    `local=false` it is fine-tuning.
    """

    name = "lwf"
