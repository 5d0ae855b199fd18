"""Deltas: applied and reverted bit by bit, saved whole, refused where they do not belong, merged and exported."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import ViTForImageClassification

from thurl.editing.classifier import as_classifier
from thurl.editing.delta import Delta, UnitChange, apply_delta, edited_weights, revert_delta
from thurl.editing.delta_files import load_delta, save_delta
from thurl.editing.export import export_edited
from thurl.editing.masks import random_mask
from thurl.editing.merge import merge_deltas, overlaps
from thurl.editing.units import resolve_ffn
from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.training.fingerprint import fingerprint

from .editing_models import golden_model, pictures, small_model


def made(model, seed=0, density=0.1, mask=None, scale=0.01):
    """A delta as an edit makes it, of random numbers."""
    classifier = as_classifier(model)
    mask = random_mask(classifier.mask_shape, density, seed) if mask is None else mask
    generator = torch.Generator().manual_seed(seed)
    changes = []
    for unit, row in zip(classifier.units, mask, strict=True):
        if row.any():
            empty = UnitChange(unit, row.nonzero().flatten(), torch.empty(0), None)
            original = empty.read(model.get_parameter(unit.parameter))
            change = scale * torch.randn(original.shape, generator=generator)
            changes.append(replace(empty, change=change, original=original))
    return Delta(classifier.fingerprint(), classifier.units, tuple(changes), ({"labels": [seed]},))


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def same_changes(first, second):
    return all(
        a.unit == b.unit and torch.equal(a.neurons, b.neurons) and torch.equal(a.change, b.change)
        for a, b in zip(first.changes, second.changes, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["timm", "timm swiglu", "vit", "dinov2"])
def test_reverting_is_bit_exact(name, dtype):
    model = small_model(name).to(dtype)
    before = state(model)
    delta = made(model, scale=1.0)
    edited = edited_weights(model, delta)
    assert same(state(model), before)
    applied = apply_delta(model, delta)
    after = state(model)
    assert {key for key in before if not torch.equal(before[key], after[key])} == set(edited)
    assert all(torch.equal(after[key], weight) for key, weight in edited.items())
    revert_delta(model, applied)
    assert same(state(model), before) and fingerprint(model) == delta.base
    apply_delta(model, delta)
    revert_delta(model, delta)
    assert same(state(model), before)


def test_what_a_delta_says_about_itself():
    model = small_model("timm swiglu")
    delta = made(model, density=0.1)
    assert torch.equal(delta.mask, random_mask((6, 24), 0.1, 0))
    assert delta.density == pytest.approx(14 / 144)
    rows = sum(int(row.sum()) for row in delta.mask[::2])
    assert delta.parameters == 16 * (2 * rows + 14 - rows)
    assert delta.norm == pytest.approx(0.01 * delta.parameters**0.5, rel=0.1)


def test_another_model_is_refused_unless_forced():
    model, other = small_model("vit"), small_model("vit", seed=1)
    delta = made(model)
    before = state(other)
    with pytest.raises(UsageError, match=f"fingerprint {delta.base[:12]}, this one has"):
        apply_delta(other, delta)
    assert same(state(other), before)
    applied = apply_delta(other, delta, force=True)
    assert not same(state(other), before) and applied.base == fingerprint(small_model("vit", seed=1))
    with pytest.raises(UsageError, match="not those this edit left"):
        revert_delta(other, delta)
    revert_delta(other, applied)
    assert same(state(other), before)
    for wrong, message in ((small_model("dinov2"), "has no vit.layers"), (small_model("timm"), "is of another model")):
        with pytest.raises(UsageError, match=message):
            apply_delta(wrong, delta, force=True)
    wide = golden_model("transformers")
    with pytest.raises(UsageError, match=r"shape \[40, 24\], the edit was made for 24 rows of 16"):
        apply_delta(wide, delta, force=True)


def test_reverting_refuses_a_model_without_the_edit():
    model = small_model("vit")
    delta = made(model)
    with pytest.raises(UsageError, match="layer1.fc1, .* are not those this edit left"):
        revert_delta(model, delta)
    bare = replace(delta, changes=tuple(replace(change, original=None) for change in delta.changes))
    apply_delta(model, bare)
    with pytest.raises(MissingRequirementError, match="holds no original weights"):
        revert_delta(model, bare)


def test_later_edits_are_reverted_first_where_they_overlap():
    model = small_model("vit")
    before = state(model)
    first = made(model, seed=0, density=0.3)
    apply_delta(model, first)
    second = made(model, seed=1, density=0.3)
    apply_delta(model, second)
    with pytest.raises(UsageError, match="revert later edits first"):
        revert_delta(model, first)
    revert_delta(model, second)
    revert_delta(model, first)
    assert same(state(model), before)


@pytest.mark.parametrize("name", ["vit", "timm swiglu"])
def test_files_hold_the_touched_rows_and_nothing_else(tmp_path, name):
    model = small_model(name)
    delta = made(model, density=0.05)
    path = tmp_path / "edit.safetensors"
    assert save_delta(path, delta) == 0
    loaded = load_delta(path)
    assert same_changes(loaded, delta) and (loaded.base, loaded.units) == (delta.base, delta.units)
    assert loaded.history == delta.history
    assert all(torch.equal(a.original, b.original) for a, b in zip(loaded.changes, delta.changes, strict=True))
    whole, edited = copy.deepcopy(model), copy.deepcopy(model)
    apply_delta(whole, delta)
    apply_delta(edited, loaded)
    assert same(state(whole), state(edited))
    revert_delta(edited, loaded)
    assert same(state(model), state(edited))
    with safe_open(path, framework="pt") as file:
        entry = json.loads(file.metadata()["edit"])
        stored = sum(file.get_tensor(key).numel() for key in file.keys() if key.endswith("change"))
    assert stored == delta.parameters
    assert entry["density"] == pytest.approx(delta.density) and entry["sparsity"] == pytest.approx(1 - delta.density)
    small = tmp_path / "small.safetensors"
    error = save_delta(small, delta, dtype="float16", originals=False)
    rounded = load_delta(small)
    assert all(change.original is None and change.change.dtype == torch.float32 for change in rounded.changes)
    differences = [
        float((a.change - b.change).abs().max()) for a, b in zip(rounded.changes, delta.changes, strict=True)
    ]
    assert 0 < error < 1e-4 and max(differences) == pytest.approx(error)
    assert small.stat().st_size < path.stat().st_size


def test_files_of_an_empty_edit_and_wrong_options(tmp_path):
    delta = replace(made(small_model("vit")), changes=())
    path = tmp_path / "edit.safetensors"
    save_delta(path, delta)
    loaded = load_delta(path)
    assert loaded.changes == () and not loaded.mask.any() and loaded.density == 0
    with pytest.raises(UsageError, match="dtype 'int8'"):
        save_delta(path, delta, dtype="int8")
    with pytest.raises(UsageError, match="does not fit into float16"):
        save_delta(path, made(small_model("vit"), scale=1e6), dtype="float16")
    with pytest.raises(MissingRequirementError, match="no such file"):
        load_delta(tmp_path / "none.safetensors")


def broken(tensors, entry):
    """Cases of a file changed by hand: what is said, tensors, entry."""
    some = "layer1.fc1"
    neurons, change = f"{some}.neurons", f"{some}.change"
    unit = entry["units"][0]

    def with_unit(**values):
        return tensors, {**entry, "units": [{**unit, **values}, *entry["units"][1:]]}

    def with_tensor(name, tensor):
        return {**tensors, name: tensor}, entry

    return {
        "neurons that are not ascending or not in": with_tensor(neurons, tensors[neurons] + 1000),
        "neurons that are not ascending": with_tensor(neurons, tensors[neurons].flip(0).contiguous()),
        "or not in 0 to": with_tensor(neurons, tensors[neurons] - 100),
        "neurons of torch.int32": with_tensor(neurons, tensors[neurons].int()),
        "neurons of torch.int64": with_tensor(neurons, tensors[neurons][None]),
        "a change of shape": with_tensor(change, tensors[change][:1]),
        "rows or columns": with_tensor(change, tensors[change].flatten()),
        "no finite number": with_tensor(change, tensors[change] * float("nan")),
        "a change of torch.int64 ": with_tensor(change, tensors[change].long()),
        "original weights of torch.float32": with_tensor(f"{some}.original", tensors[change][:, :2].contiguous()),
        "tensors of no unit, such as other": with_tensor("other", torch.ones(1)),
        "KeyError": ({name: tensor for name, tensor in tensors.items() if name != change}, entry),
        "version 9": (tensors, {**entry, "version": 9}),
        "'units'": (tensors, {key: value for key, value in entry.items() if key != "units"}),
        "TypeError": (tensors, [entry]),
        "units that are none": (tensors, {**entry, "units": []}),
        "there twice": (tensors, {**entry, "units": [unit, unit]}),
        "several sizes": with_unit(size=30),
        "values out of range": with_unit(axis=2),
        "values out of rang": with_unit(groups=3),
        "numbers or names are none": with_unit(size=True),
        "numbers or names are non": with_unit(name="../fc1"),
        "numbers or names are no": with_unit(parameter="a b"),
        "numbers or names": with_unit(layer="1"),
        "without a fingerprint": (tensors, {**entry, "base": "\x1b[31m"}),
        "without a fingerprin": (tensors, {**entry, "base": 3}),
        "no list of objects": (tensors, {**entry, "history": ["a"]}),
    }


CASES = list(broken({f"layer1.fc1.{one}": torch.ones(2, 2) for one in ("neurons", "change")}, {"units": [{}]}))


@pytest.mark.parametrize("case", CASES)
def test_broken_files_are_named(tmp_path, case):
    path = tmp_path / "edit.safetensors"
    save_delta(path, made(small_model("timm"), density=0.3))
    with safe_open(path, framework="pt") as file:
        entry = json.loads(file.metadata()["edit"])
    tensors, entry = broken(load_file(path), entry)[case]
    save_file(tensors, path, {"edit": json.dumps(entry)})
    with pytest.raises(DataError) as error:
        load_delta(path)
    message = str(error.value)
    assert case in message and message.startswith(str(path)) and "make it again" in message and "\x1b" not in message


def test_files_that_are_no_edit_are_named(tmp_path):
    path = tmp_path / "edit.safetensors"
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(DataError, match="not the file of an edit .KeyError"):
        load_delta(path)
    for text in ("[" * 100_000, "{", "1"):
        save_file({"a": torch.ones(1)}, path, {"edit": text})
        with pytest.raises(DataError, match="not the file of an edit"):
            load_delta(path)
    for content in (b"", b"\x05", (1 << 20).to_bytes(8, "little") + b"{}"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a whole safetensors file"):
            load_delta(path)
    path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(DataError, match="a header of more than 16 MiB"):
        load_delta(path)


def test_edits_of_other_neurons_merge_and_commute():
    model = small_model("timm swiglu")
    mask = random_mask((6, 24), 0.4, 0)
    left = mask.clone()
    left[:, 12:] = False
    first, second = made(model, seed=1, mask=left), made(model, seed=2, mask=mask & ~left)
    assert overlaps([first, second]) == []
    merged = merge_deltas([first, second])
    assert torch.equal(merged.mask, mask) and merged.base == first.base
    assert merged.history == ({"labels": [1]}, {"labels": [2]})
    assert same_changes(merged, merge_deltas([second, first]))
    one, other = copy.deepcopy(model), copy.deepcopy(model)
    apply_delta(one, merged)
    apply_delta(other, first)
    apply_delta(other, second, force=True)
    assert same(state(one), state(other))
    revert_delta(other, first)  # no neuron in common: in any order
    revert_delta(other, second)
    revert_delta(one, merged)
    assert same(state(one), state(model)) and same(state(other), state(model))


def test_overlaps_are_counted_and_refused_or_summed():
    model = small_model("timm swiglu")
    masks = [random_mask((6, 24), 0.3, seed) for seed in (0, 1)]
    first, second = (made(model, seed=seed, mask=mask) for seed, mask in enumerate(masks))
    found = overlaps([first, second])
    both = masks[0] & masks[1]
    assert {one.unit: list(one.neurons) for one in found} == {
        unit.label: row.nonzero().flatten().tolist() for unit, row in zip(first.units, both, strict=True) if row.any()
    }
    assert all((one.first, one.second) == (0, 1) and -1 <= one.cosine <= 1 for one in found)
    with pytest.raises(UsageError) as error:
        merge_deltas([first, second])
    assert error.value.problems[:-1] == [str(one) for one in found] and "both change" in str(found[0])
    merged = merge_deltas([first, second], overlap="sum")
    for unit in first.units:
        parts = []
        for delta in (first, second, merged):
            full = torch.zeros_like(model.get_parameter(unit.parameter))
            for change in delta.changes:
                if change.unit == unit:
                    change.write(full, change.change)
            parts.append(full)
        torch.testing.assert_close(parts[2], parts[0] + parts[1])
    before = state(model)
    revert_delta(model, apply_delta(model, merged))
    apply_delta(model, merged)
    revert_delta(model, merged)  # with its own original weights
    assert same(state(model), before)
    opposite = replace(first, changes=tuple(replace(change, change=-change.change) for change in first.changes))
    assert all(one.cosine == pytest.approx(-1) for one in overlaps([first, opposite]))
    assert merge_deltas([first, opposite], overlap="sum").norm == 0


def test_what_cannot_be_merged():
    model = small_model("vit")
    delta = made(model)
    with pytest.raises(UsageError, match="edits of 2 base models"):
        merge_deltas([delta, made(small_model("vit", seed=1))])
    with pytest.raises(UsageError, match="edits of 0 base models"):
        merge_deltas([])
    with pytest.raises(UsageError, match="overlap 'mean'"):
        merge_deltas([delta], overlap="mean")
    other = replace(delta, units=tuple(replace(unit, layer=0) for unit in delta.units), changes=())
    with pytest.raises(UsageError, match="same weights as different units"):
        merge_deltas([delta, other])
    unit = resolve_ffn(model, [0])[0]
    with pytest.raises(UsageError, match="several sizes"):
        merge_deltas([delta, replace(delta, units=(replace(unit, size=7),), changes=())])


def test_exported_models_load_without_thurl(tmp_path):
    images = pictures(2)
    for name in ("vit", "timm"):
        model = small_model(name)
        delta = made(model)
        wanted = as_classifier(model).logits(images, edited_weights(model, delta))
        before = state(model)
        export_edited(model, delta, tmp_path / name)
        assert same(state(model), before)
        if name == "vit":
            loaded = ViTForImageClassification.from_pretrained(tmp_path / name).eval()
        else:
            loaded = timm.create_model(f"local-dir:{tmp_path / name}", pretrained=True).eval()
        torch.testing.assert_close(as_classifier(loaded).logits(images), wanted, rtol=0, atol=1e-6)
        with pytest.raises(UsageError, match="fingerprint"):
            export_edited(small_model(name, seed=1), delta, tmp_path / "other")
        assert not (tmp_path / "other").exists()
    model = golden_model("timm")  # no name of timm's: its weights only
    delta = made(model)
    export_edited(model, delta, tmp_path / "plain")
    apply_delta(model, delta)
    assert same(load_file(tmp_path / "plain" / "model.safetensors"), state(model))
