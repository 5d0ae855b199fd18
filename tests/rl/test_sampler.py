from collections import Counter

import numpy as np
import pytest

from thurl.rl.sampler import DatasetBlockSampler


def _names(*sizes):
    return [f"d{index}" for index, size in enumerate(sizes) for _ in range(size)]


def _sampler(sizes, **options):
    return DatasetBlockSampler(_names(*sizes), **{"block_size": 8, "num_generations": 6, **options})


SIZES = [(6125, 6675), (100, 1000), (64,), (3, 50)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("remainder", ["carry", "fill"])
def test_blocks_are_pure_and_images_unique(sizes, ranks, remainder):
    if remainder == "carry" and min(sizes) < 8:
        with pytest.raises(ValueError, match="smaller than a block"):
            _sampler(sizes, blocks_per_batch=ranks, remainder=remainder)
        return
    names = _names(*sizes)
    sampler = _sampler(sizes, blocks_per_batch=ranks, remainder=remainder)
    for epoch in (0, 1):
        batches = sampler.image_batches(epoch)
        assert len(batches) == sampler.batches_per_epoch
        for batch in batches:
            assert len(batch) == ranks * 8
            for block in batch.reshape(-1, 8):
                assert len({names[i] for i in block}) == 1
                if len(set(sizes)) and min(sizes) >= 8:
                    assert len(set(block.tolist())) == 8, "an image would meet itself"
        used = Counter(np.concatenate(batches).tolist())
        # The remainder rule: less than a block per dataset and less than a batch of blocks.
        left_out = len(names) - len(used)
        assert left_out < 8 * (len(sizes) if remainder == "carry" else 0) + 8 * ranks
        if remainder == "carry":
            assert set(used.values()) == {1}
        else:
            assert sum(used.values()) - len(used) < 8 * len(sizes)


@pytest.mark.parametrize("sizes", [(6125, 6675), (100, 1000), (65, 71)], ids=str)
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_what_one_epoch_leaves_out_the_next_takes(sizes, ranks):
    sampler = _sampler(sizes, blocks_per_batch=ranks)
    everything = set(range(sum(sizes)))
    for epoch in range(4):
        now = set(np.concatenate(sampler.image_batches(epoch)).tolist())
        following = set(np.concatenate(sampler.image_batches(epoch + 1)).tolist())
        assert everything - now <= following


@pytest.mark.parametrize("options", [{}, {"remainder": "fill"}, {"repeat_count": 4, "num_generations": 2}], ids=str)
def test_length_is_exact_and_rows_repeat(options):
    sampler = _sampler((100, 37), blocks_per_batch=3, **options)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        rows = list(sampler)
        assert len(rows) == len(sampler)
        k, repeats = sampler.num_generations, sampler.repeat_count
        per_batch = 3 * 8 * k
        for number, batch in enumerate(sampler.image_batches()):
            start = number * per_batch * repeats
            for copy in range(repeats):
                chunk = rows[start + copy * per_batch : start + (copy + 1) * per_batch]
                assert chunk == np.repeat(batch, k).tolist()


def test_order_depends_on_seed_and_epoch_alone():
    first, second = _sampler((100, 60)), _sampler((100, 60))
    second.set_epoch(3)
    second.set_epoch(3)
    list(second)
    second.set_epoch(0)
    assert list(first) == list(second) == list(first)
    first.set_epoch(1)
    assert list(first) != list(second)
    assert list(_sampler((100, 60), seed=7)) != list(second)


@pytest.mark.parametrize("position", [0, 1, 47, 48, 333])
def test_resume_in_the_middle_yields_what_was_left(position):
    sampler = _sampler((100, 60), blocks_per_batch=2)
    sampler.set_epoch(2)
    rows = list(sampler)
    resumed = _sampler((100, 60), blocks_per_batch=2)
    resumed.load_state_dict(sampler.state_dict(position))
    resumed.set_epoch(2)  # the trainer announces the epoch again
    assert list(resumed) == rows[position:]
    assert list(resumed) == rows, "only the interrupted epoch is shortened"


def test_resume_refuses_another_seed():
    with pytest.raises(ValueError, match="seed 1, this sampler 42"):
        _sampler((100,)).load_state_dict({"seed": 1, "epoch": 0, "position": 0})
    with pytest.raises(ValueError, match="outside an epoch"):
        _sampler((100,)).load_state_dict({"seed": 42, "epoch": 0, "position": 10**6})


def test_weights_decide_the_order_but_not_the_share():
    def first_half(weights):
        sampler = _sampler((80, 800), weights=weights)
        batches = sampler.image_batches(0)
        return sum(batch[0] < 80 for batch in batches[: len(batches) // 2]), len(batches)

    uniform, total = first_half("uniform")
    proportional, _ = first_half("proportional")
    last, _ = first_half({"d0": 1e-9, "d1": 1.0})
    assert total == 110
    assert uniform == 10 and last == 0 and 1 <= proportional <= 9


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((), {}, "No images"),
        ((100,), {"block_size": 1}, "`block_size` is 1"),
        ((100,), {"num_generations": 0}, "`num_generations` is 0"),
        ((100, 5), {}, r"smaller than a block of 8 images: \{'d1': 5\}"),
        ((16,), {"blocks_per_batch": 3}, "2 blocks of 8 images do not fill one generation batch of 3"),
        ((100, 50), {"weights": {"d0": 1.0}}, r"no entry for \['d1'\]"),
        ((100,), {"weights": {"d0": 0.0}}, "must be positive"),
        ((100,), {"weights": "even"}, "'even'"),
        ((100,), {"remainder": "drop"}, "'carry' or 'fill'"),
    ],
)
def test_bad_input(sizes, options, message):
    with pytest.raises(ValueError, match=message):
        _sampler(sizes, **options)
