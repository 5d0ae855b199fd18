from __future__ import annotations

import json
import math
import random
import statistics

import numpy as np
import pytest
import torch
from PIL import Image

from thurl.data.images import ImageError
from thurl.data.records import RatedImage
from thurl.errors import UsageError
from thurl.ranking import preference_probability
from thurl.rl.decoding import Decoding
from thurl.rl.expected import AnswerDigitError, expected_score, find_answer_tokens
from thurl.rl.prompts import PRESETS
from thurl.rl.scorer import QualityScorer
from thurl.rl.seeded import SeededSampling, image_digest, sample_key, seeded_gumbel

from .conftest import pictures


def add_grammar(model, tokenizer, *, failures: bool = False):
    """Makes an untrained model answer: `<answer>`, a digit, `</answer>`, end; its own logits choose the digit.

    With `failures` its logits also choose between opening an answer and ending at once.
    """
    token = tokenizer.convert_tokens_to_ids
    opening, closing, end = token("<answer>"), token("</answer>"), token("<|im_end|>")
    digits = [token(digit) for digit in "12345"]
    newline = tokenizer.encode("\n", add_special_tokens=False)[0]
    allowed = {newline: [opening, end] if failures else [opening], opening: digits, closing: [end]}
    allowed |= {digit: [closing] for digit in digits}

    def hook(module, args, kwargs, output):
        for row, last in enumerate(kwargs["input_ids"][:, -1].tolist()):
            if last in allowed:
                keep = output.logits[row, -1, allowed[last]].clone()
                output.logits[row, -1] = -1e4
                output.logits[row, -1, allowed[last]] = keep
        return output

    return model.register_forward_hook(hook, with_kwargs=True)


@pytest.fixture
def scorer(tiny):
    model, processor = tiny
    hook = add_grammar(model, processor.tokenizer)
    yield QualityScorer(model, processor)
    hook.remove()


@pytest.fixture
def failing(tiny):
    model, processor = tiny
    hook = add_grammar(model, processor.tokenizer, failures=True)
    yield QualityScorer(model, processor)
    hook.remove()


def same(a: float, b: float, tolerance: float = 0.0) -> bool:
    return (math.isnan(a) and math.isnan(b)) or abs(a - b) <= tolerance


# Draws


def test_gumbel_noise_has_the_right_distribution_and_independent_rows():
    keys = torch.tensor([sample_key(0, b"a", k) for k in range(2000)])
    noise = seeded_gumbel(keys, 3, 50)
    assert noise.shape == (2000, 50) and noise.dtype == torch.float64
    assert abs(noise.mean() - 0.5772) < 0.02 and abs(noise.var() - math.pi**2 / 6) < 0.03
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2]))
    drawn = (noise[:, :3] + logits).argmax(1)
    shares = torch.bincount(drawn, minlength=3) / 2000
    assert torch.allclose(shares, logits.exp().double().float(), atol=0.04)
    centred = noise - noise.mean()
    assert abs((centred[:-1] * centred[1:]).mean()) < 0.02 and abs((centred[:, :-1] * centred[:, 1:]).mean()) < 0.02
    other = seeded_gumbel(keys, 4, 50) - noise.mean()
    assert abs((centred * other).mean()) < 0.02


def test_gumbel_noise_of_a_row_depends_on_its_key_only():
    keys = torch.tensor([5, -7, 2**62])
    assert torch.equal(seeded_gumbel(keys, 2, 9)[1:2, :4], seeded_gumbel(keys[1:2], 2, 4))


def test_sampling_respects_top_k_and_top_p():
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]]))
    ids = torch.zeros(1, 3, dtype=torch.long)

    def kept(**options):
        out = SeededSampling(torch.tensor([1]), 3, **options)(ids, logits)
        return torch.isfinite(out)[0].tolist()

    assert kept() == [True] * 4
    assert kept(top_k=2) == [True, True, False, False]
    assert kept(top_p=0.65) == [True, True, False, False]
    assert kept(top_p=0.01) == [True, False, False, False]


def test_low_temperature_approaches_the_most_likely_token():
    logits = torch.log(torch.tensor([[0.4, 0.35, 0.25]])).repeat(200, 1)
    ids = torch.zeros(200, 3, dtype=torch.long)
    keys = torch.tensor([sample_key(0, b"", k) for k in range(200)])
    cold = SeededSampling(keys, 3, temperature=0.01)(ids, logits).argmax(1)
    warm = SeededSampling(keys, 3, temperature=1.0)(ids, logits).argmax(1)
    assert (cold == 0).all() and len(set(warm.tolist())) == 3


# Scores


@pytest.mark.parametrize("mode", ["think", "direct", "expected"])
def test_same_image_in_any_batch_gives_the_same_score(scorer, mode):
    images = pictures()
    n = {} if mode == "expected" else {"n_samples": 3}
    together = scorer.score(images, mode=mode, batch_size=8, **n)
    alone = [scorer.score(image, mode=mode, batch_size=1, **n)[0] for image in images]
    shuffled = scorer.score(images[::-1] + images[:2], mode=mode, batch_size=4, **n)
    for a, b, c in zip(together, alone, shuffled[4::-1], strict=True):
        assert a.ok and b.ok and c.ok
        assert a.texts == b.texts == c.texts
        assert abs(a.score - b.score) < 1e-5 and abs(a.score - c.score) < 1e-5
    assert len({round(score.score, 3) for score in together}) > 1  # or the comparison would say nothing


def test_padding_changes_logits_by_rounding_only(scorer):
    small, large = pictures()[0], pictures()[3]
    padded = scorer._forced_logits([small, large], ["", ""], [0])[0][0]
    plain = scorer._forced_logits([small], [""], [0])[0][0]
    used = plain > -1e3
    assert (padded - plain)[used].abs().max() < 1e-4


def test_no_global_random_state_is_used_or_changed(scorer):
    torch.manual_seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = scorer.score(pictures(2), n_samples=2)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all() and random.getstate() == states[2]
    torch.manual_seed(2)
    assert scorer.score(pictures(2), n_samples=2) == first


def test_seeds_and_samples_differ(scorer):
    image = pictures(1)
    results = [scorer.score(image, n_samples=8, seed=seed)[0] for seed in range(3)]
    assert len({result.samples for result in results}) > 1
    assert any(len(set(result.samples)) > 1 for result in results)
    one = results[0]
    assert one.score == pytest.approx(statistics.fmean(one.samples))
    assert one.std == pytest.approx(statistics.stdev(one.samples))
    # More samples extend the list, they do not redraw it.
    assert scorer.score(image, n_samples=3)[0].samples == one.samples[:3]


def test_draws_follow_the_model(scorer):
    """Shares of sampled digits against the model's own probabilities, read by mode "expected"."""
    image = pictures(1)[0]
    digits = find_answer_tokens(scorer.tokenizer).first
    logits = scorer._forced_logits([image], ["<answer>"], [0])[0][0]
    expected = logits[list(digits)].softmax(-1)
    samples = scorer.score(image, mode="direct", n_samples=300, batch_size=100)[0].samples
    shares = torch.bincount(torch.tensor(samples).long(), minlength=6)[1:] / 300
    assert (shares - expected).abs().max() < 0.1


def test_greedy(scorer):
    images = pictures(3)
    greedy = scorer.score(images, temperature=0, seed=1)
    assert greedy == scorer.score(images, temperature=0, seed=2, batch_size=1)
    assert all(math.isnan(score.std) and score.ok for score in greedy)


def test_generation_config_of_the_checkpoint_is_not_used(scorer):
    images = pictures(2)
    before = scorer.score(images, n_samples=2)
    config = scorer.model.generation_config
    kept = config.to_dict()
    try:
        config.update(repetition_penalty=5.0, temperature=1e-6, top_k=1, do_sample=True, num_beams=3)
        assert scorer.score(images, n_samples=2) == before
    finally:
        scorer.model.generation_config = type(config).from_dict(kept)


def test_failures_are_marked_and_text_kept(tiny):
    result = QualityScorer(*tiny).score(pictures(1), max_new_tokens=5)[0]
    assert not result.ok and math.isnan(result.score) and math.isnan(result.std)
    assert result.text and result.n_ok == 0 and "within 5 tokens" in result.error


def test_a_failed_sample_is_left_out_of_the_mean(failing):
    results = failing.score(pictures(5), n_samples=6)
    mixed = [r for r in results if 0 < r.n_ok < 6]
    assert mixed, "the fixture must fail now and then"
    for r in mixed:
        good = [s for s in r.samples if not math.isnan(s)]
        assert r.ok and r.score == pytest.approx(statistics.fmean(good)) and len(r.samples) == 6
        assert "<answer>" in r.text


def test_resampling_draws_failed_answers_again_and_keeps_the_others(failing):
    images = pictures(5)
    once = failing.score(images, n_samples=6)
    again = failing.score(images, n_samples=6, resample=3)
    assert sum(r.n_ok for r in again) > sum(r.n_ok for r in once)
    for a, b in zip(once, again, strict=True):
        assert all(same(x, y) for x, y in zip(a.samples, b.samples, strict=True) if not math.isnan(x))


@pytest.mark.parametrize(
    ("rule", "text", "value"),
    [
        ("invalid", "<answer>7</answer>", math.nan),
        ("clip", "<answer>7</answer>", 5.0),
        ("keep", "<answer>7</answer>", 7.0),
        ("invalid", "<answer>5.00</answer>", 5.0),
        ("invalid", "3.5", math.nan),
    ],
)
def test_out_of_range_rule(rule, text, value):
    from thurl.rl.decoding import read_answer

    got, reason = read_answer(text, True, Decoding(out_of_range=rule))
    assert same(got, value) and bool(reason) == math.isnan(value)


def test_official_parsing_is_an_option():
    from thurl.rl.decoding import read_answer

    assert read_answer("about 3.5", True, Decoding(parse="official"))[0] == 3.5


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "guess"},
        {"n_samples": 0},
        {"temperature": -1},
        {"top_p": 0},
        {"n_samples": 4, "temperature": 0},
        {"mode": "expected", "n_samples": 4},
        {"mode": "describe"},
        {"colour": "red"},
        {"batch_size": 0},
        {"decimals": 2, "mode": "expected"},
    ],
)
def test_bad_settings(scorer, options):
    with pytest.raises(UsageError, match=next(iter(options))):
        scorer.score(pictures(1), **options)


def test_inputs_of_every_kind(scorer, tmp_path):
    image = pictures(1)[0]
    path = tmp_path / "a.png"
    image.save(path)
    record = RatedImage(image=str(path), mos=3.0)
    results = scorer.score([image, path, str(path), path.read_bytes(), record])
    assert len({(r.score, r.texts) for r in results}) == 1
    assert scorer.score([]) == []


def test_broken_pictures(scorer, tmp_path):
    good, broken = tmp_path / "good.png", tmp_path / "broken.png"
    pictures(1)[0].save(good)
    broken.write_bytes(good.read_bytes()[:60])
    with pytest.raises(ImageError, match=r"broken\.png"):
        scorer.score([good, broken])
    for options in ({"n_samples": 2}, {"mode": "expected"}):
        first, second, third = scorer.score([good, broken, good], errors="mark", **options)
        assert first.ok and first == third
        assert not second.ok and math.isnan(second.score) and "broken.png" in second.error


@pytest.mark.parametrize("size", [(1, 1), (1, 150), (3, 400), (500, 31)])
def test_odd_shapes(scorer, size):
    assert scorer.score(Image.new("RGB", size, (200, 10, 10)), mode="expected")[0].ok


def test_a_strip_is_refused_with_its_reason(scorer):
    result = scorer.score(Image.new("RGB", (1, 4000)), errors="mark")[0]
    assert not result.ok and "200" in result.error


# Expected score


def test_expected_score_of_known_distributions():
    assert expected_score([0, 0, 1, 0, 0]) == (3.0, 0.0)
    mean, std = expected_score([0.5, 0, 0, 0, 0.5])
    assert mean == pytest.approx(3.0) and std == pytest.approx(2.0)
    # "4" with probability .25, "4.2" with .75
    tenths = [[0.0] * 10 for _ in range(5)]
    tenths[3][2] = 1.0
    mean, std = expected_score([0, 0, 0, 1, 0], [0, 0, 0, 0.75, 0], tenths)
    assert mean == pytest.approx(4.15) and std == pytest.approx(0.2 * math.sqrt(0.75 * 0.25))
    # nothing above 5 exists
    tenths[4][9] = 1.0
    assert expected_score([0, 0, 0, 0, 1], [0, 0, 0, 0, 1], tenths)[0] == 5.0


def test_expected_mode_against_plain_forward_passes(tiny):
    """Every branch scored by an ordinary forward of its whole text, no generate, no cache."""
    model, processor = tiny
    scorer = QualityScorer(model, processor)
    image = pictures(1)[0]
    tokenizer = processor.tokenizer
    token = tokenizer.convert_tokens_to_ids
    prompt = processor.apply_chat_template(
        PRESETS["thurl"].messages("direct"), tokenize=False, add_generation_prompt=True
    )

    def probabilities(answer: str) -> torch.Tensor:
        inputs = processor(text=[prompt + answer], images=[image], return_tensors="pt")
        with torch.no_grad():
            return model(**inputs).logits[0, -1].double().softmax(-1)

    first = probabilities("<answer>")
    digits = torch.stack([first[token(d)] for d in "12345"])
    values, weights = [], []
    for d in range(5):
        p = float(digits[d] / digits.sum())
        point = float(probabilities(f"<answer>{d + 1}")[token(".")])
        after = probabilities(f"<answer>{d + 1}.")
        q = torch.stack([after[token(j)] for j in "0123456789"])
        q = q / q.sum()
        values += [d + 1.0] + [min(d + 1 + j / 10, 5.0) for j in range(10)]
        weights += [p * (1 - point)] + [p * point * float(q[j]) for j in range(10)]
    values, weights = np.array(values), np.array(weights)
    mean = float(values @ weights)
    result = scorer.score(image, mode="expected")[0]
    assert result.score == pytest.approx(mean, abs=1e-5)
    assert result.std == pytest.approx(math.sqrt(weights @ (values - mean) ** 2), abs=1e-5)
    assert result.mass == pytest.approx(float(digits.sum()), abs=1e-6)
    whole = scorer.score(image, mode="expected", decimals=0)[0]
    assert whole.score == pytest.approx(float((digits / digits.sum()) @ torch.arange(1.0, 6.0).double()), abs=1e-5)


def test_expected_mode_fails_where_no_digit_is_likely(tiny):
    result = QualityScorer(*tiny).score(pictures(1), mode="expected", min_mass=0.9)[0]
    assert not result.ok and math.isnan(result.score) and result.mass < 0.9 and "probability" in result.error


def test_tokenizer_without_digits_is_a_named_error():
    class Words:
        def encode(self, text, add_special_tokens=False):
            return [hash(word) for word in text.split(" ")]

    with pytest.raises(AnswerDigitError, match="use mode 'direct' or 'think'"):
        find_answer_tokens(Words())


# Comparison and description


def test_compare(scorer):
    a, b = pictures(2)
    result = scorer.compare(a, b)
    assert len(result.a.samples) == 8
    numbers = torch.tensor([result.a.score, result.b.score, result.a.std**2, result.b.std**2], dtype=torch.float64)
    assert result.preference == pytest.approx(float(preference_probability(*numbers)))
    assert scorer.compare(b, a).preference == pytest.approx(1 - result.preference)
    assert scorer.compare(a, a, mode="expected").preference == pytest.approx(0.5, abs=1e-4)
    with pytest.raises(UsageError, match="needs a variance"):
        scorer.compare(a, b, n_samples=1)


def test_describe(tiny):
    scorer = QualityScorer(*tiny)
    texts = scorer.describe(pictures(3), max_new_tokens=6)
    assert len(texts) == 3 and texts == scorer.describe(pictures(3), max_new_tokens=6, batch_size=1)


# Prompts reach the model


def test_vision_id_gives_the_string_of_the_chat_template(tiny):
    _, processor = tiny

    def written(preset, **options):
        return processor.apply_chat_template(
            preset.messages("think"), tokenize=False, add_generation_prompt=True, **options
        )

    assert written(PRESETS["official"]) == written(PRESETS["thurl"], add_vision_id=True)
    assert "Picture 1: <|vision_start|>" in written(PRESETS["official"])


def test_question_changes_the_score(tiny):
    model, processor = tiny
    one = QualityScorer(model, processor).score(pictures(1), mode="expected")[0]
    two = QualityScorer(model, processor, "official").score(pictures(1), mode="expected")[0]
    assert one.score != two.score
    with pytest.raises(UsageError, match="official"):
        QualityScorer(model, processor, "offical")


def test_wrong_padding_side_is_corrected(tiny):
    model, processor = tiny
    processor.tokenizer.padding_side = "right"
    scorer = QualityScorer(model, processor)
    assert processor.tokenizer.padding_side == "left"
    ids = scorer._encode(pictures(2), "think")["attention_mask"]
    assert ids[:, -1].all() and not ids[:, 0].all()


def test_training_mode_is_restored_module_by_module(tiny):
    model, processor = tiny
    try:
        model.train()
        model.model.visual.eval()
        QualityScorer(model, processor).score(pictures(1), max_new_tokens=2)
        assert model.training and not model.model.visual.training and model.model.language_model.training
    finally:
        model.eval()


def test_settings_are_json_and_tell_what_matters(scorer):
    settings = {**scorer.settings(), **Decoding(mode="think", top_k=50).settings()}
    settings = json.loads(json.dumps(settings))
    assert settings["prompt"]["vision_id"] is False and settings["top_k"] == 50 and settings["max_new_tokens"] == 512
    assert settings["dtype"] == "float32" and "min_mass" not in settings
    assert "temperature" not in Decoding(mode="expected").settings()


def test_image_digest_sees_pixels_and_shape():
    a = Image.new("RGB", (4, 2))
    assert image_digest(a) == image_digest(a.copy()) != image_digest(Image.new("RGB", (2, 4)))
