"""One-step bi-level optimisation: task weights that grow where a task's gradient helps another task.

Papers: BLADES (arXiv 2507.22824) and SJEDD (arXiv 2408.16305), whose official code is that of Auto-Lambda
(arXiv 2202.03091). Equations, what differs on purpose, and measurements: docs/bilevel.md.

`thurl.training.bilevel.config`: the settings, plain data. `mathematics`: pure functions on tensors. `step`: the outer
step on a model, its optimizer and two batches. `thurl.training.method_trainer` runs it inside a trainer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from thurl.lazy import lazy_names


# name -> module. Resolved on first use, so that a recipe can check its settings without torch.
_PUBLIC = {
    "BilevelConfig": "thurl.training.bilevel.config",
    "BilevelReport": "thurl.training.bilevel.step",
    "BilevelStep": "thurl.training.bilevel.step",
}

__all__ = ["BilevelConfig", "BilevelReport", "BilevelStep"]

if TYPE_CHECKING:
    from thurl.training.bilevel.config import BilevelConfig
    from thurl.training.bilevel.step import BilevelReport, BilevelStep

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
