"""The joint embedding: what it returns, what is trained, folding the text tower, files, two processes."""

import copy
import multiprocessing

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

from thurl.errors import UsageError
from thurl.forensics.deepfake.config import DeepFakeConfig
from thurl.forensics.deepfake.graph import graph_from, load_graph
from thurl.forensics.deepfake.loading import load_model
from thurl.forensics.deepfake.marginals import log_marginals
from thurl.forensics.deepfake.model import DeepFakeModel
from thurl.forensics.deepfake.prompts import known_prompts, tokenized
from thurl.forensics.deepfake.tiny import tiny_config


GRAPH = load_graph("ffpp")


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    return DeepFakeModel(tiny_config(image_size=24, patch_size=8, hidden=16, layers=1, heads=2, **options))


def faces(rows=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(rows, 3, 24, 24, generator=generator)
    return pictures, GRAPH.states[torch.randint(0, 251, (rows,), generator=generator)].to(torch.int8)


def test_an_output_has_a_row_per_face_and_terms_per_task():
    pictures, labels = faces()
    model = tiny().eval()
    output = model(pictures, labels=labels)
    assert list(output.terms) == ["binary", "global", "local"] == list(output.present)
    torch.testing.assert_close(output.loss, sum(output.terms.values()))
    log_p, log_not_p = log_marginals(output.logits, GRAPH.states)
    assert output.logits.shape == output.marginals.shape == output.log_odds.shape == output.states.shape == (5, 10)
    torch.testing.assert_close(output.marginals, log_p.exp().float())
    torch.testing.assert_close(output.log_odds, (log_p - log_not_p).float())
    assert (output.marginals[:, :1] >= output.marginals).all()
    assert all(GRAPH.problem(row) == "" for row in output.states.int().tolist())
    without = model(pictures)
    assert without.loss is None and without.terms is None and torch.equal(without.logits, output.logits)


def test_unknown_labels_change_only_their_task():
    pictures, labels = faces()
    hidden = labels.clone()
    hidden[:, GRAPH.tasks["local"]] = -1
    one, other = (tiny().eval()(pictures, labels=given) for given in (labels, hidden))
    assert one.terms["binary"] == other.terms["binary"] and other.terms["local"] == 0
    assert one.present["local"] and not other.present["local"]


def test_scores_far_apart_keep_their_order():
    """Marginals of 1 are ties in float32; the log-odds are not."""
    model = tiny(scale=60.0, normalize=True).eval()
    with torch.no_grad():
        output = model(faces(32)[0])
    p, odds = output.marginals[:, 0], output.log_odds[:, 0]
    assert odds.isfinite().all() and len(odds.unique()) == 32
    assert (p[odds.argsort()].diff() >= 0).all()


def test_a_face_and_the_sentences_are_encoded_once_per_forward():
    model, (pictures, labels) = tiny(), faces()
    calls = []
    for name in ("vision_model", "text_model"):
        getattr(model, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    model(pictures, labels=labels).loss.backward()
    assert sorted(calls) == ["text_model", "vision_model"]
    calls.clear()
    model.eval()
    with torch.no_grad():
        for _ in range(3):
            model(pictures)
    assert sorted(calls) == ["text_model", *["vision_model"] * 3]


@pytest.mark.parametrize("learn_scale", [False, True])
def test_every_weight_moves(learn_scale):
    model, (pictures, labels) = tiny(learn_scale=learn_scale), faces(16)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(6):
        loss = model(pictures, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == set(before) and ("logit_scale" in before) == learn_scale


def test_frozen_weights_stay():
    model, (pictures, labels) = tiny(), faces()
    for weight in model.text_model.parameters():
        weight.requires_grad_(False)
    model(pictures, labels=labels).loss.backward()
    assert all((weight.grad is None) == name.startswith("text_model.") for name, weight in model.named_parameters())


def test_normalised_features_with_a_scale():
    model, (pictures, _) = tiny(normalize=True, scale=5.0).eval(), faces()
    with torch.no_grad():
        image, text = model.image_features(pictures), model.text_features()
        cosine = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=2)
        torch.testing.assert_close(model(pictures).logits, 5 * cosine, rtol=1e-5, atol=1e-5)
        raw = tiny().eval()
        expected = raw.image_features(pictures) @ raw.text_features().T / 10
        torch.testing.assert_close(raw(pictures).logits, expected, rtol=1e-5, atol=1e-6)


def test_half_precision_keeps_marginals_and_losses_in_float32_or_better():
    pictures, labels = faces()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = tiny()(pictures, labels=labels)
    assert output.logits.dtype == output.loss.dtype == output.marginals.dtype == torch.float32
    half = tiny().to(torch.bfloat16).eval()(pictures.to(torch.bfloat16))
    assert half.logits.dtype == torch.float32 and half.marginals.isfinite().all()


# --- folding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"normalize": True, "scale": 10.0, "learn_scale": True}])
def test_folding_drops_the_text_tower_and_no_score(options, tmp_path):
    pictures, labels = faces()
    model = tiny(**options)
    folded = model.fold_text()
    assert model.training and not folded.training
    assert not [name for name in folded.state_dict() if name.startswith("text_")]
    assert folded.sentence_features.shape == (10, 16) and model.config.folded is False
    with torch.no_grad():
        expected = model.eval()(pictures, labels=labels)
        folded.save_pretrained(tmp_path)
        for one in (folded, load_model(tmp_path)):
            output = one(pictures, labels=labels)
            torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-6)
            torch.testing.assert_close(output.marginals, expected.marginals, rtol=0, atol=1e-6)
            torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-6)
    # The two share nothing.
    with torch.no_grad():
        folded.visual_projection.weight.zero_()
        assert torch.equal(model(pictures).logits, expected.logits)


def test_a_folded_model_cannot_be_trained_or_folded_again():
    pictures, labels = faces()
    folded = tiny().fold_text()
    with pytest.raises(UsageError, match="folded already"):
        folded.fold_text()
    with pytest.raises(UsageError, match="its sentences cannot be trained; train the model it was made from"):
        folded.train()(pictures, labels=labels)


def test_sizes_of_the_published_model():
    with torch.device("meta"):
        whole, folded = (DeepFakeModel(DeepFakeConfig(folded=folded)) for folded in (False, True))
    assert [sum(weight.numel() for weight in model.parameters()) for model in (whole, folded)] == [151277312, 87849216]


# --- files and configurations ----------------------------------------------------------------------------------------


def test_a_saved_model_gives_the_same_scores_and_keeps_its_graph(tmp_path):
    pictures, _ = faces()
    plain = {**GRAPH.plain(), "name": "mine", "exclusions": [["expression", "identity"]], "manipulations": {}}
    model = tiny(graph=graph_from(plain)).eval()
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert again.graph == model.graph and again.graph.name == "mine" and len(again.graph.states) < 251
    with torch.no_grad():
        assert torch.equal(again(pictures).logits, model(pictures).logits)


def test_weights_have_the_names_of_a_clip_of_transformers(tmp_path):
    config = tiny_config(image_size=24, hidden=16, layers=1)
    towers = {"text_config": config.text_config.to_dict(), "vision_config": config.vision_config.to_dict()}
    torch.manual_seed(3)
    clip = CLIPModel(CLIPConfig(**towers, projection_dim=16)).eval()
    clip.save_pretrained(tmp_path)
    model, info = DeepFakeModel.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert not info["missing_keys"] and set(info["unexpected_keys"]) == {"logit_scale"}
    with torch.no_grad():
        pictures, _ = faces()
        expected = clip.get_image_features(pictures).pooler_output
        torch.testing.assert_close(model.eval().image_features(pictures), expected, rtol=1e-5, atol=1e-6)


def test_token_ids_of_the_shipped_graphs_and_of_others():
    assert known_prompts()["A photo of a fake face"] == (49406, 320, 1125, 539, 320, 5777, 1710, 49407)
    assert [len(tokenized(load_graph(name))) for name in ("ffpp", "ffsc")] == [10, 12]
    plain = GRAPH.plain()
    plain["templates"]["local"] = "The {} looks odd"
    other = graph_from(plain)
    with pytest.raises(UsageError, match="token ids of 'The eye looks odd' are not known"):
        DeepFakeConfig(graph=other.plain())
    seen = []

    def tokenizer(sentences):
        seen.extend(sentences)
        return {"input_ids": [[0, len(sentence), 1] for sentence in sentences]}

    assert tokenized(other, tokenizer)[4] == [0, len("The eye looks odd"), 1] and seen == other.prompts()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, "scale=0.0: a positive number"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"fidelity_eps": -1e-8}, "fidelity_eps=-1e-08"),
        ({"cross_entropy": 0.7, "likelihood": 0.4}, "together at most 1"),
        ({"likelihood": -0.1}, "likelihood=-0.1"),
        ({"prompt_ids": [[49406, 49407]]}, "1 prompts for 10 columns"),
        ({"prompt_ids": [[49406]] * 10}, "lacks the end token"),
        (
            {"text_config": CLIPTextConfig(vocab_size=100, eos_token_id=99)},
            "the vocabulary of `text_config` is 0 to 99",
        ),
    ],
)
def test_configurations_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        DeepFakeConfig(**options)


# --- two processes ---------------------------------------------------------------------------------------------------

ROWS = {0: slice(0, 5), 1: slice(5, 8)}  # unequal shares


def gradient(rows):
    pictures, labels = faces(8)
    labels[5:, GRAPH.tasks["local"]] = -1  # the second process knows no region
    model = tiny()
    output = model(pictures[rows], labels=labels[rows])
    output.loss.backward()
    terms = {f"term.{task}": term.detach() for task, term in output.terms.items()}
    return {name: weight.grad for name, weight in model.named_parameters()} | terms


def one_process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = gradient(ROWS[rank])
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, f"{folder}/{rank}.safetensors")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.distributed
def test_two_processes_have_the_losses_and_gradient_of_one(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=one_process, args=(rank, tmp_path)) for rank in ROWS]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    found = [load_file(tmp_path / f"{rank}.safetensors") for rank in ROWS]
    for name, tensor in gradient(slice(None)).items():
        if name.startswith("term."):
            for part in found:
                torch.testing.assert_close(part[name], tensor, rtol=1e-5, atol=1e-6)
        else:  # data parallel training averages over processes
            mean = (found[0][name] + found[1][name]) / 2
            torch.testing.assert_close(mean, tensor, rtol=1e-4, atol=1e-5)
