"""Attention over packed rows against the mask of all pairs of tokens that it replaces."""

import inspect

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLAttention, Qwen2_5_VLTextModel

from thurl.rl.shared_prefix.attention import ATTENTION, packed_attention, packed_sdpa, use_packed_sdpa
from thurl.rl.shared_prefix.layout import pack_rows


HEADS, KEY_HEADS, WIDTH = 4, 2, 8


class Layer(torch.nn.Module):
    num_key_value_groups = HEADS // KEY_HEADS
    is_causal = True


def _visible(segment):
    """(G, 1, L, L) bool: an earlier token of the shared prompt or of its own segment, and always itself."""
    query, key = segment[:, :, None], segment[:, None, :]
    causal = torch.ones(segment.shape[1], segment.shape[1], dtype=torch.bool).tril()
    return ((((key == 0) | (key == query)) & causal) | torch.eye(segment.shape[1], dtype=torch.bool))[:, None]


def _case(prompts, completions, groups, dtype=torch.float64):
    layout = pack_rows(prompts, completions, groups, max(prompts))
    torch.manual_seed(0)
    shape = (len(groups), layout.segment.shape[1])
    states = [torch.randn(*shape, h, WIDTH, dtype=dtype).transpose(1, 2) for h in (HEADS, KEY_HEADS, KEY_HEADS)]
    return layout, [state.requires_grad_() for state in states]


def _results(states, mask, layout):
    """Output and gradients of a loss that weighs every number differently, without padding."""
    output, weights = packed_sdpa(Layer(), *states, mask, scaling=0.3, dropout=0.0, position_ids=None)
    assert weights is None
    output = output * (layout.segment >= 0)[:, :, None, None]
    loss = (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum()
    return [output, *torch.autograd.grad(loss, states)]


CASES = {
    "equal": ([5] * 4, [3] * 4, [[0, 1], [2, 3]]),
    "ragged": ([5] * 5, [3, 0, 4, 1, 0], [[0, 1, 2], [3, 4]]),
    "prompts": ([2, 6, 6, 4, 2], [3, 1, 0, 2, 5], [[0, 4], [1, 2], [3]]),
    "one_token": ([1, 1, 3], [2, 0, 1], [[0, 1], [2]]),
    "only_one_token": ([1, 1], [0, 0], [[0], [1]]),
    "rows_in_turn": ([3, 4, 3, 4], [1, 2, 3, 0], [[0, 2], [1, 3]]),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_mask_of_all_pairs(case):
    layout, states = _case(*CASES[case])
    expected = _results(states, _visible(layout.segment), layout)
    found = _results(states, packed_attention(layout, CASES[case][1]), layout)
    assert expected[0].abs().max() > 0.1
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_other_masks_are_transformers_own():
    layout, states = _case(*CASES["equal"])
    for mask in (None, _visible(layout.segment)):
        ours, _ = packed_sdpa(Layer(), *states, mask, scaling=0.3)
        assert torch.equal(ours, sdpa_attention_forward(Layer(), *states, mask, scaling=0.3)[0])


class _Largest(TorchDispatchMode):
    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for value in output if isinstance(output, tuple | list) else [output]:
            if isinstance(value, torch.Tensor):
                self.numbers = max(self.numbers, value.untyped_storage().nbytes() // value.element_size())
        return output


def test_memory_does_not_grow_with_the_square_of_the_row():
    largest = {}
    for count in (16, 32):
        layout, states = _case([40] * count, [20] * count, [list(range(count))], torch.float32)
        length = layout.segment.shape[1]
        for name, mask in (("ours", packed_attention(layout, [20] * count)), ("pairs", _visible(layout.segment))):
            with _Largest() as seen:
                _results(states, mask, layout)
            largest[name, count] = seen.numbers
        # A key for every token of prompt and segment, in each segment: as in the plain layout.
        assert largest["ours", count] <= count * (39 + 21) * HEADS * WIDTH
        assert largest["pairs", count] >= length * length
    assert largest["ours", 32] <= 2 * largest["ours", 16]


def test_only_the_language_model_is_told_and_plain_calls_stay_what_they_are(prefix, tiny, tmp_path):
    model, processor = prefix.model()
    batch = prefix.batch(processor)
    inputs = {name: value for name, value in batch.items() if name not in ("logits_to_keep", "num_images")}
    answer = {"max_new_tokens": 5, "do_sample": False}
    with torch.no_grad():
        before = model(**inputs).logits
        said = model.generate(**inputs, **answer)
        use_packed_sdpa(model.model.language_model)
        use_packed_sdpa(model.model.language_model)
        assert torch.equal(model(**inputs).logits, before)
        assert torch.equal(model.generate(**inputs, **answer), said)
    names = [config._attn_implementation for config in (model.config, model.config.vision_config)]
    assert names == ["sdpa", "sdpa"], "what is loaded with the model's setting, as TRL's reference, has sdpa"
    assert model.config.text_config._attn_implementation == ATTENTION
    model.save_pretrained(tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()


def test_a_model_that_was_not_told_fails_instead_of_seeing_the_future(prefix):
    model, processor = prefix.model(layers=1)
    batch = prefix.batch(processor)
    layout = pack_rows([3], [2], [[0]], 3)
    plan = packed_attention(layout, [2])
    ids = batch["input_ids"][:1, -layout.segment.shape[1] :]
    with pytest.raises((TypeError, AttributeError)):
        model(input_ids=ids, attention_mask={"full_attention": plan}, position_ids=torch.arange(ids.shape[1])[None])


def test_a_plan_moves_with_its_model():
    layout, _ = _case(*CASES["prompts"])
    moved = packed_attention(layout, CASES["prompts"][1]).to("meta")
    tensors = [moved.source, *(value for batch in moved.batches for value in (batch.owner, batch.token, batch.mask))]
    assert all(value.is_meta for value in tensors) and len(tensors) == 1 + 3 * 3 and moved.prefix == 5


def test_transformers_still_has_what_is_called_and_relied_on():
    """Fails when an installed transformers moves what `thurl.rl.shared_prefix.attention` builds on."""
    names = list(inspect.signature(sdpa_attention_forward).parameters)
    assert names[:5] == ["module", "query", "key", "value", "attention_mask"] and {"dropout", "scaling"} <= set(names)
    source = inspect.getsource(Qwen2_5_VLTextModel.forward)
    assert "if not isinstance(causal_mask_mapping := attention_mask, dict):" in source
    assert "attention_mask=causal_mask_mapping[self.config.layer_types[i]]," in source
    assert "ALL_ATTENTION_FUNCTIONS.get_interface(" in inspect.getsource(Qwen2_5_VLAttention.forward)
    assert AttentionInterface()[ATTENTION] is packed_sdpa and AttentionMaskInterface()[ATTENTION] is sdpa_mask
