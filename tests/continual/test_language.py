"""Continual LoRA of a language model: likelihoods of labels, what moves, CoTo's masks, purity, processes, search."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from thurl.continual.closed_form import SimpleCIL
from thurl.continual.evaluator import Evaluator
from thurl.continual.gradient import Finetune, LMLoRA, LMReplay
from thurl.continual.label_scores import (
    IGNORED,
    PAD,
    LanguageModelEncoder,
    label_log_likelihoods,
    label_rows,
    left_padded,
)
from thurl.continual.learner import LearnerError, learn_task, start, state_hash, task_accuracies
from thurl.continual.learners import learners_of, make_learner
from thurl.continual.mdp import SearchSettings
from thurl.continual.replay import replay
from thurl.continual.report import write_report
from thurl.continual.search import search_sequence
from thurl.continual.sequence_file import benchmark_tasks, read_sequence, sequence_document, write_sequence
from thurl.continual.text_data import text_data
from thurl.continual.text_pool import TextSample, make_text_pool
from thurl.coto.masks import draw_mask
from thurl.coto.schedule import activation_probability
from thurl.errors import UsageError
from thurl.text.prompts import PromptStyle
from thurl.text.tiny import build_tiny_language_model


EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "continual_lora_text.py"
OPTIONS = {"target_modules": "all-linear", "rank": 4, "learning_rate": 1e-2, "epochs": 5}
CLASSES = {"ab": "abba baab aabb", "cd": "cddc dccd ccdd", "abcd": "abcd dcba bacd", "ef": "effe feef eeff"}


def gpt2(vocabulary):
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, n_positions=64)).eval()


def tiny_model():
    model, tokenizer = build_tiny_language_model(0, hidden=32, layers=3, heads=4)
    return LanguageModelEncoder(model.eval()), tokenizer


@pytest.fixture(scope="module")
def tiny():
    return tiny_model()


@pytest.fixture(scope="module")
def data(tiny):
    """Letters tell four classes apart; labels of different lengths, one of which begins another."""
    rng = random.Random(0)
    samples = []
    for name, words in CLASSES.items():
        texts = {" ".join(rng.choice(words.split()) for _ in range(rng.randint(2, 5))) for _ in range(60)}
        samples += [TextSample("letters", name, text) for text in sorted(texts)[:30]]
    return text_data(make_text_pool(samples, sizes=(16, 6, 6)), *tiny, style=PromptStyle("{question}\n"))


@pytest.fixture(scope="module")
def learned(tiny, data):
    """State of plain LoRA before and after a task."""
    learner = LMLoRA(tiny[0], **OPTIONS)
    before = start(learner, data, 3)
    return learner, before, learn_task(learner, before, data.task((1, 0)), 3)


def slowly(model, prompt, label, normalise=False):
    """Log-likelihood of a label, token by token, without padding and without a cache."""
    ids, total = prompt.tolist(), 0.0
    for token in label:
        with torch.no_grad():
            total += torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1)[token].item()
        ids = [*ids, token]
    return total / len(label) if normalise else total


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("normalise", [False, True])
def test_likelihoods_are_those_of_a_loop_over_samples_classes_and_tokens(kind, normalise):
    if kind == "gpt2":
        model = gpt2(40)
    else:
        model = build_tiny_language_model(1, architecture=kind, hidden=16, layers=2, heads=2, kv_heads=1)[0].eval()
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(40, (length,), generator=generator) for length in (3, 9, 1, 6)]
    labels = [[5], [5, 7], [8, 1, 2, 30], [7, 5]]
    with torch.no_grad():
        found = label_log_likelihoods(model, left_padded(prompts), labels, normalise=normalise)
        single = label_log_likelihoods(model, left_padded(prompts), [[4], [9]])  # without a second pass
    wanted = [[slowly(model, prompt, label, normalise) for label in labels] for prompt in prompts]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=2e-5)
    np.testing.assert_allclose(single[2, 1], slowly(model, prompts[2], [9]), rtol=2e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_features_do_not_see_padding(pooling):
    encoder = LanguageModelEncoder(gpt2(40), pooling).eval()
    prompts = [torch.tensor([1, 2, 3]), torch.tensor([7]), torch.tensor([39, 4, 4, 4, 0])]
    with torch.no_grad():
        found = encoder(left_padded(prompts))
        states = [encoder.model.transformer(prompt[None]).last_hidden_state[0] for prompt in prompts]
    wanted = torch.stack([state[-1] if pooling == "last" else state.mean(dim=0) for state in states])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_rows_to_train_on_hold_prompt_and_label():
    rows = label_rows([torch.tensor([1, 2, 3]), torch.tensor([4])], [[5], [6, 7]])
    assert rows["input_ids"].tolist() == [[1, 2, 3, 5], [PAD, 4, 6, 7]]
    assert rows["labels"].tolist() == [[IGNORED, IGNORED, IGNORED, 5], [IGNORED, IGNORED, 6, 7]]


def test_the_loss_is_the_mean_over_the_labels_tokens(tiny):
    from thurl.continual.gradient.language import LabelLoss

    model = tiny[0].model
    prompts, labels = [torch.tensor([9, 8, 7]), torch.tensor([5])], [[5, 2], [6, 7, 3]]
    found = LabelLoss(model)(**label_rows(prompts, labels)).loss.item()
    wanted = sum(slowly(model, prompt, label) for prompt, label in zip(prompts, labels, strict=True)) / -5
    assert found == pytest.approx(wanted, rel=1e-5)


def test_only_the_adapters_move_and_only_they_are_the_state(learned, tiny, data):
    learner, before, after = learned
    own = {name for name in after if name.startswith("encoder.")}
    assert own | {"classes"} == set(after) and all("lora_" in name for name in own)
    assert len(own) == 2 * 7 * 3  # A and B of seven linear layers in three blocks
    assert all(not torch.equal(before[name], after[name]) for name in own)
    assert all(bool((before[name] == 0).all()) == ("lora_B" in name) for name in own)
    frozen = {name.replace(".base_layer", ""): value for name, value in learner.encoder.named_parameters()}
    for name, value in tiny[0].named_parameters():
        assert torch.equal(value, frozen[name]), name
    # With a zero B the model is the one that was given.
    rows = torch.arange(5)
    torch.testing.assert_close(learner.features(before, data, rows), data.features[rows], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(learner.features(after, data, rows), data.features[rows], atol=1e-2)
    assert state_hash(start(learner, data, 3)) == state_hash(before) != state_hash(start(learner, data, 4))


def test_logits_of_a_learner_are_those_of_a_loop(learned, data):
    learner, _, after = learned
    rows = data.rows(range(4), "val")[::3]
    found = learner.logits(after, data, rows)
    assert found.shape == (len(rows), 2)
    model = learner.encoder.model
    for row, line in zip(rows.tolist(), found, strict=True):
        for column, index in enumerate((1, 0)):
            assert line[column].item() == pytest.approx(
                slowly(model, data.inputs.prompts[row], data.inputs.labels[index]), rel=1e-4
            )
    few = LMLoRA(tiny_model()[0], **OPTIONS, scored=3)
    torch.testing.assert_close(few.logits(after, data, rows), found, rtol=1e-4, atol=1e-4)
    assert few.config() == learner.config()  # how many at a time changes nothing


def test_learning_is_pure_and_touches_no_global_state(learned, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    learner, state, once = learned
    held = state_hash(state)
    for kind in (learner, LMLoRA(tiny_model()[0], coto=True, **OPTIONS)):
        learn_task(kind, state, data.task((2, 3)), 5)
    again = learn_task(learner, state, data.task((1, 0)), 3)
    assert state_hash(again) == state_hash(once) and state_hash(state) == held
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])
    assert list(tmp_path.iterdir()) == []  # CoTo writes no file beside a job


def test_a_task_is_learned_and_earlier_ones_are_forgotten_less_with_replay(tiny, data):
    tasks = ((0, 1), (2, 3))
    options = {**OPTIONS, "epochs": 15}
    plain, kept = LMLoRA(tiny[0], **options), LMReplay(tiny[0], per_class=12, **options)
    rows = []
    for learner in (plain, kept):
        with Evaluator(data, [learner], seed=1) as evaluator:
            rows.append(evaluator.accuracies(tasks, 0))
            state = evaluator.state(tasks, 0)
    assert rows[0][0][0] > 0.9 and rows[0][1][1] > 0.9
    assert rows[1][1][0] > rows[0][1][0] + 0.3
    assert len(state["buffer"]) == 48 and data.labels[state["buffer"]].tolist() == [
        i for i in range(4) for _ in range(12)
    ]
    assert set(state["buffer"].tolist()) <= set(data.rows(range(4), "train").tolist())


# -- CoTo ----------------------------------------------------------------------------------------------------------


def test_coto_follows_its_masks_which_follow_the_seed_alone(tiny, data, monkeypatch):
    from thurl.coto.controller import CoToController

    seen = []
    begin = CoToController.begin_step
    monkeypatch.setattr(
        CoToController,
        "begin_step",
        lambda self, step: (begin(self, step), seen.append((self.config.seed, step, self.total_steps, self.active)))[
            0
        ],
    )
    learner = LMLoRA(tiny[0], coto=True, **OPTIONS)
    state = start(learner, data, 0)
    first = learn_task(learner, state, data.task((0, 1)), 7)
    masks, steps = list(seen), len(seen)
    assert steps == 5 * 2 and {mask[:1] + mask[2:3] for mask in masks} == {(7, steps)}
    for _, step, _, active in masks:
        p = activation_probability(step, steps)
        assert active == draw_mask(p, 3, seed=7, step=step)[0]
    assert any(not all(mask[3]) for mask in masks) and all(masks[-1][3])
    # Every task is a run of its own, with the masks of its seed, whatever the classes and whatever was learned.
    torch.manual_seed(99)
    seen.clear()
    learn_task(learner, first, data.task((3, 2)), 7)
    assert seen == masks
    seen.clear()
    learn_task(learner, first, data.task((2, 3)), 8)
    assert [mask[3] for mask in seen] != [mask[3] for mask in masks]


def test_coto_on_and_off_differ_and_all_adapters_serve_afterwards(learned, tiny, data):
    plain, before, after = learned
    coto = LMLoRA(tiny[0], coto=True, **OPTIONS)
    assert (plain.name, coto.name) == ("lm_lora", "lm_lora_coto")
    other = learn_task(coto, before, data.task((1, 0)), 3)
    assert state_hash(other) != state_hash(after)
    assert state_hash(learn_task(coto, before, data.task((1, 0)), 3)) == state_hash(other)
    # The learner without CoTo reads the same state as the one that trained it: no gate, no mask.
    rows = data.rows(range(4), "val")
    assert torch.equal(plain.logits(other, data, rows), coto.logits(other, data, rows))
    assert not any("_coto" in name for module in coto.encoder.modules() for name in vars(module))


@pytest.mark.parametrize("options", [{"initial_p": 1.0}, {"stage1_ratio": 0.0}])
def test_coto_with_all_adapters_on_is_plain_lora_bit_for_bit(learned, tiny, data, options):
    _, before, after = learned
    learner = LMLoRA(tiny[0], coto=True, **options, **OPTIONS)
    assert state_hash(learn_task(learner, before, data.task((1, 0)), 3)) == state_hash(after)


def test_a_training_that_breaks_off_leaves_no_mask(tiny, data, monkeypatch):
    learner = LMLoRA(tiny[0], coto=True, **OPTIONS)
    state = start(learner, data, 0)
    from thurl.continual.gradient import language

    whole, calls = language.LabelLoss.forward, []

    def broken(self, **inputs):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return whole(self, **inputs)

    monkeypatch.setattr(language.LabelLoss, "forward", broken)
    with pytest.raises(LearnerError, match="lm_lora_coto raised RuntimeError learning task letters/ab"):
        learn_task(learner, state, data.task((0, 1)), 0)
    again = learn_task(learner, state, data.task((0, 1)), 0)
    monkeypatch.undo()
    fresh = LMLoRA(tiny_model()[0], coto=True, **OPTIONS)
    assert state_hash(again) == state_hash(learn_task(fresh, state, data.task((0, 1)), 0))


# -- with the rest -------------------------------------------------------------------------------------------------

SETTINGS = SearchSettings(tasks=2, classes_per_task=2, starts=4, clusters=2, simulations=2, depth=1, seed=2)


@pytest.fixture(scope="module")
def learners(tiny):
    options = {**OPTIONS, "epochs": 1}
    return [SimpleCIL(), LMLoRA(tiny[0], **options), LMLoRA(tiny[0], coto=True, **options)]


def test_two_processes_give_what_one_gives(learners, data):
    tasks, found = ((0, 3), (1, 2)), []
    for workers in (1, 2):
        with Evaluator(data, learners[1:], seed=1, workers=workers) as evaluator:
            rows = [evaluator.accuracies(tasks, index) for index in range(2)]
            found.append((rows, [state_hash(evaluator.state(tasks, index)) for index in range(2)]))
    assert found[0] == found[1] and found[0][1][0] != found[0][1][1]


def test_search_sequence_file_replay_and_report(tiny, learners, data, tmp_path):
    with Evaluator(data, learners, seed=1) as evaluator:
        document = sequence_document(evaluator, SETTINGS, search_sequence(evaluator, SETTINGS))
    write_sequence(tmp_path / "s.json", document)
    document = read_sequence(tmp_path / "s.json")
    again = learners_of(document["learners"], tiny[0])
    assert [learner.config() for learner in again] == document["learners"]
    assert [learner.name for learner in again] == ["simplecil", "lm_lora", "lm_lora_coto"]
    runs = replay(data, again, benchmark_tasks(document, data), seeds=(5,), search_seed=1)
    assert set(runs["learners"]) == {"simplecil", "lm_lora", "lm_lora_coto"}
    write_report(tmp_path / "s.html", document, runs)
    assert "lm_lora_coto" in (tmp_path / "s.html").read_text()
    assert json.loads((tmp_path / "s.json").read_text())["pool_hash"] == data.pool_hash


def test_learners_with_a_head_train_the_same_encoder(tiny, data):
    learner = Finetune(tiny[0], epochs=6, learning_rate=0.05)
    with Evaluator(data, [learner], seed=1) as evaluator:
        assert evaluator.accuracies(((0, 3),), 0)[0][0] > 0.9


def test_the_example_searches_replays_and_reports(tmp_path, capsys):
    specification = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    short = ["--pretraining", "5", "--epochs", "1", "--simulations", "1"]
    runs = example.main(["--output", str(tmp_path), *short])
    assert set(runs) == {"found", "random"}
    for run in runs.values():
        assert run["seeds"] == [1001, 1002] and set(run["learners"]) == {"simplecil", "lm_lora", "lm_lora_coto"}
    assert "lm_lora_coto" in (tmp_path / "hard.html").read_text()
    assert len(read_sequence(tmp_path / "hard.json")["tasks"]) == 3
    assert capsys.readouterr().out.count("lm_lora_coto") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "lm_lora: rank is 0"),
        ({"target_modules": "none_such"}, "lm_lora: Target modules .*none_such.* name modules in target_modules"),
        ({"target_modules": "embed_tokens"}, "is no linear layer"),
        ({"coto": True, "initial_p": 2.0}, "`initial_p` is 2.0"),
        ({"scored": 0}, "scored is 0"),
        ({"epochs": 0}, "epochs is 0"),
    ],
)
def test_wrong_options_are_named(tiny, options, message):
    with pytest.raises(UsageError, match=message):
        LMLoRA(tiny[0], **options)


def test_pictures_and_encoders_of_pictures_are_refused(tiny, data):
    with pytest.raises(UsageError, match="lm_lora: Linear is no language model"):
        make_learner({"name": "lm_lora"}, torch.nn.Linear(2, 2))
    with pytest.raises(UsageError, match="unknown option 'tune'"):
        make_learner({"name": "lm_lora", "tune": "full"}, tiny[0])
    from .conftest import blobs

    with pytest.raises(UsageError, match="reads texts"):
        task_accuracies(
            LMLoRA(tiny[0]), start(LMLoRA(tiny[0]), data, 0) | {"classes": torch.tensor([0])}, blobs(), ((0,),), "val"
        )
