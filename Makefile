# Everything runs from a clean clone: each target first sets up what it needs, once.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# The contracts as of the last release; what is there may not be broken.
BASELINE := proto/baseline.binpb

# Stamps: a finished set-up is not looked at again until its lock file changes.
RUN_READY := .venv/.ready-run
DEV_READY := .venv/.ready-dev
TRITON_READY := .venv-triton/.ready
TRAIN_READY := .venv-train/.ready
# Its CPU build; where the package index has that under a name of its own, say so: make train TORCH='torch==2.13.0+cpu'
TORCH ?= torch==2.13.0

.PHONY: help
help: ## Show this list
	@if [ -t 1 ] && [ -z "$${NO_COLOR:-}" ]; then on=$$'\e[36m' off=$$'\e[0m'; else on='' off=''; fi; \
	awk -F ':.*## ' -v on="$$on" -v off="$$off" \
		'/^[a-z-]+:.*## / { printf "  %s%-10s%s %s\n", on, $$1, off, $$2 }' $(MAKEFILE_LIST)

##### Use

.PHONY: run
run: setup ## Start everything, with a sample loaded into an empty store; Ctrl-C stops
	@$(BIN)/recorrido run

.PHONY: setup
setup: $(RUN_READY) $(TRITON_READY) ## Install what running takes, into .venv and .venv-triton

##### Develop

.PHONY: test
test: $(DEV_READY) $(TRITON_READY) ## Run all tests, two files at a time; ARGS="-k word" chooses
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

.PHONY: check
check: $(DEV_READY) ## Lint, types, layers, contracts, and whether generated code is fresh
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf breaking --against $(BASELINE)
	$(BIN)/python proto/generate.py --check
	$(BIN)/python proto/asyncapi.py --check
	$(BIN)/python docs/generate.py --check

.PHONY: format
format: $(DEV_READY) ## Format the code and fix what can be fixed by itself
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

.PHONY: proto
proto: $(DEV_READY) ## Generate proto/gen and docs/asyncapi.yaml from the contracts
	$(BIN)/python proto/generate.py
	$(BIN)/python proto/asyncapi.py

.PHONY: docs
docs: $(DEV_READY) ## Write what the pages tell of the code: commands, settings, life cycles
	$(BIN)/python docs/generate.py

.PHONY: baseline
baseline: $(DEV_READY) ## Take the contracts as they are for what may not be broken; at a release
	$(BIN)/buf build --exclude-source-info --output $(BASELINE)

.PHONY: train
train: $(TRAIN_READY) ## Train, judge and promote the feedback model; ARGS="--external DIR" evaluates on more
	OMP_WAIT_POLICY=PASSIVE .venv-train/bin/python -m infra.triton.train $(ARGS)

.PHONY: bench
bench: $(DEV_READY) $(TRITON_READY) ## Run every benchmark
	@for file in tests/benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

.PHONY: chaos
chaos: $(DEV_READY) $(TRITON_READY) ## Kill parts at random under load, and verify; ARGS="--seed 42 --interactions 20000"
	$(BIN)/python -m tests.faults.chaos $(ARGS)

.PHONY: lock
lock: ## Pin requirements*.in, with hashes and without registry addresses (needs uv)
	@for name in requirements requirements-dev infra/triton/requirements infra/triton/train/requirements; do \
		case "$$name" in infra/*) deps=--no-deps;; *) deps=;; esac; \
		uv pip compile --quiet --universal $$deps --generate-hashes --no-header --no-annotate --python-version 3.11 \
			"$$name.in" --output-file "$$name.lock"; \
	done

##### Tidy

.PHONY: clean
clean: ## Remove var/ (all data and logs) and the caches; refused while a run uses it
	@data="$${RECORRIDO_DATA:-var}"; \
	for used in var "$$data"; do \
		if [ -e "$$used/run.lock" ] && ! flock --nonblock "$$used/run.lock" true; then \
			echo "A run uses $$used/: stop it first" >&2; exit 1; fi; done; \
	if [ "$$(realpath --canonicalize-missing "$$data")" != "$$(realpath --canonicalize-missing var)" ]; then \
		echo "Only var/ is removed; RECORRIDO_DATA points to $$data, which stays"; fi
	rm -rf var build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## Remove the virtual environments too
	rm -rf .venv .venv-triton .venv-train *.egg-info
	rm -f infra/triton/models/*/*/encoder.*.onnx infra/triton/models/*/*/tokenizer.json infra/triton/models/*/*/.built-*

##### Set-up

# Said in one line, before anything else runs it.
HAS_PYTHON = command -v '$(PYTHON)' >/dev/null || { \
	echo "There is no program '$(PYTHON)': set PYTHON to a Python 3.11 or newer, as in make run PYTHON=python3.11" >&2; exit 1; }

.venv/bin/python:
	@$(HAS_PYTHON)
	@$(PYTHON) -m infra.local.doctor --install
	@echo "Making .venv"
	@$(PYTHON) -m venv .venv

$(RUN_READY): requirements.lock pyproject.toml | .venv/bin/python
	@echo "Installing requirements.lock into .venv"
	@$(PIP) install --no-deps --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# It holds all of requirements.lock, and more.
$(DEV_READY): requirements-dev.lock pyproject.toml | .venv/bin/python
	@echo "Installing requirements-dev.lock into .venv"
	@$(PIP) install --no-deps --require-hashes -r requirements-dev.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@ $(RUN_READY)

# The model's files too: set-up builds it from the pinned weights and what training added.
$(TRITON_READY): infra/triton/requirements.lock infra/triton/install.py $(wildcard infra/triton/encoder/*.py \
		infra/triton/models/*/*/adapter.npz infra/triton/models/*/*/model.json) | .venv/bin/python
	@$(HAS_PYTHON)
	@$(PYTHON) -m infra.local.doctor --install
	@echo "Installing Triton into .venv-triton and building its models"
	@$(BIN)/python -m infra.triton.install
	@touch $@

$(TRAIN_READY): infra/triton/train/requirements.lock | .venv/bin/python
	@echo "Installing what training takes into .venv-train"
	@$(PYTHON) -m venv .venv-train
	@.venv-train/bin/python -m pip --disable-pip-version-check --quiet install --no-deps --require-hashes -r infra/triton/train/requirements.lock
	@.venv-train/bin/python -m pip --disable-pip-version-check --quiet install --no-deps '$(TORCH)'
	@touch $@
