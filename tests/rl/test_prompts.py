from __future__ import annotations

import hashlib
import json

import pytest

from thurl.errors import DataError, UsageError
from thurl.rl import prompts
from thurl.rl.prompts import PRESETS, PromptPreset, load_prompt, save_prompt


DIGESTS = {
    "QUESTION": "702bb2ccdf513cad",
    "THINK_SUFFIX": "21c050a02337ea88",
    "DIRECT_SUFFIX": "ef0cc7be57a3010f",
    "DESCRIBE": "533ea94f9c600e73",
}


def test_strings_are_verbatim():
    # Digests of the strings of the official repository: a paraphrase or a lost space changes them.
    digest = {
        name: hashlib.sha256(getattr(prompts, name).encode()).hexdigest()[:16]
        for name in ("QUESTION", "THINK_SUFFIX", "DIRECT_SUFFIX", "DESCRIBE")
    }
    assert digest == DIGESTS
    assert PRESETS["thurl"].text("think") == prompts.QUESTION + " " + prompts.THINK_SUFFIX
    assert PRESETS["thurl"].text("direct") == prompts.QUESTION + " " + prompts.DIRECT_SUFFIX
    assert PRESETS["thurl"].text("expected") == PRESETS["thurl"].text("direct")
    assert PRESETS["thurl"].text("describe") == "Please describe the quality of this image."


def test_messages_are_one_user_turn_with_the_picture_first():
    (turn,) = PRESETS["thurl"].messages("think", image="a.png")
    assert turn["role"] == "user"
    assert turn["content"] == [
        {"type": "image", "image": "a.png"},
        {"type": "text", "text": PRESETS["thurl"].text("think")},
    ]


def test_official_preset_names_the_picture():
    (turn,) = PRESETS["official"].messages("direct")
    assert [block["type"] for block in turn["content"]] == ["text", "image", "text"]
    assert turn["content"][0]["text"] == "Picture 1: "


def test_system_turn_only_when_asked():
    turns = PromptPreset(system="Be brief.").messages("think")
    assert [turn["role"] for turn in turns] == ["system", "user"]


def test_unknown_mode():
    with pytest.raises(UsageError, match="'guess' does not exist: choose one of think, direct"):
        PRESETS["thurl"].text("guess")


def test_bad_fields_are_all_reported():
    with pytest.raises(UsageError) as error:
        PromptPreset(question=" ", vision_id="yes", system=3)
    assert len(error.value.problems) == 3


def test_round_trip(tmp_path):
    preset = PromptPreset(question="Wie gut ist dieses Bild?", vision_id=True, system="Süß", name="de")
    save_prompt(tmp_path / "model", preset)
    assert load_prompt(tmp_path / "model") == preset
    assert load_prompt(tmp_path) is None


def test_newer_file_is_read_with_a_warning_and_a_broken_one_refused(tmp_path, caplog):
    path = save_prompt(tmp_path, PRESETS["official"])
    path.write_text(json.dumps({**json.loads(path.read_text()), "tone": "kind"}))
    assert load_prompt(tmp_path) == PRESETS["official"]
    assert "tone" in caplog.text
    for broken in ("{", "[]", '{"vision_id": true}', '{"question": 3}'):
        path.write_text(broken)
        with pytest.raises(DataError, match=r"thurl_prompt\.json"):
            load_prompt(tmp_path)
