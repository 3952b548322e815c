# Two commands for a start: `make demo` trains the whole chain in miniature and speaks an answer, `make test` runs the
# tests. Both set up what they need. `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$p && break; done)
TORCH ?= torch==2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
# Wheels that a GPU machine without a network takes instead (filled by `make wheels`).
WHEELS ?= wheels
GPU_PYTHON_VERSION ?= 3.12
GPU_WHEELS := annotated-types cffi espeakng-loader execnet hypothesis iniconfig megatron-core pluggy psutil pybind11 \
	pycparser pydantic pydantic_core pytest pytest-xdist PyYAML safetensors sentencepiece setuptools sortedcontainers \
	soundfile soxr tqdm typing-inspection

BIN := $(VENV)/bin
READY := $(VENV)/.extension
CPP := $(wildcard csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)
LINTED := megatron_aqaa tests tools benchmarks setup.py

.PHONY: help demo test lint format bench gpu wheels docs-check venv clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-11s %s\n", $$1, $$2}'

demo: $(READY) ## train the chain in miniature and answer a spoken question (QUICK=1: a reduced run, SEED=1: another seed)
	$(BIN)/python tools/demo.py $(if $(QUICK),--quick) $(if $(SEED),--seed $(SEED))

test: $(READY) ## all tests: the fast ones in parallel, then those that start processes of their own
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not distributed"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m distributed

lint: $(READY) ## ruff, clang-format, mypy
	$(BIN)/ruff check $(LINTED)
	$(BIN)/ruff format --check $(LINTED)
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/mypy

format: $(READY) ## rewrite the sources as `make lint` wants them
	$(BIN)/ruff check --fix-only $(LINTED)
	$(BIN)/ruff format $(LINTED)
	$(BIN)/clang-format -i $(CPP)

bench: $(READY) ## every benchmark, side by side with its peers; JSON in benchmarks/results/
	for script in ops training_step vocoder streaming loop_overhead async_save packing dpo_step merge convert audio_loading tokenizing vocoder_forms; do $(BIN)/python benchmarks/$$script.py; done

gpu: ## on a machine with a GPU: build, test and measure (PART=build|test|ops|model|large, default all five)
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) tools/gpu_check.py $(PART) --wheels $(WHEELS)

wheels: ## the small wheels that a GPU machine without a network needs, into WHEELS
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --python-version $(GPU_PYTHON_VERSION) \
		--dest $(WHEELS) --constraint requirements.txt $(GPU_WHEELS)

docs-check: $(READY) ## every file and command that the documents name exists
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_docs.py

venv: $(READY) ## .venv with everything in it, the extension built

clean: ## remove what was built; runs/ and .venv stay
	rm -rf build dist *.egg-info megatron_aqaa/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or 3.12 is needed, and none is on PATH: install one, or name it with PYTHON=…" >&2; exit 1; }
	@command -v $${CXX:-c++} > /dev/null || { echo "a C++20 compiler is needed (Debian, Ubuntu: package g++)" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || \
		{ echo "the Python headers are needed (Debian, Ubuntu: package python3-dev)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone: plain `torch` on a user's Linux means the CUDA build and several GB, which is wanted only
# where there is a GPU. An index or a folder of wheels that pip is already set up with knows better than we do.
$(VENV)/.torch: | $(BIN)/python
	@if [ -n "$(TORCH_INDEX)" ]; then from="--index-url $(TORCH_INDEX)"; \
	elif nvidia-smi -L > /dev/null 2>&1; then from=""; \
	elif [ -n "$${PIP_INDEX_URL:-}$${PIP_FIND_LINKS:-}" ] || $(BIN)/pip config list | grep -qE 'index-url|find-links'; then from=""; \
	else from="--index-url $(TORCH_CPU_INDEX)"; fi; \
	echo "installing $(TORCH) $${from:-from the index that pip is set up with}"; \
	$(BIN)/pip install --disable-pip-version-check "$(TORCH)" $$from
	@$(BIN)/python -W ignore -c 'import torch, sys; sys.exit(torch.version.cuda is not None)' || nvidia-smi -L > /dev/null 2>&1 || \
		{ echo "this torch is a CUDA build, but the machine has no GPU: rm -rf $(VENV); make venv TORCH_INDEX=$(TORCH_CPU_INDEX)" >&2; exit 1; }
	touch $@

$(VENV)/.packages: $(VENV)/.torch requirements.txt
	@echo "installing what requirements.txt lists"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement requirements.txt
	touch $@

$(READY): $(VENV)/.packages setup.py pyproject.toml $(CPP)
	@echo "building the extension"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@
