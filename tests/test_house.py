"""The repository as a product: light imports, banned APIs, one version everywhere, make and the build."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from thurl.version import __version__


ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def relative(path):
    return path.relative_to(ROOT).as_posix()


# --- imports ---------------------------------------------------------------------------------------------------------

HEAVY = ["torch", "transformers", "trl", "peft", "accelerate", "datasets", "torchvision", "vllm", "deepspeed"]
LIGHT = [
    "thurl",
    "thurl.cli",
    "thurl.coto",
    "thurl.coto.config",
    "thurl.coto.groups",
    "thurl.data.labels",
    "thurl.distillation.controller",
    "thurl.distillation.ddr",
    "thurl.errors",
    "thurl.forensics.crop",
    "thurl.forensics.deepfake",
    "thurl.forensics.deepfake.augmentations",
    "thurl.forensics.deepfake.checks",
    "thurl.forensics.deepfake.crops",
    "thurl.forensics.deepfake.deepfakebench",
    "thurl.forensics.deepfake.drawn_faces",
    "thurl.forensics.deepfake.expansion",
    "thurl.forensics.deepfake.ffpp",
    "thurl.forensics.deepfake.graph",
    "thurl.forensics.deepfake.identity_split",
    "thurl.forensics.deepfake.importers",
    "thurl.forensics.deepfake.manifest",
    "thurl.forensics.deepfake.sampling",
    "thurl.forensics.deepfake.video",
    "thurl.forensics.deepfake.video_lists",
    "thurl.forensics.exif.camera",
    "thurl.forensics.exif.coverage",
    "thurl.forensics.exif.importers",
    "thurl.forensics.exif.inputs",
    "thurl.forensics.exif.landmarks",
    "thurl.forensics.exif.manipulations",
    "thurl.forensics.exif.scan",
    "thurl.forensics.faces",
    "thurl.forensics.json_lines",
    "thurl.forensics.splits",
    "thurl.iqa.afine",
    "thurl.iqa.afine.calibration",
    "thurl.iqa.afine.diffiqa",
    "thurl.iqa.afine.pairing",
    "thurl.iqa.afine.rated_pairs",
    "thurl.iqa.afine.sriqa",
    "thurl.iqa.afine.triplets",
    "thurl.iqa.face_restoration",
    "thurl.iqa.face_restoration.interface",
    "thurl.iqa.face_restoration.protocol",
    "thurl.iqa.face_restoration.settings",
    "thurl.ranking",
    "thurl.recipe",
    "thurl.recipe.afine",
    "thurl.recipe.cldyb",
    "thurl.recipe.distill",
    "thurl.recipe.face_metrics",
    "thurl.recipe.validate",
    "thurl.restoration",
    "thurl.restoration.cleanup",
    "thurl.restoration.degradation",
    "thurl.rl",
    "thurl.rl.parsing",
    "thurl.text.evaluation",
    "thurl.text.questions",
    "thurl.training.checkpoints",
    "thurl.training.page",
    "thurl.training.report",
    "thurl.training.results",
]


def test_light_modules_do_not_import_torch_and_its_relatives():
    script = (
        "import importlib, json, sys\n"
        f"names = {LIGHT!r}\n"
        f"heavy = {HEAVY!r}\n"
        "found = {}\n"
        "for name in names:\n"
        "    importlib.import_module(name)\n"
        "    found[name] = [package for package in heavy if package in sys.modules]\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert set(found) == set(LIGHT)
    assert {name: packages for name, packages in found.items() if packages} == {}


def test_import_takes_less_than_a_second():
    script = "import time; start = time.perf_counter(); import thurl; print(time.perf_counter() - start)"
    seconds = [
        float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(seconds) < 1.0, f"`import thurl` took {min(seconds):.2f} s at best"


# --- banned APIs -----------------------------------------------------------------------------------------------------

BANNED = {
    "import torch\ntorch.load('x')": "TID251",
    "from torch import load\nload('x')": "TID251",
    "import torch as t\nt.save({}, 'x')": "TID251",
    "import pickle\npickle.loads(b'')": "TID251",
    "from pickle import loads\nloads(b'')": "TID251",
    "import dill\ndill.loads(b'')": "TID251",
    "import cloudpickle\ncloudpickle.loads(b'')": "TID251",
    "import joblib\njoblib.load('x')": "TID251",
    "import pandas\npandas.read_pickle('x')": "TID251",
    "import yaml\nyaml.load('a: 1', yaml.Loader)": "TID251",
    "from yaml import load\nload('a: 1', None)": "TID251",
    "import yaml\nyaml.unsafe_load('a: 1')": "TID251",
    "import yaml\nyaml.full_load('a: 1')": "TID251",
    "import yaml\nyaml.load_all('a: 1', yaml.Loader)": "TID251",
    "print('x')": "T201",
}


def lint(code, name="src/thurl/example.py"):
    ruff = shutil.which("ruff") or str(Path(sys.executable).with_name("ruff"))
    command = [ruff, "check", "--no-cache", "--output-format", "json", "--stdin-filename", name, "-"]
    done = subprocess.run(command, input=code, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode in (0, 1), done.stderr
    return {item["code"] for item in json.loads(done.stdout)}


@pytest.mark.parametrize("code", BANNED)
def test_the_linter_catches_banned_calls(code):
    assert BANNED[code] in lint(code + "\n")


def test_the_linter_lets_the_safe_ways_pass():
    safe = "import yaml\nfrom safetensors.torch import load_file\n\n\nyaml.safe_load('a: 1')\nload_file('x')\n"
    assert not lint(safe) & {"TID251", "T201"}


def unsafe_calls(code):
    """Keyword arguments and calls that ruff has no rule for (or whose rule is not about this)."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        for keyword in node.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else ...
            wanted = {"allow_pickle": False, "trust_remote_code": False, "weights_only": True, "shell": False}
            if keyword.arg in wanted and value is not wanted[keyword.arg]:
                found.append(f"line {node.lineno}: {name}({keyword.arg}=...)")
        if name in ("eval", "exec", "os.system", "__import__", "marshal.loads", "shelve.open"):
            found.append(f"line {node.lineno}: {name}")
    return found


@pytest.mark.parametrize(
    "code",
    ["numpy.load('x', allow_pickle=True)", "f(trust_remote_code=True)", "f(trust_remote_code=flag)",
     "g(weights_only=False)", "run('ls', shell=True)", "eval('1')", "os.system('ls')"],
)  # fmt: skip
def test_the_scan_for_unsafe_calls_catches(code):
    assert unsafe_calls(code)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_unsafe_calls_in_the_library(path):
    assert unsafe_calls(path.read_text(encoding="utf-8")) == []


# --- one truth -------------------------------------------------------------------------------------------------------


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement.specifier for requirement in requirements}


def pinned_version(specifier):
    (version,) = [clause.version for clause in specifier if clause.operator == "=="]
    return version


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_tested_set_satisfies_every_requirement():
    project, tested = PYPROJECT["project"], pins()
    lines = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    checked = 0
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        if name != "thurl":
            assert name in tested, f"{name} is not in constraints.txt"
            assert requirement.specifier.contains(pinned_version(tested[name])), str(requirement)
            checked += 1
    assert checked > 20


def test_the_tested_set_satisfies_vllm_on_every_python():
    # vLLM 0.31.0 asks for less on Python 3.11, so an environment of that version shows neither.
    tested = pins()
    for requirement in map(Requirement, ("setuptools>=77.0.3,<81", "numpy<2.4", "torch==2.13.0")):
        assert requirement.specifier.contains(pinned_version(tested[requirement.name])), str(requirement)


def test_the_tested_set_excludes_cpu_builds_of_torch():
    torch = pins()["torch"]
    assert torch.contains("2.13.0") and not torch.contains("2.13.0+cpu")
    # Without the exclusion a local version satisfies the pin, which is why it is there.
    assert SpecifierSet("==2.13.0").contains("2.13.0+cpu")


def test_the_tested_set_leaves_cuda_libraries_to_torch():
    assert [name for name in pins() if name.startswith(("nvidia-", "cuda-", "triton"))] == []


def test_hooks_use_the_linter_of_the_test_extra():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    (revision,) = [repo["rev"] for repo in hooks if "ruff" in repo["repo"]]
    assert f"ruff=={revision.removeprefix('v')}" in PYPROJECT["project"]["optional-dependencies"]["test"]


def test_modules_listed_for_the_type_checker_exist():
    listed = next(
        part["module"] for part in PYPROJECT["tool"]["mypy"]["overrides"] if not part.get("ignore_errors", 1)
    )
    for module in listed:
        path = ROOT / "src" / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), module


def shipped_text_files():
    if (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
        paths = [ROOT / name for name in listed.split("\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if not {".venv", "site", "runs"} & set(path.relative_to(ROOT).parts)]
    for path in paths:
        if path.is_file() and path.stat().st_size < 2_000_000:
            data = path.read_bytes()
            if b"\0" not in data[:4096]:
                yield path, data.decode("utf-8", errors="replace")


def test_no_machine_paths_and_no_registry_hosts():
    # Put together here so that this file does not contain what it looks for.
    words = [
        "/" + "work/",
        "/" + "root/",
        "/" + "home/[a-z]",
        "/" + "tmp/[a-z]",
        "py" + r"pi\.org",
        "python" + "hosted",
    ]
    pattern = re.compile("|".join(rf"(?<![\w.]){word}" if word[0] == "/" else word for word in words))
    found = [
        f"{relative(path)}: {hit.group()}" for path, text in shipped_text_files() for hit in pattern.finditer(text)
    ]
    assert found == []


def test_every_public_module_says_what_is_public():
    lacking = []
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        public = [node.name for node in own if not node.name.startswith("_")]
        names = {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets
                 if isinstance(target, ast.Name)}  # fmt: skip
        if public and "__all__" not in names:
            lacking.append(relative(path))
    assert lacking == []


# --- make and the build ----------------------------------------------------------------------------------------------


@pytest.fixture
def workshop(tmp_path):
    """A folder with the Makefile and an environment whose python only writes down what it is asked to do."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / ".made").touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/bash\necho "$@" >> "{tmp_path}/calls"\necho "ERROR: asked"\nexit ${{PIP_RC:-0}}\n')
    python.chmod(0o755)

    def make(*arguments, **environment):
        return subprocess.run(
            ["make", *arguments], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, **environment}
        )

    def calls():
        path = tmp_path / "calls"
        return path.read_text().splitlines() if path.exists() else []

    return tmp_path, make, calls


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")


@needs_make
def test_make_installs_once_and_again_when_the_tested_set_changes(workshop):
    folder, make, calls = workshop
    assert make("install").returncode == 0
    assert len(calls()) == 1 and "-e .[vision] -c constraints.txt" in calls()[0]
    os.utime(folder / "pyproject.toml")  # a checkout touches files without changing them
    assert make("install").returncode == 0
    assert len(calls()) == 1
    with open(folder / "constraints.txt", "a") as file:
        file.write("# changed\n")
    assert make("install").returncode == 0
    assert len(calls()) == 2


@needs_make
def test_a_failed_install_fails_loudly_and_is_tried_again(workshop):
    folder, make, calls = workshop
    done = make("install", PIP_RC="1")
    assert done.returncode != 0
    assert "install.log" in done.stdout
    assert make("install").returncode == 0
    assert len(calls()) == 2


@needs_make
def test_make_without_a_fitting_python_says_what_to_do(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    done = subprocess.run(["make", "install", "PYTHON="], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "PYTHON=" in done.stdout


@needs_make
@pytest.mark.parametrize("failing", [None, "test", "test-vllm"])
def test_the_build_script_starts_fresh_and_reports_the_tests(tmp_path, failing):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "old").touch()
    rules, closing = "quality:\n\t@test ! -e .venv/old\n", {}
    for passed, name in ((3, "test"), (5, "test-vllm")):
        closing[name] = f"{passed} passed, 1 deselected in 2.10s"
        if name == failing:
            closing[name] = f"1 failed, {passed} passed in 2.10s"
        rules += f"{name}:\n\t@echo '== {closing[name]} =='; exit {int(name == failing)}\n"
    (tmp_path / "Makefile").write_text(rules)
    done = subprocess.run([tmp_path / ".ci" / "run"], capture_output=True, text=True)
    assert (done.returncode == 0) is (failing is None)
    # Both at the very end, and last the one that failed.
    last = done.stdout.splitlines()[-2:]
    assert closing[failing or "test"] in last[1]
    assert closing["test" if failing == "test-vllm" else "test-vllm"] in last[0]
