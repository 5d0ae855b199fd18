import inspect
import json
import logging
import os
import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

from thurl.errors import MissingRequirementError, ThurlError
from thurl.rl import vllm_server
from thurl.rl.vllm_server import guard_server, is_alive, serve_command, server_url, wait_for_server


class _Health(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self):
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def listening():
    """Start a server answering /health with a status; gives its URL."""
    servers = []

    def start(status=200):
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answer", (_Health,), {"status": status}))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}", server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(vllm_server, "_RETRY_SECONDS", 0.05)


def test_trl_still_has_what_is_guarded():
    assert "self.vllm_client.generate(" in inspect.getsource(VLLMGeneration.generate)
    assert "self.vllm_client.update_named_params(" in inspect.getsource(VLLMGeneration.sync_weights)
    assert 'raise Exception(f"Request failed: ' in inspect.getsource(VLLMClient._post)
    assert "self.session = requests.Session()" in inspect.getsource(VLLMClient.__init__)
    # The client takes the server's host and port as `server_url` does.
    assert 'base_url = f"http://{self.server_host}:{self.server_port}"' in inspect.getsource(VLLMGeneration._init_vllm)


def test_address_and_command():
    args = SimpleNamespace(vllm_server_base_url=None, vllm_server_host="node7", vllm_server_port=8123)
    assert server_url(args) == "http://node7:8123"
    args.vllm_server_base_url = "http://other:9000/"
    assert server_url(args) == "http://other:9000"
    command = serve_command("a folder/model", server_url(args))
    assert command.startswith("VLLM_SERVER_DEV_MODE=1 vllm serve 'a folder/model' --port 9000 ")
    from trl.scripts.vllm_serve import ScriptArguments, build_command

    theirs = build_command(ScriptArguments("m"))
    for switch in ("--weight-transfer-config", "--logprobs-mode", "--max-logprobs"):
        assert switch in theirs and f"{switch} " in command
        assert theirs[theirs.index(switch) + 1] in command


def test_a_server_that_starts_late_is_waited_for(listening, caplog):
    url, server = listening(503)
    assert not is_alive(url)
    threading.Timer(0.3, lambda: setattr(server.RequestHandlerClass, "status", 200)).start()
    with caplog.at_level(logging.INFO):
        wait_for_server(url, 20, "the command")
    assert "Waiting up to 20 s for the vLLM server at " + url in caplog.text and "is up after" in caplog.text


@pytest.mark.parametrize("status", [None, 503])
def test_no_server_in_time(listening, status):
    # TRL waits without end when something answers with another status.
    url = listening(status)[0] if status else "http://127.0.0.1:9"
    with pytest.raises(MissingRequirementError, match="within 0 s") as caught:
        wait_for_server(url, 0.2, "vllm serve MODEL")
    assert url in str(caught.value) and "vllm serve MODEL" in str(caught.value)
    assert "vllm_server_timeout" in str(caught.value)


class _Refused(Exception):
    """As `requests` raises it; that package comes with vLLM."""

    __module__ = "requests.exceptions"


class _Session:
    def post(self, url):
        with urllib.request.urlopen(urllib.request.Request(url, method="POST")) as response:
            status = response.status
        return SimpleNamespace(raise_for_status=lambda: status)


def _generation(error=None, main=True):
    def call(*args, **kwargs):
        if error is not None:
            raise error
        return "done"

    return SimpleNamespace(
        sync_weights=call,
        generate=call,
        accelerator=SimpleNamespace(is_main_process=main),
        vllm_client=SimpleNamespace(session=_Session()),
    )


def test_a_lost_server_names_what_to_do(listening, tmp_path):
    url, _ = listening()
    for error in (_Refused("refused"), Exception("Request failed: 500, engine died")):
        generation = _generation(error)
        guard_server(generation, url, str(tmp_path), "vllm serve MODEL")
        for call in (generation.sync_weights, generation.generate):
            with pytest.raises(ThurlError, match="is lost") as caught:
                call()
            assert url in str(caught.value) and str(error) in str(caught.value)
            assert "vllm serve MODEL" in str(caught.value) and "no whole checkpoint" in str(caught.value)
    own = _generation(ZeroDivisionError())  # an error of ours stays what it is
    guard_server(own, url, str(tmp_path), "")
    with pytest.raises(ZeroDivisionError):
        own.generate()


def test_a_dead_server_is_noticed_before_it_is_used(tmp_path):
    generation = _generation()
    guard_server(generation, "http://127.0.0.1:9", str(tmp_path), "")
    with pytest.raises(ThurlError, match="does not answer any more"):
        generation.sync_weights()
    other = _generation(main=False)  # the other processes never talk to it
    guard_server(other, "http://127.0.0.1:9", str(tmp_path), "")
    assert other.generate() == "done" and other.sync_weights() is None


def test_pictures_are_forgotten_with_each_sync(listening, tmp_path):
    url, server = listening()
    posts = []
    server.RequestHandlerClass.do_POST = lambda self: (posts.append(self.path), _Health.do_GET(self))
    generation = _generation()
    guard_server(generation, url, str(tmp_path), "")
    generation.sync_weights()
    assert posts == ["/reset_encoder_cache"]
    assert generation.generate() == "done" and len(posts) == 1


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_a_run_survives_the_death_of_its_server(tiny_folder, tmp_path):
    """Real processes on loopback; the server is killed after the second step (tests/rl/vllm_runs.py)."""
    (tmp_path / "pictures").mkdir()
    output = tmp_path / "run"
    settings = {
        "case": "server",
        "folder": str(tiny_folder),
        "output": str(output),
        "pictures": f"{tmp_path}/pictures",
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("vllm_runs.py")), json.dumps([settings])],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads((output / "result.json").read_text())

    assert seen["url"] in seen["error"] and str(output / "checkpoint-2") in seen["error"]
    assert "training.resume_from_checkpoint=auto" in seen["error"] and "vllm serve" in seen["error"]
    assert len(seen["differences"]) == 2 and max(seen["differences"]) < 0.05
    # The new server has the start weights; the current ones are there before the first completion.
    resumed = seen["resumed"]
    assert resumed.index("/update_weights") < resumed.index("/inference/v1/generate")
    assert resumed.count("/update_weights") == 2 == resumed.count("/reset_encoder_cache")
    assert max(seen["resumed differences"]) < 0.05
    # Control: without that sync the completions come from another model.
    assert "/update_weights" not in seen["unsynchronised"]
    assert min(seen["unsynchronised differences"]) > 0.5
