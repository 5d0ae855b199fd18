"""Recipes of language models: what is refused, a run from end to end, its control, its adapter, and a killed run."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from thurl.coto.callback import CoToCallback
from thurl.coto.grpo import CoToGRPOMixin
from thurl.errors import UsageError
from thurl.recipe import answers_task, coto_grpo_run, coto_sft_run
from thurl.recipe.answers_task import QuestionTask
from thurl.recipe.launch import run_recipe
from thurl.recipe.preflight import missing_requirements
from thurl.recipe.validate import load_recipe, resolved
from thurl.text.commands import command_questions
from thurl.text.evaluation import answer_questions, answer_scores
from thurl.text.loading import load_language_model
from thurl.text.prompts import PromptStyle

from ..rl.forked_worlds import command
from .run_reports import check_run_report


ROOT = Path(__file__).parents[2]
SFT = ROOT / "recipes" / "tiny" / "coto_llm.yaml"
GRPO = ROOT / "recipes" / "tiny" / "coto_llm_grpo.yaml"

# Two layers, three digits, one new command: a core learns it in a quarter of a minute.
SMALL = [
    "model.tiny={hidden: 48, layers: 2, heads: 2}",
    "pretraining={commands: [copy, plus_one, minus_one], lengths: [3], steps: 200, rows: 6400, batch: 32}",
    "training.seed=3",
    "training.logging_steps=1",
    "evaluation.every_steps=null",
]
SFT_SMALL = [
    *SMALL,
    "data.train.0={format: commands, commands: [complement], split: train, rows: 1600, lengths: [3]}",
    "evaluation.sources.0={format: commands, commands: [complement], split: test, rows: 100, lengths: [3]}",
    "training.per_device_train_batch_size=32",
    "control.shuffle_answers=false",
]
GRPO_SMALL = [
    *SMALL,
    "data.train.0={format: commands, commands: [copy, plus_one], split: train, rows: 400, lengths: [3]}",
    "evaluation.sources.0={format: commands, commands: [copy, plus_one], split: test, rows: 60, lengths: [3]}",
    "training.per_device_train_batch_size=16",
    "training.num_generations=4",
    "training.max_completion_length=5",
    "control.shuffle_answers=false",
]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a recipe in this process; returns its record and its output folder."""
    monkeypatch.chdir(tmp_path)

    def go(path, *overrides, out="out"):
        where = [f"training.output_dir={out}", f"report.results={out}/results.json", f"report.html={out}/report.html"]
        words = [*overrides, *where]
        recipe = load_recipe(path, words).recipe
        module = coto_sft_run if recipe.method == "coto_sft" else coto_grpo_run
        return module.run(recipe, recipe_path=str(path), overrides=words), tmp_path / out

    return go


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """The pre-trained small model, built once; `with_start` makes runs take it."""
    place = tmp_path_factory.mktemp("start")
    answers_task.build_start(load_recipe(SFT, SFT_SMALL).recipe, place)
    return place


@pytest.fixture
def with_start(start, monkeypatch):
    monkeypatch.setattr(QuestionTask, "start", lambda self, recipe_path, overrides: str(start))


# -- validation ----------------------------------------------------------------------------------------------------


def problems_of(path, *overrides):
    with pytest.raises(UsageError) as error:
        load_recipe(path, overrides)
    return "\n".join(error.value.problems)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.beta=0.1", "training.beta: unknown key `beta`"),
        ("training.eval_strategy=steps", "answers are evaluated by the section `evaluation`"),
        ("training.max_length=0", "must be at least 1, or null"),
        ("training.packing=true", "needs `max_length`"),
        ("training.padding_free=true", "others mix the rows"),
        ("training.dataset_kwargs={skip_prepare_dataset: true}", "the section `data` prepares the rows"),
        ("training.bf16=true & training.fp16=true", "both true"),
        ("adapter=null", "needs the section `adapter`"),
        ("adapter.target_modules=[lm_head]", "refused by TRL"),
        ("coto.old_logprobs=detach", "is for GRPO"),
        ("coto.initial_p=2", "less than or equal to 1"),
        ("model.name_or_path=org/model", "has both"),
        ("model={name_or_path: org/model}", "pretraining: is for a `tiny` model"),
        ("model.tiny.hidden=60", "take a multiple of 8"),
        ("model.tiny.architecture=gpt2", "must be 'llama' or 'qwen2'"),
        ("data.train=[]", "name at least one source"),
        ("data.train.0.commands=[copi]", "`copi` is not one of copy"),
        ("data.train.0.lengths=[1]", "greater than or equal to 2"),
        ("data.train.0.row=3", "unknown key `row`; did you mean `rows`?"),
        ("data.train.0={format: gsm8k, file: gone.jsonl}", "gone.jsonl does not exist"),
        ("data.train.0={format: gsm8k, file: x, answers: text}", "knows the kind of its answers"),
        ("data.train.0={format: chat, file: x}", "set it to true"),
        ("data.train.0={format: squad, file: x}", "must be 'commonsense'"),
        ("data.prompt.template=Question", "must hold {question} exactly once"),
        ("data.prompt.system=x", "set `chat: true`"),
        ("evaluation.rule=loose", "must be 'strict' or 'lenient'"),
        ("pretraining.commands=[]", "is empty"),
        ("max_length=10", "it belongs under `training:` (`training.max_length`)"),
    ],
)
def test_what_cannot_run_is_refused(override, message):
    assert message in problems_of(SFT, *override.split(" & "))


def test_what_cannot_run_is_refused_in_grpo_too():
    assert "do not divide into groups" in problems_of(GRPO, "training.per_device_train_batch_size=9")
    assert "answers are evaluated by" in problems_of(GRPO, "training.eval_strategy=steps")
    assert "unknown key `max_length`" in problems_of(GRPO, "training.max_length=4")
    assert load_recipe(GRPO, ["coto.old_logprobs=detach"]).recipe.coto.old_logprobs == "detach"


def test_defaults_are_those_of_the_right_trainer():
    for path, own, other in ((SFT, "max_length", "num_generations"), (GRPO, "num_generations", "max_length")):
        training = resolved(load_recipe(path).recipe, defaults=True)["training"]
        assert own in training and other not in training


def test_the_papers_settings():
    commonsense = load_recipe(ROOT / "recipes" / "coto_llm.yaml").recipe
    assert (commonsense.adapter.r, commonsense.coto.initial_p, commonsense.coto.stage1_ratio) == (32, 0.1, 0.75)
    assert len(commonsense.evaluation.sources) == 8 and commonsense.training["weight_decay"] == 0
    grade_school = load_recipe(ROOT / "recipes" / "coto_llm_gsm8k.yaml").recipe
    assert grade_school.adapter.r == 8 and grade_school.data.train[0].max_rows == 100_000
    baseline = load_recipe(ROOT / "recipes" / "coto_llm.yaml", ["coto=null", "adapter.kind=dora"]).recipe
    assert baseline.coto is None


def test_absent_data_and_weights_stop_a_run_with_where_to_get_them(monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = load_recipe(ROOT / "recipes" / "coto_llm.yaml")
    missing = "\n".join(missing_requirements(loaded))
    assert "commonsense_170k.json is not here; get it from https://github.com/AGI-Edgerunners/LLM-Adapters" in missing
    assert "openbookqa/test.json" in missing and "Meta-Llama-3-8B is not on this machine" in missing
    assert run_recipe(str(ROOT / "recipes" / "coto_llm_gsm8k.yaml")) == 3
    assert "grade-school-math" in capsys.readouterr().err


def test_a_language_model_needs_no_image_processor(start):
    loaded = load_recipe(SFT, [f"model={{name_or_path: {start}}}", "pretraining=null"])
    assert missing_requirements(loaded) == []
    (start / "tokenizer.json").rename(start / "away.json")
    try:
        assert "tokenizer.json" in missing_requirements(loaded)[0]
    finally:
        (start / "away.json").rename(start / "tokenizer.json")


# -- runs ----------------------------------------------------------------------------------------------------------


def test_coto_learns_a_new_command_and_shuffled_answers_teach_nothing(run, with_start, start):
    """Bar set beforehand: exact answers below 0.1 before, at least 0.8 after, below 0.2 with shuffled answers."""
    record, out = run(SFT, *SFT_SMALL, "training.max_steps=120", "control.shuffle_answers=true")
    assert record["accuracy_before"] < 0.1 and record["accuracy_control"] < 0.2, record
    assert record["accuracy_after"] >= 0.8, record
    assert record["per_task"]["complement"]["accuracy_after"] == record["accuracy_after"] and record["n"] == 100
    results = json.loads((out / "results.json").read_text())
    assert results["runs"][0]["accuracy_after"] == record["accuracy_after"]
    check_run_report(out / "results.json", out / "report.html")
    page = (out / "report.html").read_text()
    assert "accuracy control" in page and "://" not in page
    # The mask was in force: fewer adapters at first, all of them in the last quarter.
    coto = json.loads((out / "coto_config.json").read_text())
    assert len(coto["groups"]) == 2 and coto["config"]["initial_p"] == 0.1
    check_plain_peft(out, start, record["accuracy_after"])


def check_plain_peft(out, start, accuracy):
    """What the run leaves is an ordinary adapter: PEFT alone loads it, with the logits of base + scaling * B A."""
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(start), str(out)).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    merged = AutoModelForCausalLM.from_pretrained(start).eval()
    tensors = load_file(out / "adapter_model.safetensors")
    scaling = json.loads((out / "adapter_config.json").read_text())
    scaling = scaling["lora_alpha"] / scaling["r"]
    with torch.no_grad():
        for name, a in tensors.items():
            if ".lora_A." in name:
                module = merged.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
                module.weight += scaling * tensors[name.replace("lora_A", "lora_B")] @ a
    questions = command_questions(["complement"], 100, split="test", lengths=(3,))
    ids = torch.tensor([tokenizer(question.prompt)["input_ids"] for question in questions])
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-4)
        assert (adapted(ids).logits - AutoModelForCausalLM.from_pretrained(start)(ids).logits).abs().max() > 1
    replies = answer_questions(adapted, tokenizer, questions, PromptStyle(), batch_size=100, max_new_tokens=8)
    assert answer_scores(replies)["mean"]["accuracy"] == accuracy


def test_the_baseline_is_the_same_run_without_masks(run, with_start, monkeypatch):
    seen = {}

    def watched(recipe, task, args, model, processing_class, **options):
        trainer = build(recipe, task, args, model, processing_class, **options)
        callbacks = trainer.callback_handler.callbacks
        seen[recipe.coto is not None] = any(isinstance(callback, CoToCallback) for callback in callbacks)
        return trainer

    build = coto_sft_run.build_trainer
    monkeypatch.setattr(coto_sft_run, "build_trainer", watched)
    short = [*SFT_SMALL, "training.max_steps=3"]
    masked, _ = run(SFT, *short, out="a")
    whole, _ = run(SFT, *short, "coto.initial_p=1", out="b")
    plain, out = run(SFT, *short, "coto=null", out="c")
    assert seen == {True: True, False: False}
    assert not (out / "coto_config.json").exists()
    # With p = 1 from the start CoTo is the baseline, to the last bit; with a mask it is another run.
    weights = [load_file(out.parent / name / "adapter_model.safetensors") for name in "abc"]
    assert all(torch.equal(weights[1][key], weights[2][key]) for key in weights[2])
    assert any(not torch.equal(weights[0][key], weights[2][key]) for key in weights[2])
    assert plain["loss_last"] == whole["loss_last"]


@pytest.mark.parametrize("kind", ["dora", "hira", "lokr"])
def test_other_adapters_train(run, with_start, kind):
    more = ["adapter.alpha=null"] if kind == "hira" else []
    record, out = run(SFT, *SFT_SMALL, "training.max_steps=2", f"adapter.kind={kind}", *more)
    assert record["loss_last"] > 0
    tensors = load_file(out / "adapter_model.safetensors")
    assert any(kind in name or "magnitude" in name for name in tensors)


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise KeyboardInterrupt


@pytest.mark.parametrize("path", [SFT, GRPO], ids=["sft", "grpo"])
def test_a_killed_run_ends_as_the_uninterrupted_one(run, with_start, monkeypatch, path):
    """Over an epoch's end, with masks and, in GRPO, with completions in use at the checkpoint."""
    if path is SFT:
        words = [*SFT_SMALL, "data.train.0.rows=96"]  # three steps per epoch
        trainer_class = coto_sft_run.AdapterSFTTrainer
    else:
        words = [*GRPO_SMALL, "data.train.0.rows=8", "training.steps_per_generation=2", "coto.initial_p=0.3"]
        trainer_class = coto_grpo_run.AnswersGRPOTrainer
    words += ["training.max_steps=7", "training.save_strategy=steps", "training.save_steps=3"]
    _, whole = run(path, *words, out="whole")
    original = trainer_class.__init__

    def killed(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.add_callback(Kill())

    monkeypatch.setattr(trainer_class, "__init__", killed)
    with pytest.raises(KeyboardInterrupt):
        run(path, *words, out="cut")
    monkeypatch.setattr(trainer_class, "__init__", original)
    _, resumed = run(path, *words, "training.resume_from_checkpoint=auto", out="cut")
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    logs = [
        json.loads((f / "checkpoint-6" / "trainer_state.json").read_text())["log_history"] for f in (whole, resumed)
    ]
    for key in ("loss", "coto/active", "mean_token_accuracy", "reward"):
        assert [entry.get(key) for entry in logs[0]] == [entry.get(key) for entry in logs[1]]


def test_grpo_rolls_out_whole_and_updates_masked(run, with_start, monkeypatch):
    """Completions come from all adapters; the update sees the mask, held while a batch of completions is used."""
    seen = {"rollout": [], "update": [], "hold": None}
    generate, loss = CoToGRPOMixin._generate, CoToGRPOMixin._compute_loss

    def active(trainer):
        layers = trainer.coto_callback.controller.layers()
        return sum(not layer._coto_off for layer in layers) / len(list(trainer.coto_callback.controller.layers()))

    def watched_generate(self, *args, **kwargs):
        class Look:
            def __init__(self, model):
                self.handle = model.register_forward_pre_hook(lambda *_: seen["rollout"].append(active(trainer)))

        trainer = self
        look = Look(self.model.get_base_model())
        try:
            return generate(self, *args, **kwargs)
        finally:
            look.handle.remove()

    def watched_loss(self, *args, **kwargs):
        seen["update"].append(self.coto_callback.controller.active)
        seen["hold"] = self.coto_callback.config.hold
        return loss(self, *args, **kwargs)

    monkeypatch.setattr(CoToGRPOMixin, "_generate", watched_generate)
    monkeypatch.setattr(CoToGRPOMixin, "_compute_loss", watched_loss)
    record, out = run(
        GRPO, *GRPO_SMALL, "training.max_steps=6", "training.steps_per_generation=2", "coto.initial_p=0.2",
        "coto.final_p=0.2",
    )  # fmt: skip
    assert seen["rollout"] and set(seen["rollout"]) == {1.0}
    assert seen["hold"] == 2 and len(seen["update"]) == 6
    assert seen["update"][0::2] == seen["update"][1::2], "one mask while completions are in use"
    assert any(not all(mask) for mask in seen["update"])
    assert record["accuracy_after"] is not None and (out / "coto_config.json").is_file()


def test_the_reward_reads_answers(run, with_start, monkeypatch):
    """The reward in the log is the share of completions that are right, recomputed from the completions."""
    from thurl.text.rewards import ExactAnswerReward

    calls, original = [], ExactAnswerReward.__call__

    def watched(self, completions, answer, kind, log_metric=None, **columns):
        found = original(self, completions, answer, kind, log_metric=log_metric, **columns)
        calls.append([float(text.strip() == right) for text, right in zip(completions, answer, strict=True)])
        assert found == calls[-1]
        return found

    monkeypatch.setattr(ExactAnswerReward, "__call__", watched)
    record, out = run(
        GRPO, *GRPO_SMALL, "training.max_steps=2", "training.save_strategy=steps", "training.save_steps=2"
    )
    log = json.loads((out / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    assert [entry["reward"] for entry in log] == pytest.approx([sum(call) / len(call) for call in calls])
    assert all(entry["answers/unparsed"] <= 1 for entry in log)


def test_cut_rows_are_said(run, with_start, caplog):
    run(SFT, *SFT_SMALL, "training.max_steps=1", "training.max_length=7")
    assert "rows fill `training.max_length` (7)" in caplog.text


def test_ones_own_rows_and_another_task(run, start, tmp_path):
    """A user's files, an existing model's folder, and lenient numbers."""
    rows = [{"prompt": f"C {n}=", "completion": f"#### {n}", "answer": n} for n in range(100, 164)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = f"{{format: prompt_completion, file: {tmp_path}/own.jsonl, answers: number, task: own}}"
    record, out = run(
        SFT, f"model={{name_or_path: {start}}}", "pretraining=null", f"data.train.0={source}",
        f"evaluation.sources.0={source}", "evaluation.every_steps=2", "training.max_steps=2",
        "training.logging_steps=1", "training.seed=3", "control.shuffle_answers=false",
    )  # fmt: skip
    assert record["per_task"]["own"]["unparsed_before"] == 1.0, "it answers without a marker"
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2] and set(lines[0]) == {"step", "accuracy", "unparsed", "n"}
    model, tokenizer = load_language_model(str(start))
    assert tokenizer.padding_side == "left"
    assert yaml.safe_load((out / "README.md").read_text().split("---")[1])["tags"]


@pytest.mark.distributed
def test_two_processes_train_and_share_the_questions(tmp_path):
    """The start is built by one process outside the group; the two agree on masks and on every reply."""
    words = [*SFT_SMALL, "evaluation.sources.0.rows=33", "training.max_steps=4", "training.output_dir=out"]
    words += ["training.per_device_train_batch_size=8", "report.results=out/results.json", "report.html=null"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command(2, SFT, *words), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=290
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (record,) = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    assert record["n"] == 33 and 0 <= record["accuracy_after"] <= 1
    # The same questions asked by one process of the saved adapter get the same score.
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "start")
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    questions = command_questions(["complement"], 33, split="test", lengths=(3,))
    replies = answer_questions(adapted, tokenizer, questions, PromptStyle(), max_new_tokens=8)
    assert answer_scores(replies)["mean"]["accuracy"] == record["accuracy_after"]
