"""Print constraints.txt: exact versions of all that `pip install "thurl[vision,test,docs]"` brings, as installed here.

For the environment in which the whole test suite has just passed; `make constraints` runs it in .venv.
"""

from __future__ import annotations

import sys
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


EXTRAS = ("vision", "test", "docs")
# These follow the torch build: a CPU or ROCm build of torch asks for none of them, another CUDA version for others.
FOLLOW_TORCH = ("nvidia-", "cuda-", "triton")
# Not taken from that environment: for GPUs (the version the recipes were written against), the extras `quantised` and
# `video`, and what vLLM asks for on other Pythons than the one that runs this.
BY_HAND = {
    "av": "av==18.1.0",
    "bitsandbytes": "bitsandbytes==0.50.2",
    "optimum-quanto": "optimum-quanto==0.2.7",
    "setuptools": "setuptools==80.10.2",
    "torchao": "torchao==0.18.0",
    "vllm": "vllm==0.31.0",
}

HEADER = """\
# The tested set. Install with it to get what the tests ran on:  pip install -e ".[vision]" -c constraints.txt
# Written by scripts/constraints.py; lower bounds for other combinations are in pyproject.toml.
#
# torch and torchvision must be builds of one kind: torchvision on the package index is linked against the default
# torch build, and beside a `+cpu` torch `import torchvision` fails, which Qwen-VL processors need. `==2.13.0` alone
# also accepts `2.13.0+cpu` where such a wheel is in reach, hence the exclusion. For CPU wheels take both from
# PyTorch's own index, without this file (README, "CPU wheels"). CUDA libraries and triton follow torch, hence no pins.
#
# numpy stays below 2.4: vLLM 0.31.0 asks for that on Python 3.11 and 3.12 (through mistral-common). setuptools stays
# below 81: vLLM asks for that from Python 3.12 on.
"""


def closure(name: str, extras: tuple[str, ...]) -> dict[str, str]:
    """Names and versions of all installed distributions that `name[extras]` needs, itself left out."""
    found: dict[str, str] = {}
    queue = [(name, frozenset(extras))]
    seen = set()
    while queue:
        current, wanted = queue.pop()
        if (current, wanted) in seen:
            continue
        seen.add((current, wanted))
        distribution = metadata.distribution(current)
        found[canonicalize_name(current)] = distribution.version
        for line in distribution.requires or []:
            requirement = Requirement(line)
            environments = [{"extra": extra} for extra in wanted] or [{"extra": ""}]
            if requirement.marker is None or any(requirement.marker.evaluate(env) for env in environments):
                queue.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    found.pop(canonicalize_name(name))
    return found


def main() -> None:
    lines = {}
    for name, version in closure("thurl", EXTRAS).items():
        if not name.startswith(FOLLOW_TORCH):
            lines[name] = f"{name}=={version}"
    public, _, local = metadata.version("torch").partition("+")
    if local == "cpu":
        sys.exit("torch is a +cpu build: the tested set is made with the default build")
    lines["torch"] = f"torch=={public},!={public}+cpu"
    lines.update(BY_HAND)
    sys.stdout.write(HEADER + "\n".join(lines[name] for name in sorted(lines)) + "\n")


if __name__ == "__main__":
    main()
