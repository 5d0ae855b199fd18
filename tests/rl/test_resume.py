"""Runs that are really killed go on bit by bit as if they had not been (issue 3, section 3)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from thurl.rl.tiny import build_tiny_qwen2_5_vl
from thurl.training.checkpoints import MANIFEST, UNFINISHED, checkpoint_problems, last_whole_checkpoint


SCRIPT = Path(__file__).with_name("resumable_run.py")
# Half a minute to a minute on an idle core; several times that beside other work is no failure.
pytestmark = pytest.mark.timeout(900)
CLOCK = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model, processor = build_tiny_qwen2_5_vl(0, hidden=32, heads=1, vision_hidden=32, vision_heads=1)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    for index in range(8):
        Image.fromarray(np.full((56 + 28 * (index % 2), 56, 3), 30 * index, np.uint8)).save(path / f"{index}.png")
    return path


def _environment():
    quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **quiet, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def _run(folder, runs, limit=800):
    """Run one after the other; the exit codes of every process of each, and what they said."""
    settings = json.dumps([{**run, "output": str(run["output"])} for run in runs])
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), settings],
        capture_output=True,
        text=True,
        env=_environment(),
        timeout=limit,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(runs[0]["output"].with_name("codes.json").read_text()), done.stderr


def _chain(output, *runs, **common):
    return [{"output": output, "attempt": attempt, **common, **run} for attempt, run in enumerate(runs)]


def _notes(output, rank=0):
    """attempt -> step -> what the process noted in it, in order."""
    attempts = {}
    for path in sorted(output.parent.glob(f"{output.name}.notes-*.{rank}.jsonl")):
        steps = attempts.setdefault(int(path.name.split("-")[-1].split(".")[0]), {})
        for line in path.read_text().splitlines():
            step, kind, value = json.loads(line)
            steps.setdefault(step, []).append((kind, value))
    return attempts


def _packed_calls(output):
    return int(Path(f"{output}.0.packed").read_text())


def _history(output, rank=0):
    log = json.loads(Path(f"{output}.{rank}.json").read_text())
    timed = ("timing/", *CLOCK)
    return [{name: value for name, value in entry.items() if not name.startswith(timed)} for entry in log]


def _assert_equal(output, reference, processes=1):
    for rank in range(processes):
        expected = _notes(reference, rank)[0]
        assert {kind for notes in expected.values() for kind, _ in notes} == {"rewards", "loss"}
        assert len({str(notes) for notes in expected.values()}) == len(expected), "every step must be its own"
        for attempt, steps in _notes(output, rank).items():
            for step, notes in steps.items():
                assert notes == expected[step], f"process {rank}, attempt {attempt}, step {step}"
        assert _history(output, rank) == _history(reference, rank)
        weights, theirs = load_file(f"{output}.{rank}.safetensors"), load_file(f"{reference}.{rank}.safetensors")
        assert set(weights) == set(theirs)
        for name, value in weights.items():
            assert torch.equal(value, theirs[name]), name


def _copy(source, target):
    shutil.copytree(source, target)
    return target


def _kills(*steps):
    """Started again after every kill, which comes as soon as the checkpoint of the step is there."""
    return [{"resume": "auto", "kill_at": step} for step in steps] + [{"resume": "auto"}]


SPARSE = {"save_steps": 3, "save_total_limit": 1}
CHAINS = {
    # The uninterrupted run, with a checkpoint after every step.
    "reference": ([{}], {}, [0]),
    # Within a generation cycle, after one, at the end of an epoch, at the very end.
    "killed": (_kills(1, 3, 4, 8, 10, 11), {}, [-9] * 6 + [0]),
    # Steps after the last checkpoint are done again; what is half written is no checkpoint.
    "writing": (
        [{"kill_while_writing": 6}, {"resume": "auto", "kill_while_writing": 9}, {"resume": "auto"}],
        {"fields": SPARSE},
        [-9, -9, 0],
    ),
    "disk": ([{"full_disk_at": 3, "fields": {"save_total_limit": 1}}, {"resume": "auto"}], {}, [1, 0]),
    "term": ([{"term_at": 6, "fields": {"save_strategy": "no"}}, {"resume": "auto"}], {}, [143, 0]),
}


@pytest.fixture(scope="module")
def place(folder, tmp_path_factory):
    """All chains in one launch: folder of their outputs, and what they said."""
    path = tmp_path_factory.mktemp("runs")
    runs = [run for name, (chain, common, _) in CHAINS.items() for run in _chain(path / name, *chain, **common)]
    codes, said = _run(folder, runs)
    assert codes == [[code] for _, _, expected in CHAINS.values() for code in expected], said[-4000:]
    return path, said


@pytest.mark.parametrize("name", [name for name in CHAINS if name != "reference"])
def test_interrupted_runs_end_as_the_uninterrupted_one(place, name):
    path, _ = place
    _assert_equal(path / name, path / "reference")
    assert not (path / name / UNFINISHED).exists()


def test_what_was_done_twice_and_what_not(place):
    path, said = place
    steps = {
        name: [(min(notes), max(notes)) for _, notes in sorted(_notes(path / name).items())]
        for name in CHAINS
        if name != "reference"
    }
    assert steps["killed"] == [(0, 0), (1, 2), (3, 3), (4, 7), (8, 9), (10, 10)], "the last attempt has nothing to do"
    assert steps["writing"] == [(0, 5), (3, 8), (6, 10)]
    assert [folder.name for folder in (path / "writing").glob("checkpoint-*")] == ["checkpoint-11"]
    assert steps["disk"] == [(0, 2), (2, 10)]
    assert "The checkpoint of step 3 could not be written" in said
    assert f"The last whole one is {path / 'disk' / 'checkpoint-2'}. Make room" in said
    assert steps["term"] == [(0, 5), (6, 10)]
    assert "StoppedError: SIGTERM: stopped after step 6 of 11" in said


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(folder, place, tmp_path):
    reference, output = place[0] / "reference", tmp_path / "run"
    for step in (3, 4, 5, 6, 7):
        shutil.copytree(reference / f"checkpoint-{step}", output / f"checkpoint-{step}")
    for step, name in ((7, "model.safetensors"), (5, "optimizer.pt")):
        file = output / f"checkpoint-{step}" / name
        file.write_bytes(file.read_bytes()[:-100])
    (output / "checkpoint-4" / MANIFEST).unlink()
    state = output / "checkpoint-6" / "thurl_resume_0.safetensors"
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    explicit = {"resume": str(output / "checkpoint-7")}
    other = {"resume": "auto", "fields": {"num_iterations": 1}}
    codes, said = _run(folder, _chain(output, explicit, other, {"resume": "auto"}))
    assert codes == [[2], [2], [0]], said[-4000:]
    assert "checkpoint-7 cannot be resumed from: model.safetensors has" in said
    assert f"The last whole one is {output / 'checkpoint-3'}" in said
    assert "`num_iterations` was 2, now 1" in said
    assert "checkpoint-6 is not whole and is left out: thurl_resume_0.safetensors has another content" in said
    assert "checkpoint-5 is not whole and is left out: optimizer.pt has" in said
    assert f"checkpoint-4 is not whole and is left out: {MANIFEST} is missing" in said
    assert f"Resuming from {output / 'checkpoint-3'}" in said
    assert {attempt: min(steps) for attempt, steps in _notes(output).items()} == {2: 3}
    _assert_equal(output, reference)


def test_checkpoints_hold_nothing_pickled_of_ours(place):
    reference = place[0] / "reference"
    whole = last_whole_checkpoint(reference)
    assert whole == reference / "checkpoint-11" and checkpoint_problems(whole) == []
    ours = {path.name for path in whole.iterdir() if path.name.startswith("thurl_")}
    assert ours == {MANIFEST, "thurl_resume_0.json", "thurl_resume_0.safetensors"}
    inside, between = (load_file(reference / f"checkpoint-{step}" / "thurl_resume_0.safetensors") for step in (6, 8))
    assert sum(map(torch.numel, inside.values())) > 10 * sum(map(torch.numel, between.values())), "no rollouts at 8"


# Two processes, in which one may die alone: what ends with 1 is the one left over. It must not wait for the dead one.
# The last start is in the second epoch, whose order accelerate does not pass on to the sampler of a resumed run.
MISHAPS = [
    ({"kill_at": 3, "kill_rank": 1}, [1, -9], 0),
    ({"kill_while_writing": 6}, [-9, 1], 3),
    ({"term_at": 9}, [143, 143], 5),
    ({}, [0, 0], 9),
]


@pytest.fixture(scope="module")
def pairs(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs")
    runs = _chain(path / "reference", {})
    runs += _chain(path / "run", *({**mishap, "resume": "auto"} for mishap, _, _ in MISHAPS))
    checkpoint = str(path / "reference" / "checkpoint-9")
    # 2 processes x 32 rows x 2 steps are 32 pictures of 4 completions; there are 8.
    runs += _chain(path / "few", {"fields": {"per_device_train_batch_size": 32}})
    runs = [{**run, "processes": 2} for run in runs] + _chain(path / "alone", {"resume": checkpoint})
    codes, said = _run(folder, runs)
    assert codes == [[0, 0], *(code for _, code, _ in MISHAPS), [2, 2], [2]], said[-4000:]
    return path, said


@pytest.mark.distributed
def test_two_processes_end_as_the_uninterrupted_ones(pairs):
    path, _ = pairs
    _assert_equal(path / "run", path / "reference", processes=2)
    starts = [min(steps) for _, steps in sorted(_notes(path / "run", 1).items())]
    assert starts == [start for _, _, start in MISHAPS]


@pytest.mark.distributed
def test_another_number_of_processes_is_refused(pairs):
    path, said = pairs
    assert "`processes` was 2, now 1" in said and not _notes(path / "alone")


@pytest.mark.distributed
def test_too_few_pictures_for_all_processes_are_refused_on_each(pairs):
    path, said = pairs
    assert said.count("2 blocks of 4 images do not fill one generation batch of 8 blocks") == 2
    assert not _notes(path / "few")


ZERO3 = {"deepspeed": str(Path(__file__).parents[2] / "deepspeed_configs" / "zero3.json"), "processes": 2}
ZERO2 = {**ZERO3, "deepspeed": ZERO3["deepspeed"].replace("zero3", "zero2")}
PREFIX = {"prefix_sharing": "on"}
ACCUMULATION = {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "max_steps": 10}


@pytest.mark.slow
@pytest.mark.distributed
def test_zero3_and_shared_prefixes(folder, tmp_path):
    """DeepSpeed's own files are part of the checkpoint: damage to one of them is found."""
    alone, sharded = tmp_path / "prefix", tmp_path / "zero3"
    short = {**PREFIX, "fields": {"max_steps": 6}}
    truncated = [str(sharded), "checkpoint-3/global_step3/*rank_1*optim_states.pt"]
    runs = [
        *_chain(Path(f"{alone}-reference"), {}, **short),
        *_chain(alone, *_kills(3), **short),
        *_chain(Path(f"{sharded}-reference"), {}, **ZERO3, **short),
        *_chain(sharded, {"kill_at": 3}, {"resume": "auto", "truncate": truncated}, **ZERO3, **short),
        *_chain(tmp_path / "zero2", {"resume": str(sharded / "checkpoint-5")}, **ZERO2, **short),
    ]
    codes, said = _run(folder, runs)
    assert codes == [[0], [-9], [0], [0, 0], [-9, -9], [0, 0], [2, 2]], said[-4000:]
    _assert_equal(alone, Path(f"{alone}-reference"))
    assert _packed_calls(alone) > 0 < _packed_calls(Path(f"{sharded}-reference"))
    assert "checkpoint-3 is not whole and is left out: global_step3/" in said
    assert f"Resuming from {sharded / 'checkpoint-2'}" in said
    assert "`zero_stage` was 3, now 2" in said
    _assert_equal(sharded, Path(f"{sharded}-reference"), processes=2)


VARIANTS = {
    "plain": {},
    "accumulation": {"fields": ACCUMULATION},
    "one_pass": {"fields": {"num_iterations": 1}},
    "adapter_with_dropout": {"lora": True},
    "prefix": PREFIX,
    "prefix_accumulation_adapter": {**PREFIX, "lora": True, "fields": ACCUMULATION},
    "checkpointing_and_constant_rate": {
        "fields": {"gradient_checkpointing": True, "lr_scheduler_type": "constant", "optim": "adafactor"}
    },
}
CASES = [
    *((name, 1, settings) for name, settings in VARIANTS.items()),
    *((name, 2, settings) for name, settings in VARIANTS.items()),
    ("zero2_accumulation", 2, {**ZERO2, "fields": ACCUMULATION}),
    ("zero3_accumulation", 2, {**ZERO3, "fields": ACCUMULATION}),
    ("zero3_prefix", 2, {**ZERO3, **PREFIX}),
    ("zero3_adapter", 2, {**ZERO3, "lora": True}),
]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("settings", "processes"),
    [pytest.param(settings, processes, id=f"{name}-{processes}") for name, processes, settings in CASES],
)
def test_killed_after_every_step(folder, tmp_path, settings, processes):
    fields = dict(settings.get("fields", {}))
    if "gradient_accumulation_steps" in fields:
        fields["per_device_train_batch_size"] = 4 // processes
    common = {**settings, "processes": processes, "fields": fields}
    steps = range(1, fields.get("max_steps", 11) + 1)
    runs = _chain(tmp_path / "reference", {}, **common) + _chain(tmp_path / "run", *_kills(*steps), **common)
    codes, said = _run(folder, runs, limit=3500)
    assert codes == [[code] * processes for code in (0, *[-9] * len(steps), 0)], said[-4000:]
    _assert_equal(tmp_path / "run", tmp_path / "reference", processes)
