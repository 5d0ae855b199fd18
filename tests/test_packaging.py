"""Source distribution, wheel and images: what they hold, and that an installed thurl works outside the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from thurl.version import __version__


ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the list of files of a checkout")


def sources():
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return sorted(name for name in set(listed.split("\0")) if name and (ROOT / name).is_file())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Names in the source distribution, and the wheel that was built from it alone."""
    place = tmp_path_factory.mktemp("packages")
    for name in sources():  # from a copy: setuptools leaves its build folder in the source tree
        (place / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / "tree" / name)
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(place)], cwd=place / "tree", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (archive,) = place.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(place / "unpacked", filter="data")
        inside = {name.partition("/")[2] for name in file.getnames()}
    (tree,) = (place / "unpacked").iterdir()
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    done = subprocess.run([*command, "-w", str(place), str(tree)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = place.glob("*.whl")
    return inside, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Python of an environment with the wheel and, of everything else, what this one has; not the checkout."""
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / "bin" / "python"
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    # A path in a .pth file is searched, but its own .pth files, among them that of the editable thurl, are not read.
    (Path(packages) / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    done = subprocess.run([*command, str(built[1])], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return python


def outside(command, folder):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True, text=True, timeout=280, check=False, cwd=folder, env=environment,
    )  # fmt: skip


def test_the_source_distribution_holds_every_file_of_the_checkout(built):
    assert set(sources()) - built[0] == set()


def test_the_wheel_holds_all_an_installed_thurl_needs(built):
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"thurl-{__version__}.dist-info/METADATA").decode()
        entry_points = archive.read(f"thurl-{__version__}.dist-info/entry_points.txt").decode()
    in_tree = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "thurl").rglob("*.py")}
    assert in_tree <= names
    assert "thurl/py.typed" in names
    assert {name for name in names if name.startswith("thurl/recipe/schemas/") and name.endswith(".json")}
    shared = f"thurl-{__version__}.data/data/share/thurl/"
    for folder, pattern in (("recipes", "*.yaml"), ("accelerate_configs", "*.yaml"), ("deepspeed_configs", "*.json")):
        expected = {shared + path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(pattern)}
        assert expected and expected <= names, folder
    assert "License-Expression: Apache-2.0" in metadata
    assert "thurl = thurl.cli:main" in entry_points
    assert not [name for name in names if name.startswith("tests/")]


@pytest.mark.slow
def test_an_installed_thurl_works_outside_the_checkout(installed, tmp_path):
    thurl = installed.with_name("thurl")
    where = outside([installed, "-c", "import thurl; print(thurl.__file__)"], tmp_path).stdout
    assert where.startswith(str(installed.parents[1])), where
    rows = json.loads(outside([thurl, "list", "--json"], tmp_path).stdout)["recipes"]
    assert {row["name"] for row in rows} == {
        path.relative_to(ROOT / "recipes").with_suffix("").as_posix() for path in (ROOT / "recipes").rglob("*.yaml")
    }
    copied = outside([thurl, "copy", "visualquality_r1", "mine"], tmp_path)
    assert copied.returncode == 0 and "cd mine && accelerate launch recipes/visualquality_r1.yaml" in copied.stdout
    checked = outside([thurl, "validate", "recipes/visualquality_r1.yaml"], tmp_path / "mine")
    assert checked.returncode == 0, checked.stderr
    shown = outside([thurl, "show", "recipes/visualquality_r1.yaml"], tmp_path / "mine").stdout
    assert yaml.safe_load(shown)["training"]["deepspeed"] == "deepspeed_configs/zero3.json"


@pytest.mark.slow
@pytest.mark.distributed
def test_a_copied_recipe_trains_outside_the_checkout(installed, tmp_path):
    thurl = installed.with_name("thurl")
    copied = json.loads(outside([thurl, "copy", "tiny/edit_vit", "--json"], tmp_path).stdout)
    words = copied["command"].split()
    assert words[:2] == ["accelerate", "launch"]
    command = [
        installed,
        "-m",
        "accelerate.commands.launch",
        *words[2:],
        "training.max_steps=2",
        "model.digits.epochs=2",
    ]
    done = outside(command, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "runs" / "tiny_edit_vit" / "results.json").read_text())
    assert results["runs"][0]["steps"] == 2
    assert results["commit"] is None  # no checkout
    planned = outside([thurl, "plan", "visualquality_r1", "--gpus", "8", "--gpu-memory", "80"], tmp_path)
    assert planned.returncode == 0, planned.stderr


# --- images ----------------------------------------------------------------------------------------------------------

# There is no builder where the tests run: what is written is checked, not what comes out.


def instructions(path):
    """(word, rest) of every instruction, continuation lines joined, comments left out."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def sent_to_the_builder(name):
    """Whether .dockerignore lets a file through; the last pattern that fits decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#"):
            if any(fnmatch(part, pattern) for part in (name, *map(str, Path(name).parents))):
                sent = line.startswith("!")
    return sent


def test_there_is_an_image_for_each_kind_of_machine():
    assert {path.suffix for path in DOCKERFILES} == {".cpu", ".cuda"}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_start_from_a_tag_with_a_python_of_ours(path):
    (base,) = [rest for word, rest in instructions(path) if word == "FROM"]
    name, _, tag = base.partition(":")
    assert re.match(r"\d+\.\d+", tag), f"{name} needs a version, not {tag or 'latest'}"
    requires = SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])
    text = path.read_text()
    versions = re.findall(r"python:?(3\.\d+)", text)
    assert versions and len(set(versions)) == 1 and f"{versions[0]}.1" in requires


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_copy_what_there_is_and_what_is_sent(path):
    copied = [word for name, rest in instructions(path) if name == "COPY" for word in rest.split()[:-1]]
    for name in copied:
        assert (ROOT / name).exists(), name
        files = [name] if (ROOT / name).is_file() else [one for one in sources() if one.startswith(f"{name}/")]
        assert files and all(map(sent_to_the_builder, files)), name
    needed = {"src", "recipes", "accelerate_configs", "deepspeed_configs", "pyproject.toml", "README.md", "LICENSE"}
    assert needed <= set(copied)
    for private in (".git/config", "runs/x/model.safetensors", ".venv/bin/python", ".env", "results/coto.json"):
        assert not sent_to_the_builder(private)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_install_the_tested_set_and_run_without_rights(path):
    steps = instructions(path)
    runs = [command for word, rest in steps if word == "RUN" for command in re.split(r"\s*&&\s*", rest)]
    known = {"apt-get", "install", "pip", "python", "python3.12", "rm", "useradd", "userdel"}
    assert {command.split()[0] for command in runs} <= known
    (full,) = [command for command in runs if command.startswith("pip install") and "--no-deps" not in command]
    assert "-c constraints.txt" in full
    extras = set(re.search(r"\[([\w,]+)\]", full)[1].split(","))
    assert extras <= set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    order = [f"{word} {rest}" for word, rest in steps]
    code = order.index("COPY src src")
    assert order.index(f"RUN {full}") < code, "a change of the code must not install everything again"
    users = [rest for word, rest in steps if word == "USER"]
    assert users == ["thurl"] and order.index("USER thurl") > code
    assert any(command.startswith("useradd") and command.endswith(" thurl") for command in runs)
    assert not re.search(r"token|secret|password|api_key", path.read_text().lower().replace("tokenizers", ""))
