"""Pools of texts: sources, splits, copies, aliases, and what a language model can be asked."""

from __future__ import annotations

import json
import random

import pytest
import torch

from thurl.continual.label_scores import LanguageModelEncoder
from thurl.continual.text_data import text_data
from thurl.continual.text_pool import TextSample, file_samples, make_text_pool, question_samples
from thurl.errors import DataError, UsageError
from thurl.text.prompts import PromptStyle
from thurl.text.questions import read_questions
from thurl.text.tiny import build_tiny_language_model


def samples(names=("calm", "loud"), dataset="moods", count=10):
    return [TextSample(dataset, name, f"{name} text {index}") for name in names for index in range(count)]


@pytest.fixture(scope="module")
def model():
    return build_tiny_language_model(0, hidden=16, layers=1, heads=2)


def data_of(model, pool, **options):
    return text_data(pool, LanguageModelEncoder(model[0]), model[1], **options)


def test_splits_and_hash_depend_on_the_texts_alone():
    pool = make_text_pool(samples())
    assert pool.pool.classes == ("moods/calm", "moods/loud")
    assert pool.pool.counts()["moods/calm"] == {"train": 6, "val": 2, "test": 2}
    assert all(pool.texts[item.sha256].startswith(item.class_name) for item in pool.pool.images)
    mixed = samples()
    random.Random(0).shuffle(mixed)
    assert make_text_pool(mixed).hash == pool.hash
    # Another text moves hardly any other: each keeps its rank.
    grown = make_text_pool([*samples(), TextSample("moods", "calm", "one more")])
    before = {item.sha256: item.split for item in pool.pool.images}
    moved = [item for item in grown.pool.images if before.get(item.sha256, item.split) != item.split]
    assert grown.hash != pool.hash and len(moved) <= 2
    assert make_text_pool(samples(), seed=1).hash != pool.hash
    assert make_text_pool(samples(), sizes=(4, 1, 1), caps=(3, None, None)).pool.counts()["moods/loud"]["train"] == 3


def test_copies_are_left_out_and_texts_of_two_classes_named(caplog):
    twice = [*samples(), TextSample("moods", "calm", "Calm, text 3!"), TextSample("moods", "calm", "calm text 4")]
    assert len(make_text_pool(twice).texts) == 21  # both texts are known, one of each pair is in the pool
    assert make_text_pool(twice).pool.counts()["moods/calm"] == {"train": 6, "val": 2, "test": 2}
    assert "2 copies" in caplog.text
    shared = [*samples(), TextSample("moods", "loud", "calm text 1")]
    with pytest.raises(DataError, match="'calm text 1': this text is in moods/calm and moods/loud; remove it"):
        make_text_pool(shared)
    dropped = make_text_pool(shared, on_duplicate="drop")
    assert "calm text 1" not in [dropped.texts[item.sha256] for item in dropped.pool.images]
    with pytest.raises(DataError, match="moods/calm: 2 of 2 texts can be used.*Add texts"):
        make_text_pool(samples(count=2))
    with pytest.raises(DataError, match="text 2 of moods/calm: text, data set and class need words"):
        make_text_pool([*samples(count=1), TextSample("moods", "calm", " ")])


def test_classes_called_alike_never_meet(model):
    both = make_text_pool([*samples(), *(TextSample("more", "Calm", f"other {i}") for i in range(5))])
    assert both.pool.aliases == {"calm": ("moods/calm", "more/Calm")}
    assert data_of(model, both).groups == (0, 1, 0)
    # Two things of one name would have one label, which a model cannot tell apart.
    apart = make_text_pool(
        [*samples(), *(TextSample("more", "calm", f"other {i}") for i in range(5))], share_names=False
    )
    with pytest.raises(DataError, match="moods/calm and more/calm: their labels are the same tokens"):
        data_of(model, apart)
    assert data_of(model, apart, words={"more/calm": "still"}).groups == (0, 1, 2)


def test_files_of_questions_and_of_labelled_texts(tmp_path):
    rows = [{"prompt": f"is {i} even?", "answer": "no" if i % 2 else "yes", "task": "parity"} for i in range(12)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = question_samples(read_questions("prompt_completion", tmp_path / "q.jsonl"))
    assert found[1] == TextSample("parity", "no", "is 1 even?")
    (tmp_path / "subj.all").write_text("0 the plot is thin\n1 i was bored\n")
    assert file_samples(tmp_path / "subj.all", ["fact", "view"])[1] == TextSample("subj", "view", "i was bored")
    with pytest.raises(UsageError, match="labels reach to 1, 1 names are given"):
        file_samples(tmp_path / "subj.all", ["fact"])
    chat = [{"messages": [{"role": "user", "content": "hi"}], "answer": "yes", "task": "t"}]
    (tmp_path / "c.jsonl").write_text(json.dumps(chat[0]))
    with pytest.raises(UsageError, match="conversation"):
        question_samples(read_questions("chat", tmp_path / "c.jsonl"))


def test_prompts_and_labels_in_tokens(model):
    pool, (_, tokenizer) = make_text_pool(samples()), model
    data = data_of(model, pool, style=PromptStyle("{question}\n"))
    row = torch.tensor([3])
    ids = data.inputs[row][0]
    assert tokenizer.decode(ids) == pool.texts[pool.pool.images[3].sha256] + "\n"
    assert tokenizer.decode(data.inputs.labels[1]) == "loud<eos>" and data.labels[row].item() == 0
    assert data.features.shape == (20, 16) and bool(data.features.isfinite().all())
    short = data_of(model, pool, style=PromptStyle("{question}\n"), end=False)
    assert tokenizer.decode(short.inputs.labels[1]) == "loud" and short.inputs.identity != data.inputs.identity
    # What is asked is part of the benchmark; the model is not.
    assert data_of(model, pool).pool_hash != data.pool_hash
    assert data_of(model, pool, style=PromptStyle("{question}\n"), words={"moods/calm": "c"}).pool_hash != (
        data.pool_hash
    )
    other = build_tiny_language_model(1, hidden=16, layers=1, heads=2)
    again = data_of(other, pool, style=PromptStyle("{question}\n"))
    assert again.pool_hash == data.pool_hash and again.encoder != data.encoder


def test_features_are_kept_by_tokens(model, tmp_path):
    pool, told = make_text_pool(samples()), []
    first = data_of(model, pool, cache=tmp_path, advance=told.append)
    again = data_of(model, pool, cache=tmp_path, advance=told.append)
    assert torch.equal(first.features, again.features) and told == [20]
    other = text_data(pool, LanguageModelEncoder(model[0], "mean"), model[1])
    assert not torch.allclose(other.features, first.features)


def test_labels_that_cannot_be_asked_for_are_refused(model):
    pool, tokenizer = make_text_pool(samples()), build_words_tokenizer()
    with pytest.raises(DataError, match=r"moods/loud: its label '\.\.\.' has no token"):
        text_data(pool, LanguageModelEncoder(model[0]), tokenizer, words={"moods/loud": "..."})
    with pytest.raises(DataError, match="moods/calm and moods/loud: their labels are the same tokens"):
        text_data(pool, LanguageModelEncoder(model[0]), tokenizer, words={"moods/loud": "calm..."})
    with pytest.raises(DataError, match=r"moods/calm 'calm text .': the prompt has no token"):
        text_data(pool, LanguageModelEncoder(model[0]), tokenizer, style=PromptStyle(".{question}."))
    with pytest.raises(UsageError, match="'moods/soft' is not in the pool"):
        data_of(model, pool, words={"moods/soft": "s"})
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="no end token"):
        text_data(pool, LanguageModelEncoder(model[0]), tokenizer)


def test_long_prompts_are_named_and_never_cut(model):
    pool = make_text_pool([*samples(), TextSample("moods", "calm", "calm " + "m" * 600)])
    with pytest.raises(
        DataError, match=r"moods/calm 'calm mmm.*\.\.\.': prompt of 605 tokens and label of up to 5, more than 512"
    ):
        data_of(model, pool)
    exact = len("calm text 0") + len("calm") + 1
    short = make_text_pool(samples())
    assert data_of(model, short, max_length=exact).inputs.prompts[0].shape == (11,)
    with pytest.raises(DataError, match="more than 15; none is cut"):
        data_of(model, short, max_length=exact - 1)


def test_what_is_no_language_model_is_refused():
    with pytest.raises(UsageError, match="Linear is no causal language model"):
        LanguageModelEncoder(torch.nn.Linear(2, 2))
    with pytest.raises(UsageError, match="pooling is 'first'"):
        LanguageModelEncoder(torch.nn.Linear(2, 2), "first")


def build_words_tokenizer():
    """Knows a few words and drops dots."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<eos>", "calm", "loud", "text", *map(str, range(10))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<eos>"))
    tokenizer.normalizer = normalizers.Replace(Regex(r"\..*"), "")
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
