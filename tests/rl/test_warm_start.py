from __future__ import annotations

import copy
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from thurl.data.degradations import KINDS, LEVELS, describe
from thurl.data.labels import read_labels
from thurl.errors import DataError, UsageError
from thurl.rl.degraded_photos import write_degraded_photos
from thurl.rl.parsing import parse_score
from thurl.rl.tiny import build_tiny_qwen2_5_vl
from thurl.rl.warm_start import Described, WarmStartOptions, answer_text, describe_records, warm_start


SHORT = WarmStartOptions(pretext_steps=4, pretext_batch=8, format_steps=4, format_batch=8)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    labels = write_degraded_photos(tmp_path_factory.mktemp("warm"), group="five", repeats=4, size=32, crop=(64, 128))
    return read_labels(labels, format="csv")


def tiny():
    return build_tiny_qwen2_5_vl(0, patch_size=8, min_pixels=32 * 32)


def test_ratings_never_enter(records):
    """Other ratings, also extreme ones, leave every weight bit for bit the same."""
    first, processor = tiny()
    other = copy.deepcopy(first)
    start = copy.deepcopy(first.state_dict())
    warm_start(first, processor, records, options=SHORT, seed=1)
    rng = np.random.default_rng(0)
    changed = [replace(record, mos=float(rng.normal(0, 1e6)), std=3.0, dataset="other") for record in records]
    warm_start(other, processor, changed, options=SHORT, seed=1)
    for (name, one), two in zip(first.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    assert not torch.equal(first.lm_head.weight, start["lm_head.weight"])
    assert not torch.equal(first.model.visual.patch_embed.proj.weight, start["model.visual.patch_embed.proj.weight"])


def test_what_is_kept_of_a_record_is_picture_and_words(records):
    assert [field.name for field in fields(Described)] == ["image", "words"]
    for record, described in zip(records, describe_records(records), strict=True):
        assert described == Described(record.image, describe(record.extra["kind"], int(record.extra["level"])))


def test_taught_scores_are_uniform_and_independent_of_the_description():
    rng = np.random.default_rng(0)
    rank = {describe(kind, level): level for kind in KINDS for level in LEVELS}
    words = [describe(kind, level) for kind in KINDS for level in LEVELS] * 300
    scores = np.array([parse_score(answer_text(text, rng)) for text in words])
    assert set(np.round(scores * 10).astype(int)) == set(range(10, 51))
    assert abs(spearmanr(scores, [rank[text] for text in words])[0]) < 0.03
    assert abs(scores.mean() - 3.0) < 0.05
    # The stream of scores does not even depend on which words it is called with.
    one, two = np.random.default_rng(1), np.random.default_rng(1)
    assert [parse_score(answer_text("no flaw", one)) for _ in range(20)] == [
        parse_score(answer_text("extreme blur", two)) for _ in range(20)
    ]


def test_same_seed_same_weights_other_seed_other_weights(records):
    weights = []
    for seed in (3, 3, 4):
        model, processor = tiny()
        warm_start(model, processor, records, options=SHORT, seed=seed)
        weights.append(model.lm_head.weight.detach().clone())
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_learns_to_see_and_to_answer_in_the_format(records):
    model, processor = tiny()
    options = WarmStartOptions(pretext_steps=120, pretext_batch=16, format_steps=120, format_batch=16)
    easy = [r for r in records if r.extra["kind"] == "darkness" and r.extra["level"] in ("0", "4")]
    result = warm_start(model, processor, easy, question="Q", options=options, seed=0)
    assert set(result) == {"pictures", "pretext_loss", "pretext_accuracy", "format_loss", "seconds"}
    assert result["pretext_accuracy"] > 0.9 and result["pictures"] == len(easy)
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]}
    prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
    images = [Image.open(record.image) for record in easy]
    batch = processor(text=[prompt] * len(images), images=images, padding=True, return_tensors="pt")
    out = model.generate(**batch, max_new_tokens=14, do_sample=False)
    texts = processor.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert np.mean([parse_score(text) is not None for text in texts]) > 0.7
    told = [describe(r.extra["kind"], int(r.extra["level"])) in text for r, text in zip(easy, texts, strict=True)]
    assert np.mean(told) > 0.7


def test_frozen_vision_stays_in_stage_two_and_is_trainable_again(records):
    model, processor = tiny()
    before = copy.deepcopy(model.model.visual.state_dict())
    options = replace(SHORT, pretext_steps=0, train_vision=False)
    result = warm_start(model, processor, records, options=options)
    assert "pretext_loss" not in result
    assert all(torch.equal(before[name], value) for name, value in model.model.visual.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_records_that_cannot_be_described_are_counted(records):
    bad = [replace(records[0], extra={}), replace(records[1], extra={"kind": "smoke", "level": "1"}), records[2]]
    with pytest.raises(DataError, match="2 of 3 rows"):
        describe_records(bad)
    with pytest.raises(DataError, match="empty"):
        describe_records([])


def test_all_wrong_settings_are_named_together():
    with pytest.raises(UsageError) as caught:
        WarmStartOptions(pretext_steps=-1, format_batch=0, format_lr=0.0, score_weight=0.0)
    assert len(caught.value.problems) == 4
