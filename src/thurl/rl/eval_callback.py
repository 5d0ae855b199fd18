"""Evaluation of a fixed list of pictures while a model trains, inside any transformers or TRL trainer.

Training is the same with and without it: the draws of the scorer touch no random state, the states of Python, numpy
and torch are put back in any case, and every module returns to the mode it was in.

Several processes share the pictures. Where a forward pass itself needs all processes (FSDP), set `shard=False`: every
process then scores every picture, in step with the others. ZeRO-3 keeps only a slice of each parameter per process, so
it needs `gather`, a context manager that puts the whole parameters there, for example

    lambda model: deepspeed.zero.GatheredParameters(list(model.parameters()))
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from thurl.data.records import RatedImage
from thurl.errors import DataError, ThurlError, UsageError
from thurl.rl.decoding import Decoding, QualityScore, failed_score, make_decoding
from thurl.rl.evaluation import GROUPINGS, Grouping, jsonable, summarise_scores
from thurl.rl.prompts import PromptPreset
from thurl.rl.scorer import QualityScorer
from thurl.training.timing import phase


__all__ = ["QualityEvalCallback", "preserved_random_state", "score_sharded"]

logger = logging.getLogger(__name__)


class QualityEvalCallback(TrainerCallback):
    """SRCC and PLCC on a fixed list of pictures before, during and after training.

    Puts `eval_srcc`, `eval_plcc`, `eval_parse_rate` (single answers), `eval_score_std` (spread of the scores over
    the pictures: near zero when the policy has collapsed to one score), `eval_sample_std` (mean spread of repeated
    answers, arXiv 2505.14460, Fig. 3) and, with several datasets, `eval_srcc_<dataset>` into the trainer's log
    history, into `history` and into a JSONL file. `last` holds the whole result of `evaluate_model`, with
    predictions.

    Args:
        processor: of the model that is trained.
        records: the pictures.
        preset: question the model is asked.
        every: evaluate every so many optimizer steps; None only at start and end.
        at_start: evaluate before the first step (not when training resumes).
        at_end: evaluate after the last step.
        decoding: decoding settings; **options: single fields of `Decoding`.
        batch_size: answers generated together, per process.
        path: JSONL file, one line per evaluation, written by the main process.
        grouping: as in `evaluate_scores`.
        gather: called with the model, returns a context inside which all parameters are whole (ZeRO-3).
        shard: share the pictures among the processes.
        log: receives the metrics, for example `trainer.log`; None appends them to the trainer's log history. With TRL
            `trainer.log` also flushes the metrics of the current training step.

    Raises:
        DataError: no pictures.
        UsageError: settings that make no sense.
    """

    def __init__(
        self,
        processor: Any,
        records: Sequence[RatedImage],
        *,
        preset: PromptPreset | str | None = None,
        every: int | None = None,
        at_start: bool = True,
        at_end: bool = True,
        decoding: Decoding | None = None,
        batch_size: int = 8,
        path: str | os.PathLike[str] | None = None,
        grouping: Grouping = "global",
        gather: Callable[[Any], AbstractContextManager[Any]] | None = None,
        shard: bool = True,
        log: Callable[[dict[str, float]], None] | None = None,
        **options: Any,
    ):
        if not records:
            raise DataError("no pictures to evaluate during training: give at least two with different scores")
        if every is not None and every < 1:
            raise UsageError(f"`every` is {every}: it must be a number of steps of at least 1, or None")
        if grouping not in GROUPINGS:
            raise UsageError(f"grouping {grouping!r} does not exist: choose one of {', '.join(GROUPINGS)}")
        self.processor = processor
        self.records = list(records)
        self.preset = preset
        self.every = every
        self.at_start = at_start
        self.at_end = at_end
        self.decoding = make_decoding(decoding, options)
        self.batch_size = batch_size
        self.path = Path(path) if path is not None else None
        self.grouping: Grouping = grouping
        self.gather = gather
        self.shard = shard
        self.log = log
        self.history: list[dict[str, float]] = []
        self.last: dict[str, Any] | None = None
        self._last_step: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step > 0:
            self._resume(state)
        elif self.at_start:
            self._evaluate(state, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.every and state.global_step % self.every == 0:
            self._evaluate(state, kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.at_end and self._last_step != state.global_step:
            self._evaluate(state, kwargs["model"])

    def _resume(self, state: Any) -> None:
        """Take up the evaluations of the run that is resumed; those after its checkpoint are done again."""
        if self.log is not None:
            return
        self.history = [dict(entry) for entry in state.log_history if "eval_parse_rate" in entry]
        self._last_step = self.history[-1]["step"] if self.history else None
        if state.is_world_process_zero and self.path is not None and self.path.is_file():
            lines = [json.dumps(jsonable(entry), allow_nan=False) + "\n" for entry in self.history]
            self.path.write_text("".join(lines), encoding="utf-8")

    def evaluate(self, model: Any) -> dict[str, Any]:
        """The whole result for `model` as it is now, on every process; nothing is logged."""
        model = getattr(model, "module", model)  # DistributedDataParallel
        if self.gather is None and any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
            raise UsageError(
                "the model is sharded by ZeRO-3 and `gather` is None: pass "
                "`gather=lambda model: deepspeed.zero.GatheredParameters(list(model.parameters()))`"
            )
        scorer = QualityScorer(model, self.processor, self.preset)
        with preserved_random_state(), self.gather(model) if self.gather else nullcontext():
            scores = score_sharded(scorer, self.records, self.decoding, self.batch_size, shard=self.shard)
        settings = {**scorer.settings(), **self.decoding.settings(), "batch_size": self.batch_size}
        return summarise_scores(scores, self.records, settings=settings, grouping=self.grouping, bootstrap=0)

    def _evaluate(self, state: Any, model: Any) -> None:
        start = time.perf_counter()
        with phase("evaluation"):
            result = self.evaluate(model)
        stds = [value for entry in result["datasets"].values() if not math.isnan(value := entry["score_std"])]
        metrics: dict[str, float] = {
            "eval_srcc": result["mean"]["srcc"],
            "eval_plcc": result["mean"]["plcc"],
            "eval_parse_rate": result["sample_parse_rate"],
            "eval_score_std": float(np.mean(stds)) if stds else math.nan,
            "eval_sample_std": result["sample_std"],
            "eval_seconds": round(time.perf_counter() - start, 3),
        }
        if len(result["datasets"]) > 1:
            metrics |= {f"eval_srcc_{name}": entry["srcc"] for name, entry in result["datasets"].items()}
        entry = {"step": state.global_step, **({"epoch": state.epoch} if state.epoch is not None else {}), **metrics}
        self.last = result
        self._last_step = state.global_step
        self.history.append(entry)
        if self.log is not None:
            self.log(dict(metrics))
        else:
            state.log_history.append(dict(entry))
        if state.is_world_process_zero:
            logger.info(
                "step %d | evaluation of %d pictures: SRCC %.3f, PLCC %.3f, parsed %.0f%%, spread of scores %.2f",
                state.global_step,
                len(self.records),
                metrics["eval_srcc"],
                metrics["eval_plcc"],
                100 * metrics["eval_parse_rate"],
                metrics["eval_score_std"],
            )
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(jsonable(entry), allow_nan=False) + "\n")


def score_sharded(
    scorer: QualityScorer, records: Sequence[RatedImage], decoding: Decoding, batch_size: int, *, shard: bool = True
) -> list[QualityScore]:
    """Scores of all records on every process, each process having scored its share; one process scores them all.

    Raises:
        ThurlError: scoring failed on a process; raised on all of them, so that none waits for ever.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    world = torch.distributed.get_world_size() if distributed and shard else 1
    rank = torch.distributed.get_rank() if world > 1 else 0
    mine = list(range(rank, len(records), world))
    if world == 1:
        return scorer.score([records[i] for i in mine], decoding=decoding, batch_size=batch_size, errors="mark")
    part: list[QualityScore] = []
    problem: Exception | None = None
    try:
        part = scorer.score([records[i] for i in mine], decoding=decoding, batch_size=batch_size, errors="mark")
    except Exception as error:  # reported to all processes below; alone it would leave them waiting
        problem = error
    gathered: list[Any] = [None] * world
    message = f"{type(problem).__name__}: {problem}" if problem is not None else ""
    torch.distributed.all_gather_object(gathered, (mine, part, message))
    if problem is not None:
        raise problem
    failed = [f"process {i}: {message}" for i, (_, _, message) in enumerate(gathered) if message]
    if failed:
        raise ThurlError("evaluation failed on another process: " + "; ".join(failed))
    scores = [failed_score("not scored")] * len(records)
    for indices, part, _ in gathered:
        for i, score in zip(indices, part, strict=True):
            scores[i] = score
    return scores


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Puts the random states of Python, numpy, torch and the current GPU back at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    # Asking for every GPU would start a context on the devices of the other processes.
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
