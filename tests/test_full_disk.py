"""Words for a file that there was no room for; real full disks are in benchmarks/reliability_stops.py."""

import errno
import os
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from thurl import full_disk
from thurl.full_disk import full_disk_problem
from thurl.recipe import launch
from thurl.training.results import write_atomically


def wrapped():
    try:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/data/a.bin")
    except OSError as error:
        try:
            raise ValueError("could not save") from error
        except ValueError as outer:
            return outer


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "{place}: No space left on device ("),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "/data/x: No space left on device ("),
        (wrapped(), f"/data/a.bin: {os.strerror(errno.EDQUOT)} ("),
        (
            SafetensorError('IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })'),
            "{place}: No space left on device (",
        ),
    ],
)
def test_the_file_and_the_cause_however_deep(tmp_path, error, words):
    place = tmp_path / "not" / "made"
    assert full_disk_problem(error, place).startswith(words.format(place=place))


def test_torch_does_not_say_why_so_the_room_decides(tmp_path, monkeypatch):
    error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 63552 vs 63444")
    assert full_disk_problem(error, tmp_path) is None
    monkeypatch.setattr(full_disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=4096))
    assert full_disk_problem(error, tmp_path) == f"{tmp_path}: No space left on device (0.0 MiB free in {tmp_path})"
    assert full_disk_problem(RuntimeError("shapes do not fit"), tmp_path) is None


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path):
    assert full_disk_problem(PermissionError(errno.EACCES, "Permission denied", "/data/x"), tmp_path) is None


def test_a_file_that_is_moved_into_place_is_named_itself(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(tmp_path / "results.json", "{}")
    assert caught.value.filename == str(tmp_path / "results.json") and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_recipe_ends_with_a_message_and_no_traceback(tmp_path, monkeypatch, capsys, number):
    def run(recipe, **_):
        raise OSError(number, os.strerror(number))

    import thurl.recipe.methods as methods

    monkeypatch.setattr(methods, "load_attribute", lambda name: run)
    recipe = SimpleNamespace(method=next(iter(methods.METHODS)), training={"output_dir": str(tmp_path)}, hub=None)
    monkeypatch.setattr("thurl.recipe.hub.without_push", lambda recipe: recipe)
    loaded = SimpleNamespace(recipe=recipe)
    if number == errno.EACCES:  # not a matter of room: a developer needs the traceback
        with pytest.raises(OSError, match="denied"):
            launch._run(loaded, "x.yaml", launch.Arguments())
        return
    assert launch._run(loaded, "x.yaml", launch.Arguments()) == 1
    said = capsys.readouterr().err
    assert f"x.yaml failed:\n  {tmp_path}: No space left on device" in said and "Make room" in said
    assert "Traceback" not in said
