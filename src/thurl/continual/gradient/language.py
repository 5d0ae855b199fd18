"""Continual LoRA of a causal language model: it learns to write the label's words after a text, task after task.

One adapter goes on from task to task. There is no head: a text belongs to the class whose words are the most likely.
With CoTo (arXiv 2506.05713) every task is a CoTo run of its own: its schedule begins anew, masks follow the seed of
the task, and all adapters are active whenever the model is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from thurl.continual.class_data import ClassData, TaskData
from thurl.continual.fitting import fit
from thurl.continual.gradient.base import GradientLearner
from thurl.continual.gradient.replay import ExperienceReplay
from thurl.continual.label_scores import (
    IGNORED,
    LanguageModelEncoder,
    Prompts,
    label_log_likelihoods,
    label_rows,
    model_inputs,
)
from thurl.continual.learner import State
from thurl.errors import UsageError
from thurl.training.method_output import MethodOutput
from thurl.training.single_process import process_device


__all__ = ["LMLoRA", "LMReplay"]


class LMLoRA(GradientLearner):
    """Fine-tuning of a low-rank change on the texts of the new task alone. `lm_lora_coto` is its name with CoTo.

    Args:
        encoder: with the language model; it is copied.
        target_modules: names of the adapted modules by commas, as in PEFT; None for PEFT's choice for the kind of
            model, "all-linear" for all linear layers but the output head.
        coto: switch adapters by CoTo's schedule.
        initial_p, final_p, stage1_ratio, coto_schedule: of it, see `thurl.coto.config.CoToConfig`.
        normalise: divide a label's log-likelihood by its tokens.
        scored: prompts times labels that the model reads at a time to score them.
        settings: of `GradientLearner`.

    Raises:
        UsageError: values outside their range, no language model, or no such modules in it.
    """

    name = "lm_lora"
    fixed = ("tune", "bottleneck", "encoder_rate")

    def __init__(
        self,
        encoder: LanguageModelEncoder,
        *,
        target_modules: str | None = None,
        learning_rate: float = 1e-3,
        epochs: int = 3,
        batch_size: int = 16,
        optimizer: str = "adamw",
        coto: bool = False,
        initial_p: float = 0.1,
        final_p: float = 1.0,
        stage1_ratio: float = 0.75,
        coto_schedule: str = "linear",
        normalise: bool = False,
        scored: int = 512,
        **settings: Any,
    ) -> None:
        if not isinstance(encoder, LanguageModelEncoder):
            raise UsageError(
                f"{self.name}: {type(encoder).__name__} is no language model; give a LanguageModelEncoder of "
                "thurl.continual.label_scores"
            )
        if scored < 1:
            raise UsageError(f"{self.name}: scored is {scored}; it must be 1 or more")
        self.target_modules = target_modules
        super().__init__(
            encoder,
            tune="lora",
            learning_rate=learning_rate,
            epochs=epochs,
            batch_size=batch_size,
            optimizer=optimizer,
            **settings,
        )
        self.settings |= {
            "target_modules": target_modules,
            "coto": coto,
            "initial_p": initial_p,
            "final_p": final_p,
            "stage1_ratio": stage1_ratio,
            "coto_schedule": coto_schedule,
            "normalise": normalise,
        }
        self._scored = scored  # changes no result
        self._callback(0)  # checks the options
        if coto:
            self.name = f"{type(self).name}_coto"

    def config(self) -> dict[str, Any]:
        return {**super().config(), "name": type(self).name}

    def build(self, encoder: nn.Module) -> nn.Module:
        from peft import LoraConfig, inject_adapter_in_model

        targets: Any = self.target_modules
        if targets not in (None, "all-linear"):
            targets = [name.strip() for name in targets.split(",")]
        config = LoraConfig(r=self.tuning.rank, lora_alpha=self.tuning.alpha, target_modules=targets)
        try:
            inject_adapter_in_model(config, encoder.model)
        except ValueError as error:
            raise UsageError(f"{self.name}: {str(error).splitlines()[0]}; name modules in target_modules") from None
        strange = [name for name, value in encoder.named_parameters()
                   if value.requires_grad and ".lora_A." not in name and ".lora_B." not in name]  # fmt: skip
        if strange:
            raise UsageError(f"{self.name}: {strange[0]} is no linear layer; leave it out of target_modules")
        return encoder

    def init(self, data: ClassData, seed: int) -> State:
        self._load(self._begin)
        self.reset(torch.Generator().manual_seed(seed))
        return {**self._tuned(), "classes": torch.zeros(0, dtype=torch.int64)}

    def learn(self, state: State, task: TaskData, seed: int) -> State:
        generator = torch.Generator().manual_seed(seed)
        batches = LabelBatches(task.data, self.steps(state, task, generator)[: self.settings["max_steps"] or None])
        groups = [{"params": list(self.encoder.parameters()), "lr": self.settings["learning_rate"]}]
        callback = self._callback(seed)
        self._load(state)
        try:
            fit(
                LabelLoss(self.encoder.model),
                batches,
                groups,
                self.fitting,
                seed=seed,
                callbacks=[] if callback is None else [callback],
            )
        finally:
            if callback is not None and callback.controller is not None:
                callback.controller.detach()  # also where the training broke off inside a step
        learned = {
            **self._tuned(),
            "classes": torch.cat([state["classes"], torch.tensor(task.classes, dtype=torch.int64)]),
        }
        return {**state, **learned, **self.remember(state, learned, task, generator)}

    def logits(self, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        labels = [_prompts(data).labels[index] for index in state["classes"].tolist()]

        def read(prompts: torch.Tensor) -> torch.Tensor:
            model, normalise = self.encoder.model, self.settings["normalise"]
            return label_log_likelihoods(model, prompts, labels, normalise=normalise)

        return self._over(state, data, rows, max(1, self._scored // max(1, len(labels))), read)

    def features(self, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        return self._over(state, data, rows, self._scored, self.encoder)

    def _over(
        self,
        state: State,
        data: ClassData,
        rows: torch.Tensor,
        at_once: int,
        read: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """What `read` gives for the prompts of `rows`, those of like length together, in the order of `rows`."""
        inputs = _prompts(data)
        self._load(state)
        order = torch.tensor([len(inputs.prompts[row]) for row in rows.tolist()]).argsort(stable=True)
        with torch.no_grad():
            found = [read(inputs[rows[part]].to(process_device())).float().cpu() for part in order.split(at_once)]
        return torch.cat(found)[order.argsort()]

    def _callback(self, seed: int) -> Any:
        """CoTo for one task, None without it."""
        from thurl.coto import CoToCallback, CoToConfig

        settings = self.settings
        config = CoToConfig(
            initial_p=settings["initial_p"],
            final_p=settings["final_p"],
            stage1_ratio=settings["stage1_ratio"],
            schedule=settings["coto_schedule"],
            seed=seed,
        )
        return CoToCallback(config) if settings["coto"] else None


class LMReplay(ExperienceReplay, LMLoRA):
    """As `LMLoRA`, with as many kept texts in every step as new ones; see `ExperienceReplay`."""

    name = "lm_er"


class LabelLoss(nn.Module):
    """Mean cross-entropy over the tokens of labels, as a model of `thurl.training.method_trainer`.

    Args:
        model: causal language model.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> MethodOutput:
        """For rows of `thurl.continual.label_scores.label_rows`."""
        # Labels end their rows: only their columns, and the one before, need a prediction.
        width = int((labels != IGNORED).any(dim=0).sum())
        output = self.model(**model_inputs(self.model, input_ids), use_cache=False, logits_to_keep=width + 1)
        logits, wanted = output.logits[:, :-1].float(), labels[:, -width:]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)
        return MethodOutput(loss=loss, terms={"label": loss})


class LabelBatches:
    """`thurl.continual.fitting.Batches` of prompts with their labels.

    Args:
        data: of `thurl.continual.text_data`.
        rows: of each step, int64.
    """

    def __init__(self, data: ClassData, rows: Sequence[torch.Tensor]) -> None:
        self.inputs, self.classes, self.rows = _prompts(data), data.labels, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, step: int) -> Mapping[str, torch.Tensor]:
        rows = self.rows[step]
        labels = [self.inputs.labels[index] for index in self.classes[rows].tolist()]
        return label_rows([self.inputs.prompts[row] for row in rows.tolist()], labels)


def _prompts(data: ClassData) -> Prompts:
    if not isinstance(data.inputs, Prompts):
        raise UsageError("a language model reads texts; give data of thurl.continual.text_data")
    return data.inputs
