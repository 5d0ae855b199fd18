import re
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from thurl.errors import UsageError
from thurl.rl import RankGRPOConfig, RankGRPOTrainer, build_rank_dataset
from thurl.rl.parsing import format_reward, parse_score
from thurl.rl.rollouts import (
    RolloutOptions,
    answer_regex,
    check_options,
    transformers_arguments,
    vision_token_ids,
    vllm_arguments,
)


def _args(**fields):
    defaults = {
        "use_vllm": True,
        "mask_truncated_completions": False,
        "vllm_structured_outputs_regex": None,
        "max_completion_length": 64,
    }
    return SimpleNamespace(**defaults | fields)


@pytest.mark.parametrize(
    "fields",
    [{"engine_dtype": "int8"}, {"adapter_sync": "both"}, {"answer_format": "json"}, {"stop": "x"}, {"stop": [""]}],
)
def test_wrong_options_are_refused(fields):
    (name,) = fields
    with pytest.raises(UsageError, match=name):
        RolloutOptions(**fields)


@pytest.mark.parametrize(
    ("options", "fields", "message"),
    [
        ({"stop": ["x"]}, {"use_vllm": False}, "ends completions at tokens only"),
        ({"stop": ["x"]}, {"mask_truncated_completions": True}, "discards it"),
        ({"answer_format": "strict"}, {"use_vllm": False}, "use_vllm: true"),
        (
            {"answer_format": "strict"},
            {"vllm_structured_outputs_regex": "a"},
            "remove `vllm_structured_outputs_regex`",
        ),
        ({"answer_format": "strict"}, {"max_completion_length": 38}, "of 39 or more"),
    ],
)
def test_options_the_configuration_cannot_carry_out(options, fields, message):
    with pytest.raises(UsageError, match=message):
        check_options(RolloutOptions(**options), _args(**fields))
    check_options(RolloutOptions(**options), _args())


@pytest.mark.parametrize("number", ["1", "5", "3.2", "4.99", "5.0", "5.00"])
@pytest.mark.parametrize("space", ["", " "])
def test_what_matches_the_answer_format_parses(number, space):
    regex = re.compile(answer_regex(64))
    longest = "x" * (64 - 38)
    for thinking in ("x", "sharp, little noise", longest):
        text = f"<think>{thinking}</think>{space}<answer>{number}</answer>"
        assert regex.fullmatch(text) and parse_score(text) == float(number)
        assert format_reward([text], "strict") == format_reward([text], "official") == [1.0]
        assert len(text) < 64  # one character a token and the end of the completion fit
    assert not regex.fullmatch(f"<think>{longest}x</think><answer>{number}</answer>")


@pytest.mark.parametrize(
    "text",
    [
        "<think></think><answer>3</answer>",
        "<think> </think><answer>3</answer>",
        "<think>a<answer>2</answer></think><answer>3</answer>",
        "<think>a</think><answer>5.01</answer>",
        "<think>a</think><answer>0.5</answer>",
        "<think>a</think><answer>3.</answer>",
        "<think>a</think><answer>10</answer>",
        "<think>é</think><answer>3</answer>",
    ],
)
def test_the_answer_format_is_narrow(text):
    assert not re.fullmatch(answer_regex(64), text)


def test_the_users_own_arguments_are_kept():
    assert transformers_arguments([3, 4], {"suppress_tokens": [9, 3], "seed": 1}) == {
        "suppress_tokens": [3, 4, 9],
        "seed": 1,
    }
    assert transformers_arguments([], {"seed": 1}) == {"seed": 1}
    options = RolloutOptions(stop=("</answer>",))
    arguments = vllm_arguments(options, [3, 4], {"logit_bias": {"7": 2, 3: 5.0}, "seed": 1})
    assert arguments == {
        "stop": ["</answer>"],
        "include_stop_str_in_output": True,
        "seed": 1,
        "logit_bias": {7: 2.0, 3: -100.0, 4: -100.0},
    }
    assert vllm_arguments(RolloutOptions(), [], {}) == {}


def test_transformers_never_draws_vision_tokens(tiny_folder, rated_images, tmp_path):
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(tiny_folder),
        AutoProcessor.from_pretrained(tiny_folder),
    )
    forbidden = vision_token_ids(processor.tokenizer)
    assert processor.tokenizer.convert_ids_to_tokens(forbidden)[2] == "<|image_pad|>" and len(forbidden) == 4
    with torch.no_grad():  # nearly all probability on the forbidden tokens
        model.model.language_model.embed_tokens.weight[:, 0] += 3
        model.lm_head.weight[forbidden, 0] += 20

    def drawn(trainer):
        seen = []
        for row in (0, 5):
            ids = trainer._generate_and_score_completions([trainer.train_dataset[row]] * 4)["completion_ids"]
            seen += ids.flatten().tolist()
        return set(seen) & set(forbidden)

    args = RankGRPOConfig(
        str(tmp_path),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=16,
        num_generations=4,
        max_completion_length=8,
        report_to=[],
        gradient_checkpointing=False,
        beta=0.0,
    )
    trainer = RankGRPOTrainer(
        model,
        reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
        args=args,
        train_dataset=build_rank_dataset(rated_images),
        processing_class=processor,
        block_size=4,
    )
    assert not drawn(trainer)
    # TRL alone forbids the picture's placeholder only.
    trainer.generation_kwargs["suppress_tokens"] = [model.config.image_token_id]
    trainer.generation_config.suppress_tokens = [model.config.image_token_id]
    assert drawn(trainer)
