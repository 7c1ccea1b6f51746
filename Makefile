# `make` lists what there is. Nothing here needs root or writes outside this folder, caches aside.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := runs/demo
# For instance DEMO_ARGS="trainer.max_steps=60" for a shorter demo.
DEMO_ARGS ?=
WORKERS ?= 2

# TORCH=cpu takes the version in constraints/cpu.txt, TORCH=gpu whatever torch is newest.
TORCH ?= $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
# The CPU builds have an index of their own. Where it cannot be reached, pip's own set-up decides.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
REACHABLE = import urllib.request as r; r.urlopen("$(TORCH_INDEX)/torch/", timeout=5)

.PHONY: help
help:  ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is older; use make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

.PHONY: venv
venv: $(BIN)/python  ## Create the virtual environment .venv

$(VENV)/.installed: pyproject.toml constraints/cpu.txt | $(BIN)/python
	if [ "$(TORCH)" = gpu ]; then \
		$(BIN)/python -m pip install -e ".[dev]"; \
	elif $(BIN)/python -c '$(REACHABLE)' 2>/dev/null; then \
		$(BIN)/python -m pip install -c constraints/cpu.txt --extra-index-url $(TORCH_INDEX) -e ".[dev]"; \
	else \
		$(BIN)/python -m pip install -c constraints/cpu.txt -e ".[dev]"; \
	fi
	@touch $@

.PHONY: install
install: $(VENV)/.installed  ## Install dlm and its tools into .venv (TORCH=cpu or gpu, found by itself)

.PHONY: demo
demo: install  ## Train, evaluate and generate in a few minutes, from nothing
	rm -rf $(DEMO)
	$(BIN)/dlm train experiment=demo run_dir=$(DEMO) $(DEMO_ARGS)
	$(BIN)/dlm evaluate checkpoint=$(DEMO)/checkpoints/best.ckpt
	$(BIN)/dlm generate checkpoint=$(DEMO)/checkpoints/best.ckpt num=2
	@echo; echo "The loss curve of this run: $(DEMO)/loss.png"
	@echo "Text from the checkpoint that ships with the package:"
	$(BIN)/dlm generate checkpoint=austen num=2

.PHONY: test
test: install  ## The test suite, at most 10 minutes on 2 cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

.PHONY: test-slow
test-slow: install  ## The tests that take minutes each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m slow --timeout=7200

.PHONY: lint
lint: install  ## Style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

.PHONY: format
format: install  ## Rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: clean
clean:  ## Remove caches and builds (keeps runs/ and .venv)
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
