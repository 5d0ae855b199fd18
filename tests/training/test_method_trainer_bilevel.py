"""The bi-level step inside `MethodTrainer`, on a tiny method."""

import numpy as np
import pytest
import torch

from thurl.errors import UsageError
from thurl.training.bilevel import BilevelConfig
from thurl.training.outer_batches import OuterBatches

from .method_training import logged, runs, trained


@pytest.mark.parametrize("kind", ["official", "delayed"])
def test_learned_weights_move_and_are_logged(tmp_path, kind):
    trainer = trained(tmp_path, kind, logging_steps=1)
    weights = logged(trainer, "weights/kind")
    assert len(set(weights)) == 6 and weights[-1] == trainer.term_weights["kind"]
    assert trainer.term_weights["rank"] > 1, "the gradient of the primary task helps itself"
    assert (
        all(value > 0 for value in logged(trainer, "bilevel/rank")) and len(logged(trainer, "bilevel/outer_loss")) == 6
    )
    # The loss of a step is weighted with the new weights in the official order, with the old ones when delayed.
    rank, kinds = (np.array(logged(trainer, name)) for name in ("terms/rank", "terms/kind"))
    new = np.array([logged(trainer, f"weights/{name}") for name in ("rank", "kind")])
    old = np.concatenate([np.ones((2, 1)), new[:, :-1]], axis=1)
    used, other = (new, old) if kind == "official" else (old, new)
    np.testing.assert_allclose(logged(trainer, "loss"), used[0] * rank + used[1] * kinds, rtol=1e-5)
    assert not np.allclose(logged(trainer, "loss"), other[0] * rank + other[1] * kinds, rtol=1e-4)


def test_delayed_and_official_order_have_the_same_first_outer_gradient(tmp_path):
    found = [
        logged(trained(tmp_path, kind, max_steps=1, logging_steps=1), "bilevel/kind")
        for kind in ("official", "delayed")
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


def test_between_updates_the_weights_stay(tmp_path):
    trainer = trained(tmp_path, "every 3", logging_steps=1)
    weights = logged(trainer, "weights/rank")
    assert weights[0] == 1 != weights[1] == weights[2] == weights[3] != weights[4] == weights[5]
    assert len(logged(trainer, "bilevel/rank")) == 2


@pytest.mark.parametrize("kind", ["official", "delayed"])
def test_accumulation_updates_the_weights_once_per_step_from_all_micro_batches(tmp_path, kind):
    """The class loss is a mean over rows, so halves of the training and the outer batch add up to the whole ones."""
    settings = runs.KINDS[kind]["bilevel"].plain()
    # Without the ranking term, which has other pairs in halves.
    settings.update(primary=("kind",), init={"rank": 0.0, "kind": 1.0})
    found = {}
    for parts in (1, 2):
        trainer = trained(
            tmp_path, kind, max_steps=1, logging_steps=1, options={"bilevel": BilevelConfig(**settings)},
            per_device_train_batch_size=8 // parts, gradient_accumulation_steps=parts,
        )  # fmt: skip
        found[parts] = logged(trainer, "bilevel/kind")
    np.testing.assert_allclose(found[1], found[2], rtol=1e-3)
    assert len(found[2]) == 1


def test_batch_norm_counts_training_batches_only(tmp_path):
    seen = {}
    for kind in ("plain", "official", "delayed"):
        trainer = trained(tmp_path, kind, config={"batch_norm": True, "dropout": 0.2})
        seen[kind] = int(trainer.model.norm.num_batches_tracked)
    assert seen == {"plain": 6, "official": 6, "delayed": 6}


def test_the_outer_pass_is_in_full_precision(tmp_path):
    """Under bfloat16 the two sides of the difference would round to the same losses."""
    found, kinds = {}, {}
    for bf16 in (False, True):
        dtypes = []
        trainer = runs.trainer_for(tmp_path, "official", bf16=bf16, max_steps=1, logging_steps=1)
        trainer.model.body.register_forward_hook(lambda module, args, output, kinds=dtypes: kinds.append(output.dtype))
        trainer.train()
        found[bf16], kinds[bf16] = logged(trainer, "bilevel/kind")[0], dtypes
    assert kinds[False] == 4 * [torch.float32]  # training, outer, two sides
    assert kinds[True] == [torch.bfloat16] + 3 * [torch.float32]
    assert found[True] == pytest.approx(found[False], rel=0.05) and found[True] != found[False]


def test_half_precision_weights_are_refused(tmp_path):
    trainer = runs.trainer_for(tmp_path, "official")
    trainer.model.to(torch.bfloat16)
    with pytest.raises(UsageError, match="Keep float32 weights"):
        trainer.train_dataset = [{**row, "x": row["x"].bfloat16()} for row in trainer.train_dataset]
        trainer.train()
    fields = {"fsdp": "full_shard"} if hasattr(trainer.args, "fsdp") else {}
    assert fields, "this transformers has no `fsdp` field; look how FSDP is asked for"


def test_outer_batches_do_not_depend_on_when_they_are_taken():
    data = runs.rows(7)

    def batches(process=0, processes=1, skip=0, count=6, workers=0):
        source = OuterBatches(
            data,
            runs.collate,
            batch_size=4 // processes,
            processes=processes,
            process=process,
            seed=5,
            workers=workers,
        )
        source.skip_to(skip)
        return [batch["x"] for batch in source.take(count)]

    whole = batches()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    for resumed, expected in zip(batches(skip=2, count=4), whole[2:], strict=True):
        assert torch.equal(resumed, expected)
    assert torch.equal(torch.get_rng_state(), state), "the order has a generator of its own"
    for a, b, both in zip(batches(0, 2), batches(1, 2), whole, strict=True):
        assert torch.equal(torch.cat([a, b]), both)
    for a, b in zip(batches(workers=1, count=3), whole, strict=False):
        assert torch.equal(a, b)
    # 24 rows are three epochs of 7 and a part: every row three times, and epochs differ.
    seen = torch.cat(whole)[:21].reshape(3, 7, 6)
    for epoch in seen:
        assert sorted(epoch[:, 0].tolist()) == sorted(float(row["x"][0]) for row in data)
    assert not torch.equal(seen[0], seen[1])
    with pytest.raises(UsageError, match="outer data set is empty"):
        OuterBatches([], runs.collate, batch_size=2)
