"""`thurl push` against a Hub on this machine: what arrives, what stays, what is said when it fails; no token shown."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from thurl.errors import UsageError
from thurl.recipe.shipped import find_recipe
from thurl.recipe.validate import load_recipe
from thurl.training.model_card import MethodCard, model_card

from .local_hub import READER, TOKEN, LocalHub, metadata_errors


HERE = Path(__file__).parent
PASSWORD = "sesame0penUp"
SIGNATURE = "5ecret5ignature"


class Client:
    """`thurl` in a process of its own, which speaks with the Hub at `endpoint`; keeps all that was printed."""

    def __init__(self, hub, home, endpoint=None):
        environment = {**os.environ, **hub.environment(home, endpoint=endpoint), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "commands.py")],
            env=environment,
            cwd=home,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.printed = ""

    def start(self, *arguments, **environment):
        self.process.stdin.write(json.dumps([list(map(str, arguments)), environment]) + "\n")
        self.process.stdin.flush()

    def answer(self):
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        code, out, err = json.loads(line)
        self.printed += out + err
        return code, out, err

    def __call__(self, *arguments, **environment):
        self.start(*arguments, **environment)
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.printed += self.process.stderr.read()
        self.process.wait(20)
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture(scope="module")
def hub():
    with LocalHub() as server:
        yield server


@pytest.fixture(scope="module")
def thurl(hub, tmp_path_factory):
    client = Client(hub, tmp_path_factory.mktemp("client"))
    yield client
    client.close()
    assert TOKEN not in client.printed and READER not in client.printed and SIGNATURE not in client.printed


@pytest.fixture(scope="module", autouse=True)
def cut(tmp_path_factory):
    """A push whose upload is cut each time; the client waits between its tries, so it begins first."""
    folder = tmp_path_factory.mktemp("cut")
    with LocalHub() as server:
        server.fail("upload_part", 0)
        client = Client(server, folder)
        run = make_run(folder / "run")
        client.start("push", run, "--to", "me/cut", "--debug")
        yield server, client, run, state(run)
        client.close()


def make_run(folder, size=30_000):
    """What a run leaves: a model whose weights need several parts, and what must not be published."""
    rng = np.random.default_rng(0)
    (folder / "checkpoint-2").mkdir(parents=True)
    (folder / "data").mkdir()
    save_file({"w": rng.random(size, dtype=np.float32)}, folder / "model.safetensors")
    save_file({"w": rng.random(10, dtype=np.float32)}, folder / "detector.safetensors")
    shutil.copy(folder / "model.safetensors", folder / "checkpoint-2")
    for name in ("config.json", "preprocessor_config.json", "thurl_prompt.json", "checkpoint-2/config.json"):
        (folder / name).write_text('{"model_type": "tiny"}\n')
    for name in (
        "report.html",
        "log.jsonl",
        "training_args.bin",
        "data/face.png",
        "checkpoint-2/optimizer.safetensors",
    ):
        (folder / name).write_text("private")
    card = MethodCard("a method", "A Paper", "2501.02207", license="mit", task="image-classification",
                      base_model="me/base", relation="finetune", datasets=("me/d",), limits=("Few.",),
                      loading='load("USER/NAME")')  # fmt: skip
    text = model_card(card, model_name="run", settings={"steps": 2}, weights={"a": 0.5}, versions={"torch": "2"},
                      metrics={"test": {"auc": 0.75, "eer": float("nan"), "plcc": None}})  # fmt: skip
    (folder / "README.md").write_text(text)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "my run")


def state(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def retry_of(message):
    """The command in a message, as words."""
    program, *words = shlex.split(re.search(r"`(thurl push [^`]*)`", message)[1])
    assert program == "thurl"
    return words


# --- what arrives ----------------------------------------------------------------------------------------------------


def test_a_run_arrives_whole_and_alone(hub, thurl, run):
    before = state(run)
    code, out, err = thurl("push", run, "--to", "me/whole", "--private", "--json")
    assert code == 0, err
    said, repo = json.loads(out), hub.repo("me/whole")
    assert said["url"] == f"{hub.url}/me/whole" and said["type"] == "model" and repo.private
    assert said["commit"] == repo.branches["main"][-1][0] and len(repo.branches["main"]) == 2
    names = {"model.safetensors", "detector.safetensors", "config.json", "preprocessor_config.json",
             "thurl_prompt.json"}  # fmt: skip
    assert set(repo.files) == names | {"README.md", ".gitattributes"} and set(said["files"]) == names | {"README.md"}
    assert all(repo.files[name] == (run / name).read_bytes() for name in names)
    assert "upload_part" in hub.calls and "complete" in hub.calls and "verify" in hub.calls and "upload" in hub.calls
    assert state(run) == before


def test_the_card_is_one_the_hub_takes(hub, run):
    from huggingface_hub import ModelCard

    card = ModelCard(hub.repo("me/whole").files["README.md"].decode())
    assert metadata_errors(card.data.to_dict()) == []
    assert card.data.license == "mit" and card.data.base_model == "me/base" and card.data.datasets == ["me/d"]
    assert card.data.pipeline_tag == "image-classification" and card.data.base_model_relation == "finetune"
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_type) == ("auc", 0.75, "test")
    for part in ('load("me/whole")', "test eer | undefined", "test plcc | undefined", "eprint = {2501.02207}", "Few."):
        assert part in card.text, part


def test_a_second_push_sends_what_changed(hub, thurl, tmp_path):
    run = make_run(tmp_path / "run", size=100)
    assert thurl("push", run, "--to", "me/twice")[0] == 0
    sent = hub.calls.count("upload")
    save_file({"w": np.ones(3, np.float32)}, run / "detector.safetensors")
    assert thurl("push", run, "--to", "me/twice")[0] == 0
    assert hub.calls.count("upload") == sent + 1
    assert hub.repo("me/twice").files["detector.safetensors"] == (run / "detector.safetensors").read_bytes()
    assert thurl("push", run, "--to", "me/twice", "--revision", "next")[0] == 0
    assert set(hub.repo("me/twice").branches) == {"main", "next"}


def test_a_checkpoint_goes_by_itself(hub, thurl, run):
    code, _, err = thurl("push", run / "checkpoint-2", "--to", "me/checkpoint")
    assert code == 0, err
    found = hub.repo("me/checkpoint").files
    assert found["model.safetensors"] == (run / "model.safetensors").read_bytes() and "tags" in str(found["README.md"])


def test_an_adapter_leaves_the_folder_of_its_base_at_home(hub, thurl, tmp_path):
    base = tmp_path / "start"
    base.mkdir()
    (tmp_path / "run").mkdir()
    config = {"base_model_name_or_path": str(base), "peft_type": "LORA"}
    (tmp_path / "run" / "adapter_config.json").write_text(json.dumps(config))
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "run" / "adapter_model.safetensors")
    (tmp_path / "run" / "README.md").write_text(f"---\nbase_model: {base}\ntags: [lora]\n---\n\n# x\n")
    code, _, err = thurl("push", tmp_path / "run", "--to", "me/adapter")
    assert code == 0 and "--base-model" in err, err
    files = hub.repo("me/adapter").files
    assert json.loads(files["adapter_config.json"]) == {**config, "base_model_name_or_path": None}
    assert not any(str(tmp_path).encode() in data for data in files.values())
    assert thurl("push", tmp_path / "run", "--to", "me/adapter", "--base-model", "me/base")[0] == 0
    assert json.loads(hub.repo("me/adapter").files["adapter_config.json"])["base_model_name_or_path"] == "me/base"
    assert b"base_model_relation: adapter" in hub.repo("me/adapter").files["README.md"]
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text()) == config


# --- what does not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "status", "said", "reason"),
    [
        ("create", 401, "Invalid credentials in Authorization header", "HF_TOKEN"),
        ("create", 403, "You don't have the rights", "right to write"),
        ("preupload", 403, "Private repository storage limit reached", "account's storage"),
        ("lfs", 402, "Payment required", "billing"),
        ("upload", 403, "SignatureDoesNotMatch", "right to write"),
        ("commit", 413, "Payload too large", "larger than the Hub takes"),
        ("commit", 500, "Internal error", "wait some minutes"),
        ("commit", 507, "Quota exceeded", "storage is full"),
        ("commit", 0, "", "connection broke"),
    ],
)
def test_a_failed_push_says_why_and_how_to_try_again(hub, thurl, run, call, status, said, reason):
    before, name = state(run), f"me/fails-{call}-{status}"
    hub.objects.clear()
    hub.fail(call, status, said)
    try:
        code, out, err = thurl("push", run, "--to", name, "--debug")
    finally:
        hub.failures.clear()
    assert code == 4 and out == "", err
    message = next(line for line in err.splitlines() if line.startswith("error: "))
    assert said in message and reason in message and (str(status) in message or not status), message
    assert SIGNATURE not in err and state(run) == before
    repo = hub.repos.get(("model", name))
    assert repo is None or set(repo.files) == {".gitattributes"}, "nothing or all"
    code, _, err = thurl(*retry_of(message))
    assert code == 0, err
    assert hub.repo(name).files["model.safetensors"] == (run / "model.safetensors").read_bytes()


def test_who_may_not_write_is_told(hub, thurl, run):
    code, _, err = thurl("push", run, "--to", "me/reader", HF_TOKEN=READER)
    assert code == 4 and "answered 403" in err and "write token" in err
    code, _, err = thurl("push", run, "--to", "me/nobody", HF_TOKEN=None)
    assert code == 3 and "hf auth login" in err and retry_of(err)[0] == "push"
    code, _, err = thurl("push", run, "--to", "other/name", HF_TOKEN=TOKEN)
    assert code == 4 and "answered 403" in err and "other" in err


@pytest.mark.parametrize(
    ("name", "message"),
    [("a/b/c", "is no name"), (f"https://{TOKEN}@x/y", "is no name"), ("me/..", "is no name"), ("", "is no name")],
)
def test_names_that_cannot_be(thurl, run, name, message):
    code, _, err = thurl("push", run, "--to", name)
    assert code == 2 and message in err and TOKEN not in err


def test_folders_with_nothing_to_push(hub, thurl, run, tmp_path):
    calls = len(hub.calls)
    code, _, err = thurl("push", tmp_path / "no", "--to", "me/x")
    assert code == 2 and "is no folder" in err
    code, _, err = thurl("push", tmp_path, "--to", "me/x")
    assert code == 2 and "no model" in err
    shutil.copytree(run / "checkpoint-2", tmp_path / "killed" / "checkpoint-2")
    code, _, err = thurl("push", tmp_path / "killed", "--to", "me/x")
    assert code == 2 and str(tmp_path / "killed" / "checkpoint-2") in err
    half = make_run(tmp_path / "half", size=5)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (half / "model.safetensors.index.json").write_text(json.dumps(index))
    code, _, err = thurl("push", half, "--to", "me/x")
    assert code == 1 and "model-00001-of-00002.safetensors" in err and "missing" in err
    assert len(hub.calls) == calls, "nothing was asked of the Hub"


def test_a_card_that_the_hub_would_refuse(hub, thurl, tmp_path):
    run = make_run(tmp_path / "run", size=5)
    (run / "README.md").write_text("---\ntags: [a\n---\n")
    code, _, err = thurl("push", run, "--to", "me/card")
    assert code == 1 and "README.md" in err and ("model", "me/card") not in hub.repos
    (run / "README.md").write_text("---\ntags: x\npipeline_tag: [1]\n---\n")
    code, _, err = thurl("push", run, "--to", "me/card")
    assert code == 4 and "pipeline_tag" in err and set(hub.repo("me/card").files) == {".gitattributes"}


def test_a_file_with_the_token_is_not_pushed(hub, thurl, tmp_path):
    run = make_run(tmp_path / "run", size=5)
    (run / "config.json").write_text(json.dumps({"model_type": "x", "token": TOKEN}))
    code, _, err = thurl("push", run, "--to", "me/leak")
    assert code == 1 and "config.json holds your token" in err and TOKEN not in err
    assert ("model", "me/leak") not in hub.repos


def test_a_password_in_the_address_of_the_hub_is_hidden(hub, run, tmp_path):
    client = Client(hub, tmp_path, f"http://me:{PASSWORD}@127.0.0.1:{hub.port}")
    hub.fail("create", 500, "broken")
    try:
        code, _, err = client("push", run, "--to", "me/address", "--debug")
        hub.failures.clear()
        done = client("push", run, "--to", "me/address")
    finally:
        hub.failures.clear()
        client.close()
    assert code == 4 and "(hidden)@127.0.0.1" in err, err
    assert done[0] in (0, 4)
    assert PASSWORD not in client.printed and TOKEN not in client.printed


# --- before a run ----------------------------------------------------------------------------------------------------

ASKED = ("training.push_to_hub=true", "training.hub_model_id=me/x")


@pytest.mark.parametrize("recipe", ["cldyb", "coto_llm_grpo"])
def test_recipes_refuse_what_cannot_be_pushed(recipe):
    path = find_recipe(f"tiny/{recipe}")
    with pytest.raises(UsageError, match="hub_model_id: must name the repository"):
        load_recipe(path, ASKED[:1])
    with pytest.raises(UsageError) as error:
        load_recipe(path, [ASKED[0], f"training.hub_model_id=https://{TOKEN}@x/y/z", "training.hub_strategy=end"])
    text = str(error.value)
    assert "is no name of a repository" in text and "thurl push RUN/checkpoint-N" in text and TOKEN not in text
    load_recipe(path, ASKED)


def test_a_run_that_could_not_push_does_not_begin(hub, thurl, tmp_path):
    where = f"training.output_dir={tmp_path}/out"
    for token, words in ((READER, "may only read"), ("hf_thisTokenIsUnknownHere00", "401"), (None, "hf auth login")):
        code, _, err = thurl("train", "tiny/cldyb", *ASKED, where, HF_TOKEN=token)
        assert code == 3 and words in err and "push_to_hub=false" in err, err
        assert token is None or token not in err
    hub.fail("whoami", 0)
    try:
        code, _, err = thurl("train", "tiny/cldyb", *ASKED, where, HF_TOKEN=TOKEN)
    finally:
        hub.failures.clear()
    assert code == 3 and "connection broke" in err
    assert not (tmp_path / "out").exists()


# --- last, because the client has been waiting -----------------------------------------------------------------------


def test_a_connection_that_is_cut_in_the_middle_of_an_upload(cut):
    server, client, run, before = cut
    code, _, err = client.answer()
    assert code == 4 and "connection broke" in err and state(run) == before, err
    assert server.calls.count("upload_part") >= 2, "the client tries again by itself"
    assert set(server.repo("me/cut").files) == {".gitattributes"} and "commit" not in server.calls
    server.failures.clear()
    code, _, err = client(*retry_of(err))
    assert code == 0, err
    assert server.repo("me/cut").files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert TOKEN not in client.printed and SIGNATURE not in client.printed
