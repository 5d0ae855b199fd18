import json
import os
import shutil

import pytest

from thurl.errors import DataError
from thurl.training.checkpoints import (
    MANIFEST,
    UNFINISHED,
    checkpoint_problems,
    checkpoint_settings,
    finish_checkpoint,
    last_whole_checkpoint,
    remove_old_checkpoints,
    write_manifest,
)


@pytest.fixture
def make(tmp_path):
    def checkpoint(step, **options):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "global_step").mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
        (folder / "global_step" / "shard").write_bytes(b"part")
        (folder / "empty").touch()
        write_manifest(folder, step=step, **options)
        return folder

    return checkpoint


def test_a_whole_checkpoint_has_no_problems_and_keeps_its_settings(make):
    folder = make(3, settings={"seed": 1})
    assert checkpoint_problems(folder) == [] and checkpoint_settings(folder) == {"seed": 1}
    (folder / "thurl_prompt.json").write_text("{}")  # callbacks add files afterwards
    assert checkpoint_problems(folder) == []


def _truncate(folder):
    os.truncate(folder / "model.safetensors", 100)


def _flip(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[5000] ^= 1
    (folder / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "model.safetensors has 100 bytes, not 10240"),
        (_flip, "model.safetensors has another content"),
        (lambda folder: (folder / "global_step" / "shard").unlink(), "global_step/shard is missing"),
        (lambda folder: (folder / MANIFEST).unlink(), f"{MANIFEST} is missing"),
        (lambda folder: os.truncate(folder / MANIFEST, 60), f"{MANIFEST} cannot be read"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), f"{MANIFEST} cannot be read"),
        (lambda folder: (folder / MANIFEST).write_text('{"files": {}}'), f"{MANIFEST} cannot be read"),
        (shutil.rmtree, f"{MANIFEST} is missing"),
    ],
)
def test_damage_is_found_and_the_one_before_is_taken(make, tmp_path, caplog, damage, message):
    whole, broken = make(1), make(2)
    damage(broken)
    (problem,) = checkpoint_problems(broken)
    assert message in problem
    assert last_whole_checkpoint(tmp_path) == whole
    assert (f"{broken} is not whole" in caplog.text) == broken.exists()


def test_the_last_is_the_one_written_last(make, tmp_path):
    assert last_whole_checkpoint(tmp_path) is None and last_whole_checkpoint(tmp_path / "none") is None
    make(10), make(9)
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-9", "a run taken back to an earlier step"


def test_weights_alone_and_other_folders_are_no_checkpoints(make, tmp_path, caplog):
    make(1, resumable=False)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / UNFINISHED / "checkpoint-4").mkdir(parents=True)
    assert last_whole_checkpoint(tmp_path) is None
    assert "holds weights only" in caplog.text and "best" not in caplog.text


def test_a_checkpoint_without_manifest_has_no_settings(tmp_path):
    with pytest.raises(DataError, match="not written by thurl"):
        checkpoint_settings(tmp_path)


def test_finishing_replaces_what_had_the_name(make, tmp_path):
    (tmp_path / UNFINISHED).mkdir()
    old = make(2)
    (old / "old").touch()
    new = make(3).rename(tmp_path / UNFINISHED / "checkpoint-2")
    finish_checkpoint(new, old)
    assert checkpoint_problems(old) == [] and not (old / "old").exists()
    assert list((tmp_path / UNFINISHED).iterdir()) == []


def test_the_oldest_are_removed_and_those_to_keep_stay(make, tmp_path):
    folders = {step: make(step) for step in (1, 2, 3, 4)}
    for age, step in enumerate((4, 1, 2, 3)):  # 4 is left over from before
        os.utime(folders[step], (age, age))
    remove_old_checkpoints(tmp_path, None, [])
    remove_old_checkpoints(tmp_path, 5, [])
    assert sum(folder.exists() for folder in folders.values()) == 4
    remove_old_checkpoints(tmp_path, 2, [folders[3], folders[1]])
    assert [step for step, folder in folders.items() if folder.exists()] == [1, 3]
    remove_old_checkpoints(tmp_path, 1, [folders[3]])
    assert [step for step, folder in folders.items() if folder.exists()] == [3]


def test_the_manifest_is_plain_json(make):
    manifest = json.loads((make(5) / MANIFEST).read_text())
    assert manifest["step"] == 5 and set(manifest["files"]) == {"model.safetensors", "global_step/shard", "empty"}
