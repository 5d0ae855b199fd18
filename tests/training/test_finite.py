"""A training stops at a loss or weights that are not numbers, before it saves them."""

import inspect
import math

import pytest
import torch
from transformers import Trainer, TrainingArguments

from thurl.errors import DivergedError
from thurl.training.checkpoints import last_whole_checkpoint
from thurl.training.exact_resume import ExactResumeTrainer
from thurl.training.finite import FiniteTrainer, first_not_finite


class Spoilt(torch.nn.Module):
    """The mean of its weights; from forward pass `at` on something is wrong with it."""

    def __init__(self, at, how):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.frozen = torch.nn.Parameter(torch.tensor([math.inf]), requires_grad=False)
        self.at, self.how, self.passes = at, how, 0

    def forward(self, x):
        self.passes += 1
        loss = self.weight.mean()
        if self.passes == self.at:
            if self.how == "loss":
                loss = loss * math.inf
            elif self.how == "gradient":  # the loss is 0, its gradient 0 * inf
                loss = torch.where(torch.tensor(True), loss * 0, (loss * 0 + 1e38) ** 2 * loss)
            elif self.how == "draw":
                torch.multinomial(torch.full((3,), math.nan), 1)
            elif self.how == "other":
                raise RuntimeError("shapes do not fit")
        return {"loss": loss}


def trainer(folder, at, how, kind=ExactResumeTrainer, **fields):
    arguments = TrainingArguments(
        str(folder), **{"max_steps": 6, "save_steps": 1, "logging_steps": 1, "use_cpu": True, "report_to": [],
        "disable_tqdm": True, "per_device_train_batch_size": 1, "learning_rate": 0.1, **fields}
    )  # fmt: skip
    return kind(Spoilt(at, how), arguments, train_dataset=[{"x": torch.zeros(1)}] * 12)


@pytest.mark.parametrize(
    ("how", "what"),
    [("loss", "the loss is inf"), ("gradient", "the weight `weight` is not finite"), ("draw", "is not finite")],
)
def test_the_step_the_fix_and_the_checkpoint_before(tmp_path, how, what):
    with pytest.raises(DivergedError, match=rf"Step 3 of 6: .*{what}.*Lower `training.learning_rate` \(0.1\)"):
        trainer(tmp_path, 3, how).train()
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    resumed = trainer(tmp_path, 0, how)
    resumed.train("auto")
    assert resumed.state.global_step == 6 and first_not_finite(resumed.model) is None


def test_a_loss_within_an_accumulated_step_is_seen(tmp_path):
    with pytest.raises(DivergedError, match="Step 2 of 6: the loss is inf"):
        trainer(tmp_path, 3, "loss", gradient_accumulation_steps=2).train()


def test_any_other_error_stays_as_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        trainer(tmp_path, 2, "other").train()


def test_a_trainer_whose_caller_looks_goes_on(tmp_path):
    class Looks(FiniteTrainer):
        stops_at_nan = False

    done = trainer(tmp_path, 3, "loss", kind=Looks, save_strategy="no")
    done.train()
    assert done.state.global_step == 6 and first_not_finite(done.model) == "weight"


def test_torch_still_says_it_in_these_words():
    from thurl.training.finite import _NO_NUMBERS

    nan = torch.full((3,), math.nan)
    for words, compute in zip(
        _NO_NUMBERS,
        (lambda: torch.multinomial(nan, 1), lambda: torch.nn.functional.binary_cross_entropy(nan, torch.ones(3))),
        strict=True,
    ):
        with pytest.raises(RuntimeError, match=words):
            compute()


def test_nothing_is_saved_between_a_step_and_the_look():
    loop = inspect.getsource(Trainer._run_epoch)
    assert loop.index("callback_handler.on_step_end(") < loop.index("self._maybe_log_save_evaluate(")
