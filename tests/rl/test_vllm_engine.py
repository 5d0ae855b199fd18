import inspect
from types import SimpleNamespace

import pytest
from peft import LoraConfig
from transformers import AutoModelForImageTextToText
from trl import GRPOTrainer
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration

from thurl.errors import MissingRequirementError, UsageError
from thurl.rl import vllm_cpu
from thurl.rl.rollouts import RolloutOptions
from thurl.rl.vllm_adapter import adapter_engine_arguments, unsupported
from thurl.rl.vllm_engine import EnginePlan, WeightSync, built_with, plan_engine


LANGUAGE = {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*visual.*"}


def _args(**fields):
    defaults = {
        "use_cpu": False,
        "bf16": False,
        "fp16": False,
        "vllm_mode": "colocate",
        "vllm_enable_sleep_mode": False,
        "fsdp": [],
    }
    return SimpleNamespace(**defaults | fields)


@pytest.fixture(scope="module")
def model(tiny_folder):
    return AutoModelForImageTextToText.from_pretrained(tiny_folder)


def test_trl_still_has_what_is_replaced():
    build = inspect.getsource(VLLMGeneration._init_vllm)
    assert "self.llm = LLM(\n" in build and "dtype=" not in build and "enable_lora" not in build
    assert "from vllm import LLM" in inspect.getsource(vllm_generation)
    sync = inspect.getsource(VLLMGeneration.sync_weights)
    assert "for name, param in self._iter_named_params()" in sync
    # When TRL clears the encoded pictures itself, ours can go.
    assert "reset_prefix_cache()" in sync and "reset_encoder_cache" not in sync
    assert "self.llm.generate(vllm_prompts, sampling_params=sampling_params" in inspect.getsource(
        VLLMGeneration.generate
    )
    turn = inspect.getsource(GRPOTrainer._generate_single_turn)
    assert "if self.state.global_step != self._last_loaded_step:" in turn
    assert "self._last_loaded_step = -1" in inspect.getsource(GRPOTrainer.__init__)


def test_an_engine_is_built_with_more_arguments_only_inside(monkeypatch):
    monkeypatch.setattr(vllm_generation, "LLM", lambda **arguments: arguments, raising=False)
    with pytest.raises(RuntimeError), built_with({"dtype": "float32"}):
        assert vllm_generation.LLM(model="m") == {"model": "m", "dtype": "float32"}
        raise RuntimeError
    assert vllm_generation.LLM(model="m") == {"model": "m"}


@pytest.mark.parametrize(
    ("fields", "wish", "dtype"),
    [
        ({}, "auto", "float32"),
        ({"bf16": True}, "auto", "bfloat16"),
        ({"fp16": True}, "auto", "float16"),
        ({"bf16": True}, "float32", "float32"),
    ],
)
def test_the_engine_computes_as_the_trainer_does(model, fields, wish, dtype):
    plan = plan_engine(RolloutOptions(engine_dtype=wish), _args(**fields), model)
    assert plan.arguments == {"dtype": dtype} and plan.adapter is None and not plan.cpu


def test_a_path_leaves_the_dtype_to_vllm():
    assert plan_engine(RolloutOptions(), _args(), "folder").arguments == {}


@pytest.mark.parametrize(
    ("config", "fields", "reason"),
    [
        ({}, {"vllm_mode": "server"}, "merged weights"),
        ({}, {"vllm_enable_sleep_mode": True}, "forgets"),
        ({}, {"fsdp": ["full_shard"]}, "FSDP"),
        ({"rank_pattern": {"q_proj": 4}}, {}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save"),
        ({"use_dora": True}, {}, "use_dora"),
        ({"bias": "all"}, {}, "bias"),
        ({"r": 1000}, {}, "up to 512"),
        ({"exclude_modules": None}, {}, "vision tower"),
    ],
)
def test_adapters_vllm_cannot_apply(model, config, fields, reason):
    config = LoraConfig(**{"r": 8, **LANGUAGE, **config})
    assert reason in unsupported(config, _args(**fields), model)
    assert plan_engine(RolloutOptions(), _args(**fields), model, config).adapter is None
    with pytest.raises(UsageError, match="is not possible"):
        plan_engine(RolloutOptions(adapter_sync="adapter"), _args(**fields), model, config)


def test_an_adapter_of_the_language_model_goes_alone(model):
    config = LoraConfig(r=6, **LANGUAGE)
    plan = plan_engine(RolloutOptions(adapter_sync="adapter"), _args(), model, config)
    assert plan.adapter is config
    assert plan.arguments == {"dtype": "float32", **adapter_engine_arguments(config)}
    assert plan.arguments["max_lora_rank"] == 8
    assert plan_engine(RolloutOptions(adapter_sync="merged"), _args(), model, config).adapter is None
    with pytest.raises(UsageError, match="needs a LoRA adapter"):
        plan_engine(RolloutOptions(adapter_sync="adapter"), _args(), model)


def test_a_cpu_needs_its_own_build(model, monkeypatch):
    monkeypatch.setattr(vllm_cpu, "vllm_is_for_cpu", lambda: False)
    with pytest.raises(MissingRequirementError, match="make test-vllm"):
        plan_engine(RolloutOptions(), _args(use_cpu=True), model)
    monkeypatch.setattr(vllm_cpu, "vllm_is_for_cpu", lambda: True)
    monkeypatch.setattr(vllm_cpu.os, "environ", {"VLLM_CPU_KVCACHE_SPACE": "7"})
    assert plan_engine(RolloutOptions(), _args(use_cpu=True), model).cpu
    assert vllm_cpu.os.environ["VLLM_CPU_KVCACHE_SPACE"] == "7"  # what a person set is kept
    assert vllm_cpu.os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_on_gpus_trl_synchronises_and_the_encoded_pictures_are_forgotten(model):
    calls = []

    class Generation:
        llm = SimpleNamespace(
            llm_engine=SimpleNamespace(reset_encoder_cache=lambda: calls.append("pictures")), generate=None
        )

        def _iter_named_params(self):
            yield from model.named_parameters()

        def sync_weights(self):
            calls.append(sum(1 for _ in self._iter_named_params()))

    generation = Generation()
    sync = WeightSync(generation, EnginePlan({}, None, cpu=False))
    generation.sync_weights()
    parameters = list(model.parameters())
    assert calls == [len(parameters), "pictures"]
    assert sync.record.bytes == sum(value.nbytes for value in parameters) and sync.record.seconds >= 0


@pytest.mark.vllm
def test_vllm_still_takes_these_ranks():
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    from thurl.rl.vllm_adapter import RANKS

    assert get_args(MaxLoRARanks) == RANKS
