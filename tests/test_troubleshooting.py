"""docs/troubleshooting.md quotes what the program says.

Every quoted message is PROVOKED (`troubleshooting_cases.py`): the real function or command fails on a tiny input, and
the page's words must be in what it says. Those that need a GPU, a server, long training or an optional library are
WRITTEN: the page's words must be in a text of the named file. The capital words of PLACEHOLDERS in a quote stand for
anything.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from .troubleshooting_cases import PROVOKED


ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
PLACEHOLDERS = re.compile(r"\b(?:FILE|FOLDER|NAME|KEY|VALUE|TEXT|REASON|LIST|PLACE|URL|COMMAND|N)\b")
SYMPTOM = re.compile(r"\*\*(`+) ?(.+?) ?\1\*\*")


def paragraphs():
    text = re.sub(r"^```.*?^```", "", PAGE, flags=re.M | re.S)
    return [" ".join(part.split()) for part in text.split("\n\n")]


def quotes():
    found = [match[2] for part in paragraphs() for match in SYMPTOM.finditer(part)]
    return found + re.findall(r"^\| `(\d{3}, .+?)` \|", PAGE, re.M)


def pattern(quote):
    return ".+?".join(map(re.escape, PLACEHOLDERS.split(quote)))


# --- provoked --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quote", PROVOKED)
def test_the_program_says_what_the_page_quotes(quote, tmp_path, monkeypatch):
    said = PROVOKED[quote](tmp_path, monkeypatch)
    assert re.search(pattern(quote), " ".join(said.split())), said


# --- written ---------------------------------------------------------------------------------------------------------

WRITTEN = {
    "no Python 3.11, 3.12 or 3.13 with venv found; name one": "Makefile",
    "pip failed; its whole log": "Makefile",
    "the cascade face detector needs scikit-image; pip install thurl[vision]": "src/thurl/forensics/faces.py",
    "--device NAME cannot be used (REASON): use cpu": "src/thurl/cli/devices.py",
    "the model takes no such strip": "src/thurl/data/images.py",
    "pictures have a MOS outside N to N": "src/thurl/rl/dataset.py",
    "not a video, or a broken one (REASON); copy it again": "src/thurl/forensics/deepfake/video.py",
    "of another encoder than the detector's": "src/thurl/forensics/exif/evaluation.py",
    "the detector was made with the encoder": "src/thurl/forensics/exif/detector.py",
    "the part NAME has no LIST face; nothing can be": "src/thurl/recipe/deepfake_data.py",
    "they would be random. Save the whole model again.": "src/thurl/rl/loading.py",
    "the edit was made for a model with the fingerprint": "src/thurl/editing/delta.py",
    "models of timm need it: pip install 'thurl[vision]'": "src/thurl/vision_models/timm_models.py",
    "holds a model already; choose another folder": "src/thurl/iqa/afine/official.py",
    "does not fit; the file is damaged. Copy it again": "src/thurl/distillation/ddr_bytes.py",
    "bytes of pictures, at most N are decoded": "src/thurl/distillation/ddr_limits.py",
    "pictures got a score; the reasons stand above and in the error column": "src/thurl/cli/quality.py",
    "the gradient of slice N is not finite": "src/thurl/distillation/joint_trainer.py",
    "diverged learning task": "src/thurl/continual/gradient/base.py",
    "the loss is VALUE at step N, nothing is edited": "src/thurl/editing/edit.py",
    "The reward function `NAME`": "src/thurl/rl/checked_reward.py",
    "The vLLM server at URL is lost: REASON": "src/thurl/rl/vllm_server.py",
    "vLLM and the trainer disagree on the log-probabilities of sampled tokens by N nats": "src/thurl/rl/trainer.py",
    "is not possible: REASON. Use `merged`.": "src/thurl/rl/vllm_engine.py",
    "The bi-level step needs whole parameters on every process": "src/thurl/training/method_trainer.py",
    "a process that trained one of N learners died, most likely for lack of memory": (
        "src/thurl/continual/evaluator.py"
    ),
    "does not see what process 0 writes into FOLDER": "src/thurl/continual/ranks.py",
    "is less than the N bits of networks and header alone": "src/thurl/recipe/distill_stages.py",
    "could not be written: LIST. The last whole one is": "src/thurl/training/exact_resume.py",
    "Checkpoints are as they were. Make room and start the same command again": "src/thurl/recipe/launch.py",
    "Step N of N: VALUE. The training stopped and saved nothing of this step": "src/thurl/training/finite.py",
    "SIGTERM: stopped after step N of N, saved as FOLDER": "src/thurl/training/exact_resume.py",
}
OF_OTHERS = {"operator torchvision::nms does not exist"}
"""Messages of other programs, which nothing here can hold to."""


def texts(path):
    """String constants of a Python file, a value put in as one sign; whole other files."""
    code = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return [code]

    def text(node):
        if isinstance(node, ast.JoinedStr):
            return "".join(text(part) for part in node.values)
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "\0"

    return [text(node) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.JoinedStr | ast.Constant)]


@pytest.mark.parametrize("quote", WRITTEN)
def test_the_source_holds_what_the_page_quotes(quote):
    found = texts(ROOT / WRITTEN[quote])
    assert any(re.search(pattern(quote), text) for text in found), f"{quote!r} is in no text of {WRITTEN[quote]}"


# --- the page --------------------------------------------------------------------------------------------------------


def test_every_quote_is_checked_and_every_check_is_quoted():
    quoted = quotes()
    assert len(quoted) == len(set(quoted))
    assert not set(PROVOKED) & set(WRITTEN)
    assert set(quoted) == set(PROVOKED) | set(WRITTEN) | OF_OTHERS


def test_every_entry_has_a_fix():
    entries = [part for part in paragraphs() if part.startswith("**")]
    assert len(entries) > 60
    assert [part[:60] for part in entries if part.count("*Fix:*") != 1] == []
