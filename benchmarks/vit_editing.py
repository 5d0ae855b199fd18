"""Editing a tiny ViT on shifted digits: which masks repair a failure, and what that costs. The bars A to I.

    python benchmarks/vit_editing.py --seeds 301 302 303
    python benchmarks/vit_editing.py --mnist FOLDER --seeds 301 302 303 --out results/vit_editing_mnist.json
    python benchmarks/vit_editing.py --seeds 311 312 313 --wide --out results/vit_editing_wide.json

Digits of scikit-learn (900 to train on, 897 to test), or with `--mnist` 6,000 of the 10,000 test pictures of MNIST
(`t10k-images-idx3-ubyte.gz` and its labels; half of them to train on), at 16 x 16. A ViT of 6 blocks is trained in the
run, its hypernetwork by meta-training on the same pictures without labels. Failures: test pictures that are turned,
striped, shrunk, blurred or sheared, in groups of one shift, one class and one wrong answer. The first pictures of each
group are edited one at a time, and every shift is there with its largest group. All is drawn again with each seed.

`layers`: fine-tuning of every window of three blocks, the first picture of each group. `--attempts` adds what might
make the learned mask better: longer meta-training, a term for clean pictures in it, gradients as an input of the
hypernetwork, one threshold for all pictures in place of one density; `attempts` is what their meta-training says.
`--wide` edits five pictures of each group, not three, of up to 40, not 20, and adds edits of up to 150 steps (`long`).

`lr_sensitive`: the 120 right test pictures with the smallest margin. `lr_clean`: right ones of 150 test pictures,
which also give accuracy and calibration. Settings of edits and bars were written down before the first run. Rates are
means over groups of means over edits.

Bars, from before the runs (means over the seeds, 40 steps, density 5 %; F, G and H on every seed):

- A: learned: SR at least 95, and at least 35 above random; GR at least 35 above random.
- B: learned against fine-tuning of all units: lr_sensitive at least 4 higher, GR at most 10 lower.
- C: gradient: SR at least 95, GR at least 88, lr_sensitive at least 5 above fine-tuning.
- D: learned: lr_sensitive does not rise with density over 2, 5, 10, 25, 50 % (tolerance 1 point).
- E: meta-training: KL of the pseudo-failures with the searched update below 0.35 of that without (last 20
  iterations); cross-entropy of the hypernetwork at least 40 % below its first value.
- F: weights outside the mask are the same bits after an edit, all weights after reverting; an edit from cached
  activations is that through the whole model within 1e-6.
- G: of saturated scores exactly k neurons are kept, none by the released rule.
- H: a right picture is left alone and gives an empty change; a class that does not exist is refused.
- I: five edits one after another, gradient: at least 4 of 5 hold at the end.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from vit_editing_methods import (
    DENSITIES,
    LONG,
    TOGETHER,
    Study,
    attempted,
    editors,
    meta_train,
    percent,
    short,
    windows,
)

from thurl.editing.classifier import Classifier, as_classifier
from thurl.editing.comparison import mean_mask_rows
from thurl.editing.delta import apply_delta, edited_weights, revert_delta
from thurl.editing.digits import Digits, FailureGroup, failure_groups, load_digit_pictures, pretrain_digits
from thurl.editing.edit import EditSettings, edit
from thurl.editing.evaluate import EditGroup, Evaluator
from thurl.editing.masks import GradientMask, binarise
from thurl.editing.metrics import front_area
from thurl.editing.sequence import edit_in_sequence
from thurl.errors import UsageError
from thurl.training.results import read_results, write_results


BARS = {
    "a_success": 95, "a_success_gain": 35, "a_generalisation_gain": 35, "b_locality_gain": 4,
    "b_generalisation_gain": -10, "c_success": 95, "c_generalisation": 88, "c_locality_gain": 5, "d_knob": -1,
    "e_search": -0.35, "e_learning": 0.4, "f_exact": 1, "g_top_k": 1, "h_refused": 1, "i_sequence": 4,
}  # fmt: skip
"""What each margin of `margins` must reach."""
EVERY_SEED = ("f_exact", "g_top_k", "h_refused")
REFERENCE = (50.0, 0.0)
"""Worst lr_sensitive and GR that count in the area under a front."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--mnist", type=Path, help="folder of the MNIST test set, instead of scikit-learn's digits")
    parser.add_argument("--attempts", action="store_true", help="also other ways to train the mask; twice the time")
    parser.add_argument("--wide", action="store_true", help="more and larger groups, and edits of 150 steps")
    parser.add_argument("--epochs", type=int, help="of the classifier (24; MNIST 10)")
    parser.add_argument("--out", type=Path, default=Path("results/vit_editing.json"), help="other seeds in it stay")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    # Edits that change the few touched weights a lot are the rule at these sizes.
    logging.getLogger("thurl.editing.edit").setLevel(logging.ERROR)
    for seed in options.seeds:
        data = load_digit_pictures(seed) if options.mnist is None else mnist(options.mnist, seed)
        study = Study(epochs=options.epochs or (24 if options.mnist is None else 10))
        if options.wide:
            study = replace(study, edits=5, largest=40, long_steps=150)
        record = run(data, seed, study, options.attempts)
        # Read again each time: several commands, one per seed, may run side by side.
        others = read_results(options.out)["runs"] if options.out.is_file() else []
        runs = sorted([*(other for other in others if other["seed"] != seed), record], key=lambda entry: entry["seed"])
        missed = failures(runs)
        write_results(options.out, recipe="benchmarks/vit_editing.py", runs=runs, bars=BARS, failures=missed)
    sys.stdout.write(f"{', '.join(missed) or 'passed'}\n")
    return int(bool(missed))


def run(data: Digits, seed: int, study: Study, attempts: bool = False) -> dict[str, Any]:
    """One record; `attempts` adds those of `vit_editing_methods.ATTEMPTS`."""
    began = time.process_time()
    classifier = as_classifier(pretrain_digits(data, seed=seed, epochs=study.epochs))
    tell(seed, f"classifier trained in {time.process_time() - began:.0f} s")
    learned, meta = meta_train(classifier, data, seed, study)
    tell(seed, f"hypernetwork trained, {time.process_time() - began:.0f} s: {meta}")
    chosen = spread(failure_groups(classifier, data, largest=study.largest), study.groups)
    groups = [EditGroup(f"{one.shift} {one.true} as {one.predicted}", one.true, one.pictures) for one in chosen]
    evaluator, accuracy = judge(classifier, data, groups)
    settings = EditSettings(rate=study.rate, max_steps=study.steps)
    methods: dict[str, dict[str, float]] = {}
    compared = editors(learned, settings, study, seed)
    told: dict[str, dict[str, float]] = {}
    if attempts:
        tried, told = attempted(learned, classifier, data, settings, study, seed)
        compared |= tried
    for name, method in compared.items():
        methods[name] = short(evaluator.run(method, study.edits))
        tell(seed, f"{name}: {methods[name]}")
    for density in study.densities[:4]:
        rows = mean_mask_rows(learned, evaluator, density, settings, study.edits, TOGETHER)
        methods[f"mean {percent(density)}"] = short(rows)
    longer: dict[str, dict[str, float]] = {}
    if study.long_steps is not None:
        for name, method in editors(learned, replace(settings, max_steps=study.long_steps), study, seed).items():
            if name in LONG:
                longer[name] = short(evaluator.run(method, study.edits))
                tell(seed, f"{name}, {study.long_steps} steps: {longer[name]}")
    record = {
        "seed": seed,
        "epochs": study.epochs,
        "accuracy": accuracy,
        "groups": len(groups),
        "edits": len(groups) * study.edits,
        "methods": methods,
        "fronts": fronts(methods),
        "layers": windows(classifier, groups, sensitive(classifier, data), settings, study.searched),
        "meta": meta,
        **({"attempts": told} if attempts else {}),
        **({"long": longer} if longer else {}),
        "checks": checks(classifier, data, groups, settings),
        "cpu_seconds": time.process_time() - began,
    }
    record["margins"] = margins(record)
    tell(seed, f"{record['margins']}, {record['fronts']}, {record['cpu_seconds']:.0f} s")
    return record


def fronts(methods: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Area under the front of lr_sensitive and GR of each kind of method, in percent; kinds have several settings."""
    points: dict[str, list[tuple[float, float]]] = {}
    for name, values in methods.items():
        kind = name.partition(",")[0].partition(" ")[0]
        points.setdefault(kind, []).append((values["lr_sensitive"], values["gr"]))
    return {kind: 100 * front_area(values, REFERENCE) for kind, values in points.items() if len(values) > 1}


@torch.no_grad()
def judge(classifier: Classifier, data: Digits, groups: Sequence[EditGroup]) -> tuple[Evaluator, float]:
    """The evaluator, and the accuracy of the classifier on the whole test set."""
    right = classifier.logits(data.test).argmax(dim=-1) == data.test_labels
    unrelated = {"sensitive": sensitive(classifier, data)}
    step = len(data.test) // 150
    validation = data.test[::step][:150], data.test_labels[::step][:150]
    return Evaluator(classifier, groups, unrelated, validation, batch_size=256), float(right.float().mean())


@torch.no_grad()
def sensitive(classifier: Classifier, data: Digits) -> torch.Tensor:
    """The 120 right test pictures with the smallest margin."""
    probabilities = classifier.logits(data.test).softmax(dim=-1)
    best = probabilities.topk(2).values
    wrong = probabilities.argmax(dim=-1) != data.test_labels
    return data.test[(best[:, 0] - best[:, 1]).masked_fill(wrong, math.inf).argsort()[:120]]


def spread(found: Sequence[FailureGroup], count: int) -> list[FailureGroup]:
    """The largest group of every shift first, then the second ones."""
    seen: Counter[str] = Counter()
    ranked = []
    for place, group in enumerate(found):
        ranked.append((seen[group.shift], place))
        seen[group.shift] += 1
    return [found[place] for _, place in sorted(ranked)[:count]]


def checks(
    classifier: Classifier, data: Digits, groups: Sequence[EditGroup], settings: EditSettings
) -> dict[str, float]:
    """Bars F to I; 1 where one holds, for I how many of five edits hold."""
    group = groups[0]
    picture, label = group.pixel_values[:1], torch.tensor([group.label])
    mask = binarise(GradientMask().scores(classifier, picture, label), 0.05)
    made = edit(classifier, picture, label, mask, settings)
    model = copy.deepcopy(classifier.model)
    before = copy.deepcopy(model.state_dict())
    whole = as_classifier(model, classifier.units)
    kept = apply_delta(model, made.delta)
    other = []
    for name, value in model.state_dict().items():
        rows = [(unit, mask[row]) for row, unit in enumerate(classifier.units) if unit.parameter == name]
        for unit, neurons in rows:
            rest = (~neurons).nonzero().flatten()
            value, before_rest = (one.index_select(unit.axis, unit.indices(rest)) for one in (value, before[name]))
            other.append(torch.equal(value, before_rest))
        if not rows:
            other.append(torch.equal(value, before[name]))
    with torch.no_grad():
        from_cache = classifier.suffix(
            classifier.prefix(picture, classifier.first_layer), classifier.first_layer,
            edited_weights(classifier.model, made.delta),
        )  # fmt: skip
        close = float((whole.logits(picture) - from_cache).abs().max()) <= 1e-6 * max(1, float(from_cache.abs().max()))
    revert_delta(model, kept)
    same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    full = torch.full(classifier.mask_shape, 1 - 1e-7)
    count = max(1, round(0.05 * full.numel()))
    with torch.no_grad():
        right = (classifier.logits(data.test).argmax(dim=-1) == data.test_labels).nonzero().flatten()[:1]
    untouched = edit(classifier, data.test[right], data.test_labels[right], mask, settings)
    try:
        edit(classifier, picture, torch.tensor([classifier.classes]), mask, settings)
        refused = False
    except UsageError:
        refused = True
    failing = [(one.pixel_values[:1], torch.tensor([one.label])) for one in groups[:5]]
    sequence = edit_in_sequence(classifier, failing, GradientMask(), 0.05, settings)
    return {
        "f_exact": float(all(other) and same and close),
        "g_top_k": float(binarise(full, 0.05).sum() == count and not binarise(full, 0.05, True).any()),
        "h_refused": float(refused and untouched.steps == 0 and untouched.delta.parameters == 0),
        "i_sequence": float(sum(sequence.steps[-1].right)),
    }


def margins(record: Mapping[str, Any]) -> dict[str, float]:
    """What the bars are about; larger is better."""
    learned, random, gradient = (record["methods"][f"{name} 5 %"] for name in ("learned", "random", "gradient"))
    full, meta = record["methods"]["fine-tuning"], record["meta"]
    knob = [record["methods"][f"learned {percent(density)}"]["lr_sensitive"] for density in DENSITIES]
    return {
        "a_success": learned["sr"],
        "a_success_gain": learned["sr"] - random["sr"],
        "a_generalisation_gain": learned["gr"] - random["gr"],
        "b_locality_gain": learned["lr_sensitive"] - full["lr_sensitive"],
        "b_generalisation_gain": learned["gr"] - full["gr"],
        "c_success": gradient["sr"],
        "c_generalisation": gradient["gr"],
        "c_locality_gain": gradient["lr_sensitive"] - full["lr_sensitive"],
        "d_knob": min(sparse - dense for sparse, dense in zip(knob, knob[1:], strict=False)),
        "e_search": -meta["pseudo_kl_edited"] / meta["pseudo_kl_unedited"],
        "e_learning": 1 - meta["bce"] / meta["bce_first"],
        **record["checks"],
    }


def failures(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Bars that are missed."""
    missed = []
    for name, bar in BARS.items():
        values = [run["margins"][name] for run in runs]
        value = min(values) if name in EVERY_SEED else fmean(values)
        if not value >= bar:
            missed.append(f"{name}: {value:.3f} is below {bar}")
    return missed


def mnist(folder: Path, seed: int) -> Digits:
    """6,000 pictures of the MNIST test set at 16 x 16 in [-1, 1], drawn with the seed; half of them to train on."""

    def read(name: str, header: int) -> torch.Tensor:
        content = gzip.decompress((folder / name).read_bytes())
        return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=header).copy())

    plain = read("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28).float() / 255
    labels = read("t10k-labels-idx1-ubyte.gz", 8).long()
    order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(seed))[:6000]
    small = functional.interpolate(plain[order], size=(16, 16), mode="area") * 2 - 1
    labels = labels[order]
    return Digits(small[:3000], labels[:3000], small[3000:], labels[3000:])


def tell(seed: int, line: str) -> None:
    """Says how far a run is."""
    sys.stdout.write(f"seed {seed}: {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
