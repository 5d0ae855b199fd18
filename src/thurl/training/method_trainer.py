"""One trainer for the methods that train a vision model on several named losses.

The model is a `PreTrainedModel` whose `forward` returns a `MethodOutput`. `MethodTrainer` weighs its terms, logs each
of them, learns the weights by a bi-level step where asked to (`thurl.training.bilevel`), evaluates by an `Evaluator`,
resumes exactly (`thurl.training.exact_resume`) and logs where its time goes (`thurl.training.timed_trainer`).

Losses that compare items: the model calls `thurl.training.gather.gather_with_gradient` on scores and labels before it
forms pairs; then N processes train what one does. Set `dataloader_drop_last: true` for exactly equal runs: accelerate
fills the last batch of an epoch up with rows from its beginning where the rows do not divide by the processes.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers.trainer_utils import EvalLoopOutput

from thurl.errors import UsageError
from thurl.training.accelerate_hooks import without_autocast
from thurl.training.bilevel import BilevelConfig, BilevelReport, BilevelStep
from thurl.training.bilevel.step import RandomState, random_state
from thurl.training.evaluation import EvaluationResults, Evaluator
from thurl.training.exact_resume import ExactResumeTrainer
from thurl.training.grouped_sampler import GroupedSampler
from thurl.training.method_output import MethodOutput
from thurl.training.model_card import MethodCard, write_model_card
from thurl.training.outer_batches import OuterBatches
from thurl.training.term_log import TermLog
from thurl.training.timed_trainer import TimedTrainer
from thurl.training.timing import phase


__all__ = ["MethodTrainer"]

logger = logging.getLogger(__name__)


class MethodTrainer(TimedTrainer, ExactResumeTrainer):
    """`transformers.Trainer` for models that return a `MethodOutput`.

    In the log, means since the last entry over micro-batches and processes: `terms/<name>`, over the batches that have
    labels for it; with a bi-level step `weights/<name>` (present value), `bilevel/<name>` (`h`, positive where the
    task helps) and `bilevel/outer_loss`.

    Args:
        model: as in transformers.
        args: `transformers.TrainingArguments`.
        weights: constant weight of each term; all terms must have one. None, and no `bilevel`: the model's own
            `loss`, or where it returns none the plain sum of the terms.
        bilevel: learn the weights; its tasks must be the model's terms.
        outer_dataset: for the outer batches; disjoint from the training set, or None for the training set itself
            (official). Batches have the size of the training batches.
        train_groups: (N,) the group of each training row; rows of a group come together (`GroupedSampler`). None:
            transformers' order.
        evaluator: judges the model in `evaluate`; None: mean loss and terms.
        card: what the model card says.
        **kwargs: of `transformers.Trainer`.

    Attributes:
        evaluation_results: last `EvaluationResults` by prefix (`eval`, or `eval_<name>` of several data sets).

    Raises:
        UsageError: settings that do not go together, among them a bi-level step with parameters that are split over
            processes (ZeRO, FSDP).

    Overrides of transformers that are not documented as public: `_save_checkpoint`, `_get_dataloader`,
    `_get_train_sampler`.
    """

    phases: tuple[str, ...] = ("data", "update", "outer", "save", "evaluation")

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *,
        weights: Mapping[str, float] | None = None,
        bilevel: BilevelConfig | None = None,
        outer_dataset: Any = None,
        train_groups: Sequence[Hashable] | None = None,
        evaluator: Evaluator | None = None,
        card: MethodCard | None = None,
        **kwargs: Any,
    ) -> None:
        if weights is not None and bilevel is not None:
            raise UsageError("`weights` are constants and `bilevel` learns them; give one of the two.")
        if outer_dataset is not None and bilevel is None:
            raise UsageError("`outer_dataset` is only for the bi-level step; give `bilevel` too.")
        super().__init__(model, args, **kwargs)
        if self.args.n_gpu > 1:
            raise UsageError(
                f"One process with {self.args.n_gpu} GPUs splits a batch without joining its pairs again. Start one "
                "process per GPU with `accelerate launch`."
            )
        # Else transformers leaves the division by the accumulation steps to a model that takes **kwargs.
        self.model_accepts_loss_kwargs = False
        self.evaluator, self.card = evaluator, card or MethodCard()
        self.evaluation_results: dict[str, EvaluationResults] = {}
        self._weights = None if weights is None else dict(weights)
        self._terms_log = TermLog()
        self._window: list[Any] = []
        self._micro_batch = 0
        self._random_states: list[RandomState] = []
        self._sampler = None if train_groups is None else self._grouped(train_groups)
        self._bilevel: BilevelStep | None = None
        if bilevel is not None:
            if self.is_deepspeed_enabled or self.is_fsdp_enabled:
                raise UsageError(
                    "The bi-level step needs whole parameters on every process; train it with DDP "
                    "(accelerate_configs/ddp.yaml), not with DeepSpeed or FSDP."
                )
            self._bilevel = BilevelStep(bilevel, self._average)
            self._outer_batches = OuterBatches(
                *self._rows_and_collate(self.train_dataset if outer_dataset is None else outer_dataset),
                batch_size=self.args.train_batch_size,
                processes=self.args.world_size,
                process=self.args.process_index,
                seed=self._data_seed,
                workers=self.args.dataloader_num_workers,
            )

    @property
    def _data_seed(self) -> int:
        return int(self.args.seed if self.args.data_seed is None else self.args.data_seed)

    def _grouped(self, groups: Sequence[Hashable]) -> GroupedSampler:
        problems = []
        if len(groups) != len(self.train_dataset):
            problems.append(
                f"`train_groups` has {len(groups)} entries and the training set {len(self.train_dataset)} rows; give "
                "one per row."
            )
        if self.args.train_sampling_strategy != "random":
            problems.append(
                f"`train_groups` orders the rows, and so does `train_sampling_strategy` "
                f"({self.args.train_sampling_strategy!r}); leave one of them out."
            )
        if problems:
            raise UsageError(problems)
        return GroupedSampler(groups, self._data_seed)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return super()._get_train_sampler(train_dataset) if self._sampler is None else self._sampler

    def _rows_and_collate(self, dataset: Any) -> tuple[Any, Any]:
        loader = self._get_dataloader(dataset, "Outer", self.args.train_batch_size)
        return loader.dataset, loader.collate_fn

    @property
    def term_weights(self) -> dict[str, float]:
        """Present weight of each term; empty where the model weighs them itself."""
        if self._bilevel is not None:
            return dict(zip(self._bilevel.config.tasks, self._bilevel.weights.tolist(), strict=True))
        return dict(self._weights or {})

    # -- the loss --------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if self._bilevel is not None and self.model.training:
            self._random_states.append(random_state(list(self.model.parameters())[:1]))
        outputs = model(**inputs)
        if self.model.training and self._two_backwards:
            self._update_weights(self._stacked(outputs)[0])
        loss = self._weighted(outputs)
        if self.model.training and outputs.terms:
            self._terms_log.add(outputs.terms, outputs.present or {})
        return (loss, outputs) if return_outputs else loss

    def _weighted(self, outputs: MethodOutput) -> torch.Tensor:
        terms = outputs.terms or {}
        if self._bilevel is not None:
            return self._bilevel.weighted(self._stacked(outputs)[0])
        if self._weights is None:
            if outputs.loss is None and not terms:
                raise UsageError(f"{type(self.model).__name__} returned neither `loss` nor `terms`; it needs one.")
            return outputs.loss if outputs.loss is not None else torch.stack(list(terms.values())).sum()
        _same_names("weights", self._weights, terms)
        return torch.stack([self._weights[name] * value for name, value in terms.items()]).sum()

    def _stacked(self, outputs: MethodOutput) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (T,) and which have labels (T,) in the order of the bi-level tasks."""
        assert self._bilevel is not None
        terms, present = outputs.terms or {}, outputs.present or {}
        tasks = self._bilevel.config.tasks
        _same_names("bilevel.tasks", tasks, terms)
        losses = torch.stack([terms[name] for name in tasks])
        has = [torch.as_tensor(present.get(name, True), device=losses.device).bool().reshape(()) for name in tasks]
        return losses, torch.stack(has)

    # -- the bi-level step -----------------------------------------------------------------------------------------

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, count = super().get_batch_samples(*args, **kwargs)
        self._window, self._micro_batch, self._random_states = batches, 0, []
        return batches, count

    @property
    def _two_backwards(self) -> bool:
        """One training pass serves the virtual and the real step: possible where it is the only one of the step."""
        bilevel = self._bilevel
        return bilevel is not None and not bilevel.config.delayed and len(self._window) == 1 and self._due

    @property
    def _due(self) -> bool:
        return self._bilevel is not None and self._bilevel.due(self.state.global_step)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        delayed = self._bilevel is not None and self._bilevel.config.delayed
        if self._due and not delayed and len(self._window) > 1 and self._micro_batch == 0:
            model.train()
            self._update_weights()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._micro_batch += 1
        if self._due and delayed and self._micro_batch == len(self._window):
            self._update_weights()
        return loss

    def _update_weights(self, losses: torch.Tensor | None = None) -> None:
        """One outer step. `losses` (T,) of the training batch with their graph, where they have just been computed."""
        bilevel = self._bilevel
        assert bilevel is not None
        with phase("outer"):
            model = self.model  # not its DDP wrapper, whose hooks belong to the real step
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            scaler = self.accelerator.scaler
            scale = 1.0 if scaler is None else float(scaler.get_scale())
            gradients: list[torch.Tensor | None] | None = None
            if losses is not None:
                found = torch.autograd.grad(
                    scale * bilevel.weighted(losses), parameters, retain_graph=True, allow_unused=True
                )
                whole = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
                gradients = [gradient / scale if scale != 1 else gradient for gradient in self._average(whole)]
            elif bilevel.config.delayed:  # as backward left them: whole, and means over the processes
                gradients = [None if p.grad is None else p.grad / scale for p in parameters]
            outer = [self._prepare_inputs(batch) for batch in self._outer_batches.take(len(self._window))]
            train = [self._prepare_inputs(batch) for batch in self._window]
            with without_autocast(model):
                report = bilevel.step(
                    model,
                    self.optimizer,
                    lambda batch: self._stacked(model(**batch)),
                    train,
                    outer,
                    gradients=gradients,
                    random_states=None if gradients is None else self._random_states,
                )
        self._note(report)

    def _note(self, report: BilevelReport) -> None:
        assert self._bilevel is not None
        if report.skipped:
            logger.warning("Step %d: the task weights stay, %s", self.state.global_step, report.skipped)
            return
        names = self._bilevel.config.tasks
        values = dict(zip(names, report.hypergradient, strict=True))
        present = dict(zip(names, report.present, strict=True))
        self._terms_log.add({**values, "outer_loss": torch.tensor(report.outer_loss)}, present, group="bilevel")

    def _average(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Means over the processes, in one message per dtype."""
        if self.args.world_size == 1:
            return tensors
        result: list[torch.Tensor] = list(tensors)
        for dtype in {tensor.dtype for tensor in tensors}:
            places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
            flat = torch.cat([tensors[place].detach().reshape(-1).to(self.args.device) for place in places])
            flat = self.accelerator.reduce(flat, reduction="mean")
            sizes = [tensors[place].numel() for place in places]
            for place, part in zip(places, flat.split(sizes), strict=True):
                result[place] = part.view_as(tensors[place]).to(tensors[place].device)
        return result

    def begin_epoch(self, epoch: int) -> None:
        # accelerate tells the data set its epoch in a run of one process only.
        if hasattr(self.train_dataset, "set_epoch"):
            self.train_dataset.set_epoch(epoch)
        if self._sampler is not None:
            self._sampler.set_epoch(epoch)

    # -- logs and exact resume -------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:  # a log entry of training, on every process
            logs.update(self._terms_log.take(self.accelerator))
            if self._bilevel is not None:
                logs.update({f"weights/{name}": value for name, value in self.term_weights.items()})
        super().log(logs, *args, **kwargs)

    def resume_settings(self) -> dict[str, Any]:
        bilevel = {} if self._bilevel is None else {"bilevel": self._bilevel.config.plain()}
        grouped = {} if self._sampler is None else {"grouped": True}
        return {**super().resume_settings(), **bilevel, **grouped, "weights": self._weights}

    def resume_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"log": self._terms_log.state()}
        if self._bilevel is not None:
            state["bilevel"] = self._bilevel.state_dict()
            state["outer_batches"] = self._outer_batches.drawn
        return state

    def load_resume_state(self, state: dict[str, Any]) -> None:
        self._terms_log.load(state["log"], self.args.device)
        if self._bilevel is not None:
            self._bilevel.load_state_dict(state["bilevel"])
            self._outer_batches.skip_to(state["outer_batches"])

    # -- evaluation ------------------------------------------------------------------------------------------------

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        # `dataloader_drop_last` is about training; transformers would leave the last rows out of evaluation too.
        drop = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop and is_training
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Judge the model by the evaluator; the metrics get the prefix, the results go to `evaluation_results`."""
        model = self.model
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast():
                if self.evaluator is None:
                    results = EvaluationResults(self._mean_losses(dataloader))
                else:
                    results = self.evaluator(model, dataloader.dataset, self.predict_rows)
        finally:
            model.train(training)
        self.evaluation_results[metric_key_prefix] = results
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in results.metrics.items()}
        return EvalLoopOutput(None, None, metrics, self.num_examples(dataloader))

    def predict_rows(self, dataset: Any) -> dict[str, np.ndarray]:
        """Run the model over a data set, shared out over the processes; call it on every one.

        Returns:
            each tensor (N, ...) of the model's output, all rows exactly once in the order of the data set, on every
            process; half precision becomes float32.
        """
        model = self.model
        parts: dict[str, list[torch.Tensor]] = {}
        loader = self._get_dataloader(dataset, "Evaluation", self.args.eval_batch_size)
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast():
                for batch in loader:
                    outputs = model(**self._prepare_inputs(batch))
                    rows = {
                        name: value.contiguous()
                        for name, value in outputs.items()
                        if isinstance(value, torch.Tensor) and value.dim()
                    }
                    for name, value in self.accelerator.gather_for_metrics(rows).items():
                        value = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
                        parts.setdefault(name, []).append(value.cpu())
        finally:
            model.train(training)
        return {name: torch.cat(values).numpy() for name, values in parts.items()}

    def _mean_losses(self, dataloader: Any) -> dict[str, float]:
        """Mean of the loss and of each term over the batches of all processes."""
        model = self.model
        log = TermLog()
        for batch in dataloader:
            outputs = model(**self._prepare_inputs(batch))
            loss = self._weighted(outputs)
            log.add({**(outputs.terms or {}), "loss": loss}, outputs.present or {}, group="")
        return log.take(self.accelerator)

    # -- what a run leaves -----------------------------------------------------------------------------------------

    def run_record(self, **more: Any) -> dict[str, Any]:
        """One record for `thurl.training.results.write_results`: seed, metrics by data set, weights, time per step.

        Args:
            more: further entries, JSON values.
        """
        record: dict[str, Any] = {"seed": self.args.seed, "steps": self.state.global_step}
        record.update({prefix: dict(results.metrics) for prefix, results in self.evaluation_results.items()})
        if self.term_weights:
            record["weights"] = self.term_weights
        if self.timing is not None:
            record["seconds_per_step"] = self.timing["seconds_per_step"]
        return {**record, **more}

    def create_model_card(self, model_name: str | None = None, **kwargs: Any) -> None:
        """Write README.md into the output folder (first process); `kwargs`: fields of `MethodCard` to replace."""
        known = {name: value for name, value in kwargs.items() if value is not None and name in _CARD_FIELDS}
        write_model_card(
            self,
            replace(self.card, **known),
            {prefix: results.metrics for prefix, results in self.evaluation_results.items()},
            model_name=model_name,
            weights=self.term_weights,
            bilevel={} if self._bilevel is None else self._bilevel.config.plain(),
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.create_model_card()
        super()._save_checkpoint(model, trial)


_CARD_FIELDS = ("license", "tags", "datasets", "base_model")


def _same_names(what: str, wanted: Any, terms: Mapping[str, torch.Tensor]) -> None:
    if set(wanted) != set(terms):
        raise UsageError(
            f"`{what}` has {', '.join(sorted(wanted))}; the model's loss terms are {', '.join(sorted(terms))}. Name "
            "each of them."
        )
