"""The campaign of damaged inputs counts what it should, and a small share of it passes here."""

from __future__ import annotations

import random
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path

import pytest

from thurl.errors import DataError


FOLDER = Path(__file__).parents[2] / "benchmarks"
HOSTILE = (
    "yaml aliases", "yaml object", "json depth", "path in labels", "path in manifest", "path in faces", "path in pool",
    "link loop", "endless file", "endless labels", "named pipe", "named pipe of labels", "exif loop",
    "safetensors length", "safetensors overlap", "safetensors size", "pickled weights",
)  # fmt: skip


@pytest.fixture(scope="module")
def campaign():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(FOLDER), *sys.path])
        yield {name: import_module(name) for name in ("reliability", "reliability_mutations", "reliability_samples",
                                                      "reliability_hostile")}  # fmt: skip


def test_damage_follows_the_seed_and_always_changes_something(campaign):
    mutated = campaign["reliability_mutations"].mutated
    content = b'{"a": [1, 2, {"b": "text"}]}\n'
    found = [mutated(content, random.Random(seed)) for seed in range(300)]
    assert found == [mutated(content, random.Random(seed)) for seed in range(300)]
    assert all(changed != content for _, changed in found)
    assert {name for name, _ in found} == set(campaign["reliability_mutations"].MUTATIONS)


def test_outcomes(campaign, tmp_path):
    reliability = campaign["reliability"]
    (tmp_path / "a").write_text("a")

    def refuses(folder):
        raise DataError("no")

    def silent(folder):
        raise DataError("")

    def breaks(folder):
        raise KeyError("a")

    def sleeps(folder):
        time.sleep(5)

    def loses(folder):
        (folder / "a").write_text("b")

    count = reliability.Count()
    for read in (refuses, silent, breaks, sleeps, Path.iterdir, loses):
        reliability.judge(count, read.__name__, tmp_path, read, 1)
    assert count.outcomes == {"cases": 6, "refused": 1, "crashed": 2, "hung": 1, "read": 1, "lost": 1}
    assert [line.split(":")[0] for line in count.failures] == ["silent", "breaks", "sleeps", "loses"]


def test_a_share_of_the_campaign(campaign, tmp_path):
    samples = [
        sample
        for sample in campaign["reliability_samples"].make_samples(tmp_path / "valid", models=False)
        if sample.group != "recipes" or sample.name == "afine"
    ]
    warnings.simplefilter("ignore")  # Pillow's, of truncated files
    counts = campaign["reliability"].campaign(samples, 4 * len(samples), 3, 60, tmp_path / "damaged")
    assert {group: count.failures for group, count in counts.items()} == dict.fromkeys(counts, [])
    assert sum(count.outcomes["refused"] for count in counts.values()) > 2 * len(samples)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_input(campaign, tmp_path, name):
    count = campaign["reliability"].Count()
    campaign["reliability"].judge(count, name, tmp_path, campaign["reliability_hostile"].HOSTILE[name], 60)
    assert count.failures == [] and count.outcomes["refused"] + count.outcomes["read"] == 1
    assert count.outcomes["refused"] or name == "exif loop"
