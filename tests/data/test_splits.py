"""Splits without common content: the published one of KADID-10K, and reproducible ones for the rest."""

from __future__ import annotations

import random

import pytest

from thurl.data.labels import RatedImage
from thurl.data.splits import OFFICIAL_SPLITS, SPLITS, check_no_leak, select_split, split_by_reference
from thurl.errors import DataError, UsageError


def _kadid(dataset="KADID-10K"):
    return [
        RatedImage(f"/x/I{ref:02d}_{kind:02d}_01.png", 3.0, dataset=dataset, reference=f"I{ref:02d}.png")
        for ref in range(1, 82)
        for kind in range(1, 6)
    ]


def test_the_published_kadid_lists():
    lists = OFFICIAL_SPLITS["KADID-10K"]
    assert [len(lists[name]) for name in SPLITS] == [49, 16, 16]
    assert len({name for names in lists.values() for name in names}) == 81
    numbers = [int(name[1:3]) for name in lists["validation"]]
    assert numbers == [7, 12, 14, 15, 16, 27, 32, 35, 36, 41, 44, 49, 55, 66, 67, 70]
    assert [int(name[1:3]) for name in lists["test"]] == [
        19,
        29,
        30,
        34,
        37,
        38,
        43,
        50,
        64,
        71,
        72,
        73,
        74,
        78,
        80,
        81,
    ]


def test_kadid_uses_the_published_lists_whatever_the_seed():
    for seed in (0, 1):
        parts = {name: select_split(_kadid(), name, seed=seed) for name in SPLITS}
        assert [len(parts[name]) for name in SPLITS] == [245, 80, 80]
        assert {r.reference for r in parts["test"]} == set(OFFICIAL_SPLITS["KADID-10K"]["test"])
        check_no_leak(parts)
    assert select_split(_kadid(), "all") == _kadid()


def test_kadid_without_its_references_is_refused():
    with pytest.raises(DataError, match="reference is None"):
        select_split([RatedImage("a.png", 3.0, dataset="KADID-10K")], "train")
    only_test = [r for r in _kadid() if r.reference == "I19.png"]
    with pytest.raises(DataError, match="split 'train' holds none of the 5 pictures"):
        select_split(only_test, "train")


def test_other_data_sets_are_split_by_reference():
    parts = split_by_reference(_kadid("other"))
    assert [len({r.reference for r in parts[name]}) for name in SPLITS] == [49, 16, 16]
    check_no_leak(parts)
    assert parts == {name: select_split(_kadid("other"), name) for name in SPLITS}


def test_the_split_depends_on_names_and_seed_only():
    records = _kadid("other")
    shuffled = list(records)
    random.Random(0).shuffle(shuffled)
    moved = [RatedImage(r.image.replace("/x/", "/y/z/"), 1.0, dataset="other", reference=r.reference) for r in records]
    names = {r.reference for r in split_by_reference(records)["test"]}
    assert names == {r.reference for r in split_by_reference(shuffled)["test"]}
    assert names == {r.reference for r in split_by_reference(moved)["test"]}
    assert names != {r.reference for r in split_by_reference(records, seed=1)["test"]}
    # Written down: a change of it would silently move published results.
    assert sorted(names)[:4] == FIRST_FOUR


FIRST_FOUR = ["I03.png", "I07.png", "I10.png", "I19.png"]


def test_pictures_without_a_reference_are_split_one_by_one():
    records = [RatedImage(f"{i:05d}.jpg", 1.0, dataset="SPAQ") for i in range(11125)]
    parts = split_by_reference(records)
    assert [len(parts[name]) for name in SPLITS] == [6675, 2225, 2225]
    moved = [RatedImage(f"/a/{r.image}", 1.0, dataset="SPAQ") for r in records]
    assert [r.image for r in split_by_reference(moved)["test"]] == [f"/a/{r.image}" for r in parts["test"]]


def test_adding_a_data_set_leaves_the_split_of_the_first_alone():
    first, second = _kadid("A"), _kadid("B")
    alone = split_by_reference(first)
    both = split_by_reference([*first, *second])
    assert [r for r in both["train"] if r.dataset == "A"] == alone["train"]
    assert {r.reference for r in both["train"] if r.dataset == "B"} != {r.reference for r in alone["train"]}


@pytest.mark.parametrize("count", [3, 4, 5, 7])
def test_small_sets_leave_no_part_empty(count):
    parts = split_by_reference([RatedImage(f"{i}.png", 1.0, dataset="A") for i in range(count)])
    sizes = [len(parts[name]) for name in SPLITS]
    assert sum(sizes) == count and min(sizes) >= 1 and sizes[0] == max(sizes)


def test_too_small_sets_and_wrong_fractions():
    with pytest.raises(DataError, match="has 2 references; three parts"):
        split_by_reference([RatedImage(f"{i}.png", 1.0, dataset="A") for i in range(2)])
    for fractions in ((0.5, 0.5), (0.6, 0.4, 0.0), (0.6, 0.3, 0.3)):
        with pytest.raises(UsageError, match="fractions"):
            split_by_reference(_kadid("A"), fractions=fractions)
    with pytest.raises(UsageError, match="split is 'trian'; nearest: 'train'"):
        select_split(_kadid(), "trian")


def test_a_leak_is_named():
    records = _kadid()
    with pytest.raises(DataError, match=r"1 references are in two parts(.|\n)*i01 \(KADID-10K\): a and b"):
        check_no_leak({"a": records[:3], "b": records[3:8]})
    # The same name in another data set is another reference.
    check_no_leak({"a": records[:3], "b": _kadid("other")[:3]})
