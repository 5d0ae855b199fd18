from __future__ import annotations

import pytest
from PIL import Image

from thurl.data import photos
from thurl.errors import DataError, MissingRequirementError


def test_splits_are_disjoint_and_all_photographs_open():
    seen: dict[str, bytes] = {}
    for split in photos.SPLITS:
        pictures = photos.bundled_photos(split)
        assert len(pictures) >= 3
        for name, picture in pictures.items():
            assert picture.mode == "RGB" and min(picture.size) >= 256
            assert name not in seen and picture.tobytes() not in seen.values()
            seen[name] = picture.tobytes()
    assert set(seen) == set(photos.PHOTOS)


def test_training_groups_share_no_photograph():
    five, hundred = (set(photos.bundled_photos("train", group=group)) for group in ("five", "hundred"))
    assert five and hundred and not five & hundred
    assert five | hundred == set(photos.bundled_photos("train"))


def test_every_photograph_states_source_and_licence():
    for photo in photos.PHOTOS.values():
        assert any(word in photo.source for word in ("CC0", "CC BY", "public domain", "no known", "not stated"))


def test_unknown_names_are_refused():
    with pytest.raises(DataError, match="train, validation, held_out"):
        photos.bundled_photos("test")
    with pytest.raises(DataError, match="five, hundred"):
        photos.bundled_photos("train", group="ten")


def test_missing_package_and_file_are_listed_together(monkeypatch):
    wrong = {
        "a": photos.Photo("no_such_package_here", "x.png", "train", "five", "CC0"),
        "b": photos.Photo("matplotlib", "no/such.png", "train", "five", "CC0"),
    }
    monkeypatch.setattr(photos, "PHOTOS", wrong)
    with pytest.raises(MissingRequirementError) as caught:
        photos.bundled_photos("train")
    assert len(caught.value.problems) == 2


def test_folder_photos(tmp_path):
    for name in ("b.jpg", "a.PNG", "note.txt"):
        if name.endswith("txt"):
            (tmp_path / name).write_text("x")
        else:
            Image.new("L", (20, 10), 7).save(tmp_path / name)
    pictures = photos.folder_photos(tmp_path)
    assert list(pictures) == ["a", "b"] and pictures["a"].mode == "RGB" and pictures["b"].size == (20, 10)
    with pytest.raises(MissingRequirementError, match="no picture"):
        photos.folder_photos(tmp_path / "nowhere")
