"""Does a classifier that is trained better make edits generalise better? Bars B and C of vit_editing.py by classifier.

    python benchmarks/vit_editing_classifiers.py --seeds 5 6

The digits, failures, counts and edits of `vit_editing.py --wide`, with classifiers that were trained longer, from
larger first weights, or on pictures moved twice as far. The seeds are those of development: nothing here is a bar.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from vit_editing import judge, spread, tell
from vit_editing_methods import TOGETHER, Study, short

from thurl.editing.classifier import as_classifier
from thurl.editing.digits import Digits, failure_groups, load_digit_pictures, pretrain_digits
from thurl.editing.edit import EditSettings
from thurl.editing.evaluate import EditGroup
from thurl.editing.masks import GradientMask, RandomMask
from thurl.editing.methods import FineTuning, MaskedEditing
from thurl.training.results import write_results


CLASSIFIERS: dict[str, dict[str, Any]] = {
    "as in the study": {},
    "48 epochs": {"epochs": 48},
    "96 epochs": {"epochs": 96},
    "first weights 5e-2": {"spread": 0.05},
    "first weights 1e-1": {"spread": 0.1},
    "moved twice as far": {"jitter": 2.0},
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path("results/vit_editing_classifiers.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.getLogger("thurl.editing.edit").setLevel(logging.ERROR)
    study = replace(Study(), edits=5, largest=40)
    runs = [run(load_digit_pictures(seed), seed, study, CLASSIFIERS) for seed in options.seeds]
    write_results(options.out, recipe="benchmarks/vit_editing_classifiers.py", runs=runs)
    return 0


def run(data: Digits, seed: int, study: Study, classifiers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One record: accuracy, and GR and locality of fine-tuning, gradient and random masks at 5 %, per classifier."""
    began = time.process_time()
    settings = EditSettings(rate=study.rate, max_steps=study.steps)
    methods = {
        "fine": FineTuning(settings, TOGETHER),
        "gradient": MaskedEditing(GradientMask(), 0.05, settings, TOGETHER),
        "random": MaskedEditing(RandomMask(seed, per_picture=True), 0.05, settings, TOGETHER),
    }
    found: dict[str, dict[str, float]] = {}
    for name, change in classifiers.items():
        classifier = as_classifier(pretrain_digits(data, seed=seed, **{"epochs": study.epochs, **change}))
        chosen = spread(failure_groups(classifier, data, largest=study.largest), study.groups)
        groups = [EditGroup(f"{one.shift} {one.true} as {one.predicted}", one.true, one.pictures) for one in chosen]
        evaluator, accuracy = judge(classifier, data, groups)
        found[name] = {"accuracy": 100 * accuracy}
        for method, editor in methods.items():
            row = short(evaluator.run(editor, study.edits))
            found[name] |= {f"{method}_{key}": row[key] for key in ("sr", "gr", "lr_sensitive")}
        tell(seed, f"{name}: {found[name]}")
    return {"seed": seed, "classifiers": found, "cpu_seconds": time.process_time() - began}


if __name__ == "__main__":
    sys.exit(main())
