"""Greedy answers: independent of batching and order, the model given back as it was, failures counted."""

import logging

import pytest
import torch

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.text.commands import BASE_COMMANDS, command_questions
from thurl.text.evaluation import Reply, answer_questions, answer_scores
from thurl.text.loading import load_language_model
from thurl.text.prompts import PromptStyle
from thurl.text.questions import Question
from thurl.text.rewards import ExactAnswerReward
from thurl.text.tiny import build_character_tokenizer, build_tiny_language_model


@pytest.fixture(scope="module")
def tiny():
    return build_tiny_language_model(0, hidden=32, layers=2, heads=2)


QUESTIONS = command_questions(BASE_COMMANDS, 30, split="test", lengths=(2, 4, 7))


def reference(model, tokenizer, question, steps=6):
    """Greedy decoding by hand: one question, no padding, no cache."""
    ids = tokenizer(question.prompt)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        for _ in range(steps):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_batches_and_padding_change_nothing(tiny):
    model, tokenizer = tiny
    model.train()
    replies = answer_questions(model, tokenizer, QUESTIONS, PromptStyle(), batch_size=7, max_new_tokens=6)
    assert model.training, "the mode is given back"
    assert [reply.question for reply in replies] == QUESTIONS
    model.eval()
    assert [reply.text for reply in replies] == [reference(model, tokenizer, question) for question in QUESTIONS]
    assert len({reply.text for reply in replies}) > 3


def test_a_template_is_put_around_the_question(tiny):
    model, tokenizer = tiny
    plain = [Question(f"Q {question.prompt} A", question.task, answer=question.answer) for question in QUESTIONS]
    inside = answer_questions(model, tokenizer, QUESTIONS, PromptStyle("Q {question} A"), max_new_tokens=4)
    outside = answer_questions(model, tokenizer, plain, PromptStyle(), max_new_tokens=4)
    assert [reply.text for reply in inside] == [reply.text for reply in outside]


def test_conversations_go_through_the_chat_template(tiny):
    model, tokenizer = tiny
    talking = build_character_tokenizer()
    talking.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    asked = [Question(({"role": "user", "content": "C 12="},), "t", answer="12"), Question("C 12=", "t", answer="12")]
    chat = answer_questions(model, talking, asked, PromptStyle(chat=True), max_new_tokens=4)
    text = [Question("u:C 12=\na:", "t", answer="12")]
    plain = answer_questions(model, tokenizer, text, PromptStyle(), max_new_tokens=4)
    assert [reply.text for reply in chat] == [plain[0].text] * 2


def test_scores_weigh_tasks_equally_and_count_what_cannot_be_read():
    def reply(task, answer, right):
        return Reply(Question("q", task, answer=right, kind="number"), "", answer)

    scores = answer_scores([reply("a", "1", "1"), reply("a", None, "1"), reply("a", "2", "1"), reply("b", "3", "3")])
    assert scores["tasks"]["a"] == pytest.approx({"accuracy": 1 / 3, "unparsed": 1 / 3, "n": 3})
    assert scores["mean"] == pytest.approx({"accuracy": 2 / 3, "unparsed": 1 / 6, "n": 4})
    assert not Reply(Question("q", "a", answer=None), "", None).right, "nothing read is never right"


def test_a_question_without_an_answer_cannot_be_evaluated(tiny):
    with pytest.raises(UsageError, match="1 of 1 questions to evaluate on have no `answer`"):
        answer_questions(*tiny, [Question("C 1=", "t", "1")], PromptStyle())


def test_the_reward_is_one_for_the_right_answer_only():
    logged = {}
    arguments = {"answer": ["18", "18", "18", "true"], "kind": ["number"] * 3 + ["boolean"]}
    texts = ["#### 18.0", "18", "#### 19", [{"role": "assistant", "content": "it is True"}]]
    reward = ExactAnswerReward()
    assert reward(texts, **arguments, log_metric=logged.__setitem__) == [1.0, 0.0, 0.0, 1.0]
    assert logged == {"answers/accuracy": 0.5, "answers/unparsed": 0.25}
    assert ExactAnswerReward("lenient")(texts, **arguments, extra=[1] * 4) == [1.0, 1.0, 0.0, 1.0]


def test_the_tokenizer_is_one_character_per_token_and_loses_nothing():
    tokenizer = build_character_tokenizer()
    text = "K 3142= ~{}\n#"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text) and tokenizer.decode(ids) == text
    assert tokenizer("\N{SNOWMAN}")["input_ids"] == [tokenizer.unk_token_id]
    assert tokenizer("1<eos>")["input_ids"][-1] == tokenizer.eos_token_id


def test_models_are_the_same_for_a_seed_and_leave_the_random_state_alone():
    before = torch.random.get_rng_state()
    models = [build_tiny_language_model(seed, hidden=32, layers=1, heads=2)[0] for seed in (0, 0, 1)]
    assert torch.equal(before, torch.random.get_rng_state())
    first, same, other = (model.lm_head.weight for model in models)
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert type(build_tiny_language_model(0, architecture="qwen2", hidden=32, layers=1, heads=2)[0]).__name__ == (
        "Qwen2ForCausalLM"
    )
    with pytest.raises(UsageError, match="take a multiple"):
        build_tiny_language_model(0, hidden=30, heads=4)


def test_loading_refuses_what_would_be_random_or_endless(tiny, tmp_path):
    model, tokenizer = tiny
    with pytest.raises(MissingRequirementError, match="cannot be loaded"):
        load_language_model(str(tmp_path / "nothing"))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    model.save_pretrained(whole)
    tokenizer.save_pretrained(whole)
    loaded, padded = load_language_model(str(whole))
    assert padded.padding_side == "left" and torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    state = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(cut, state_dict=state)
    tokenizer.save_pretrained(cut)
    with pytest.raises(DataError, match="1 parameters have no value.*lm_head"):
        load_language_model(str(cut))
    bare = build_character_tokenizer()
    bare.pad_token = None
    bare.save_pretrained(whole)
    assert load_language_model(str(whole))[1].pad_token == "<eos>"
    bare.eos_token = None
    bare.save_pretrained(whole)
    with pytest.raises(DataError, match="no end token"):
        load_language_model(str(whole))
    logging.getLogger("transformers").setLevel(logging.WARNING)
