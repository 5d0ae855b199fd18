"""The parts of a classifier are the classifier, and released weights give the released outputs."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from thurl.editing.classifier import TimmClassifier, as_classifier
from thurl.editing.official import convert_official_vit, official_vit
from thurl.errors import DataError, UsageError
from thurl.vit import final_norm

from .editing_models import MODELS, WIDE, golden, golden_model, pictures, small_model, small_timm


@pytest.mark.parametrize("name", MODELS)
def test_parts_give_the_logits_of_the_whole(name):
    model = small_model(name)
    classifier = as_classifier(model)
    images = pictures(3)
    whole = classifier.logits(images)
    own = model(images)
    assert torch.equal(whole, own if isinstance(own, torch.Tensor) else own.logits)
    for layer in range(4):
        hidden = classifier.prefix(images, layer)
        assert not hidden.requires_grad
        torch.testing.assert_close(classifier.suffix(hidden, layer), whole, rtol=0, atol=1e-6)
    assert classifier.classes == 5 and classifier.depth == 4


@pytest.mark.parametrize("name", MODELS)
def test_class_token_is_what_the_final_norm_gives(name):
    model = small_model(name)
    seen = []
    handle = final_norm(model).register_forward_hook(lambda _, inputs, output: seen.append(output))
    output = as_classifier(model).class_token(pictures(2))
    handle.remove()
    token = seen[0] if seen[0].dim() == 2 else seen[0][:, 0]
    torch.testing.assert_close(output, token)
    assert output.shape == (2, 16) and not output.requires_grad


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_released_weights_give_the_released_outputs(library):
    stored = golden("tiny_io")
    classifier = as_classifier(golden_model(library))
    torch.testing.assert_close(classifier.logits(stored["image"]), stored["logits"], rtol=0, atol=1e-5)
    token = classifier.class_token(stored["image"])
    torch.testing.assert_close(token, stored["tokens"][:, 0], rtol=0, atol=1e-5)


def test_suffix_with_other_weights_is_the_model_with_them():
    model = small_model("vit")
    classifier = as_classifier(model)
    name = classifier.units[1].parameter
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.get_parameter(name).mul_(1.5)
    hidden = classifier.prefix(pictures(2), 1)
    before = classifier.fingerprint()
    weight = changed.get_parameter(name).detach().clone().requires_grad_()
    logits = classifier.suffix(hidden, 1, {name: weight})
    torch.testing.assert_close(logits, changed(pictures(2)).logits, rtol=0, atol=1e-6)
    assert torch.autograd.grad(logits.sum(), weight)[0].abs().max() > 0
    assert classifier.fingerprint() == before != as_classifier(changed).fingerprint()


def test_the_model_is_put_into_eval_mode():
    model = small_timm(drop_rate=0.5).train()
    classifier = as_classifier(model)
    assert not model.training and torch.equal(classifier.logits(pictures(1)), classifier.logits(pictures(1)))


def test_a_model_that_is_not_its_parts_is_refused():
    class Doubled(ViTForImageClassification):
        def forward(self, *arguments, **named):
            output = super().forward(*arguments, **named)
            output.logits = 2 * output.logits
            return output

    with pytest.raises(UsageError, match="Doubled computes its logits in another way"):
        as_classifier(Doubled(ViTConfig(**WIDE))).prefix(pictures(1), 0)


def test_what_is_no_classifier_is_refused():
    with pytest.raises(UsageError, match="ViTModel is no image classifier"):
        as_classifier(ViTModel(ViTConfig(**WIDE)))
    with pytest.raises(UsageError, match="0 classes"):
        as_classifier(small_timm(num_classes=0))
    with pytest.raises(UsageError, match="layer 4: VisionTransformer has the layers 0 to 3"):
        TimmClassifier(small_timm()).prefix(pictures(1), 4)


def test_conversion_takes_no_key_too_few_or_too_many():
    weights = golden("tiny_vit_weights")
    for library in ("timm", "transformers"):
        assert sum(t.numel() for t in convert_official_vit(weights, library).values()) == sum(
            t.numel() for name, t in weights.items() if "pred_head" not in name
        )
    with pytest.raises(UsageError, match="library 'jax'"):
        convert_official_vit(weights, "jax")
    with pytest.raises(DataError, match="0 missing .* 1 left over .*extra"):
        convert_official_vit({**weights, "extra": torch.ones(1)}, "timm")
    with pytest.raises(DataError, match="1 missing .*head.bias"):
        convert_official_vit({name: t for name, t in weights.items() if name != "head.bias"}, "timm")
    with pytest.raises(DataError, match="left over"):
        convert_official_vit({"a": torch.ones(1)}, "transformers")
    with pytest.raises(UsageError, match="heads 5: must divide the width 24"):
        official_vit(weights, 5)
    with pytest.raises(DataError, match="do not fit together.*size mismatch"):
        official_vit({**weights, "head.bias": torch.zeros(9)}, 3)
