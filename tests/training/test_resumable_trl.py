"""What `thurl.training.resumable_trl` takes for granted of the installed TRL. Runs: tests/recipe/test_coto_llm.py."""

import inspect

import torch
from trl import GRPOTrainer, SFTTrainer
from trl.trainer.utils import RepeatSampler

from thurl.training.resumable_trl import ResumableGRPO


def test_private_names_are_where_they_are_expected():
    assert list(inspect.signature(GRPOTrainer._get_train_sampler).parameters) == ["self", "dataset"]
    assert "RepeatSampler(" in inspect.getsource(GRPOTrainer._get_train_sampler)
    for trainer, names in (
        (SFTTrainer, ("_metrics", "_total_train_tokens")),
        (GRPOTrainer, ("_metrics", "_step", "_buffered_inputs", "_logs")),
    ):
        source = inspect.getsource(trainer.__init__)
        assert all(f"self.{name} = " in source for name in names)


def test_an_epoch_has_its_order_whatever_came_before():
    """TRL's own sampler draws the epochs from one stream: the second epoch of a new process is the first again."""

    def epochs(begin):
        sampler = RepeatSampler(range(50), mini_repeat_count=1, seed=7)
        trainer = object.__new__(ResumableGRPO)
        trainer._repeats, trainer.args = sampler, type("Args", (), {"seed": 7})
        orders = []
        for epoch in range(begin, 3):
            trainer.begin_epoch(epoch)
            orders.append(list(sampler))
        return orders

    whole, resumed = epochs(0), epochs(1)
    assert whole[1:] == resumed and whole[0] != whole[1]
    assert whole[0] == list(RepeatSampler(range(50), mini_repeat_count=1, seed=7)), "the first epoch is TRL's"
    plain = RepeatSampler(range(50), mini_repeat_count=1, seed=7)
    plain_epochs = [list(plain) for _ in range(2)]
    assert list(RepeatSampler(range(50), mini_repeat_count=1, seed=7)) != plain_epochs[1]
    assert isinstance(plain.generator, torch.Generator)
