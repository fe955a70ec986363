# `make quickstart` and `make test` do all the set-up on a machine with Python >= 3.11 and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-all lint format benchmarks clean gate baseline \
	examples example-quickstart example-plan example-validation

help:
	@echo 'make quickstart   measure the reference model at 21 points; about ten minutes'
	@echo 'make test         format, lint, types and tests'
	@echo 'make test-all     the long tests that make test leaves out'
	@echo 'make gate         measure the smoke suite and hold it against results/baselines/smoke.json'
	@echo 'make baseline     measure it and make that baseline again, from a clean checkout'
	@echo 'make benchmarks   what the harness itself costs'
	@echo 'make examples     measure and write again what is committed under results/ and reports/'
	@echo 'make gpu          what needs a CUDA device, in under ten minutes; leaves results/h200/'
	@echo 'make gpu-kit      the packages for make gpu on a machine without a package index'

# torch goes first, alone: any other package would pull the newest build of it with gigabytes of
# CUDA libraries.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo 'installing into $(VENV), once; a few minutes'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet --upgrade 'pip>=25.1'
	@$(PIP) install --quiet '$(TORCH)'
	@$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	@$(PIP) install --quiet --constraint constraints.txt --group dev
	@touch $@

quickstart: $(VENV)/.installed
	$(BIN)/tradebench run suites/quickstart.yaml

lint: $(VENV)/.tested
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -m 'not slow and not gpu' --numprocesses 2 --dist loadfile

test-all: $(VENV)/.tested
	$(BIN)/pytest -m 'slow and not gpu' --numprocesses 2 --dist loadfile

# Whether a change moved the memory or the answers of one point per slot.
GATE := build/gate
gate: $(VENV)/.installed
	$(BIN)/tradebench run suites/smoke.yaml --out $(GATE) --fresh
	$(BIN)/tradebench check --results $(GATE) --baseline results/baselines/smoke.json --confirm 1

REASON := made again by make baseline
baseline: $(VENV)/.installed
	$(BIN)/tradebench run suites/smoke.yaml --out $(GATE) --fresh
	$(BIN)/tradebench baseline set latest --results $(GATE) --out results/baselines/smoke.json \
		--kind measured --kind predicted --policy results/baselines/smoke.toml --reason '$(REASON)'

format: $(VENV)/.tested
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmarks: $(VENV)/.tested
	$(BIN)/pytest tests/benchmarks --benchmark-only

# The committed examples hold every Result; items, logs and timelines of a run are too large for git.
BUILD := build/examples
define committed
	rm -rf results/$(1)/example reports/$(1)
	mkdir -p results/$(1)/example
	cp $(BUILD)/$(1)/*/run.json $(BUILD)/$(1)/*/*.jsonl results/$(1)/example
	$(BIN)/tradebench report results/$(1)/example --out reports/$(1)
endef

examples: example-quickstart example-plan example-validation
	$(BIN)/python tests/test_readme.py

example-quickstart: $(VENV)/.installed
	$(BIN)/tradebench run suites/quickstart-full.yaml --out $(BUILD)
	$(call committed,quickstart-full)

example-plan: $(VENV)/.installed
	rm -rf $(BUILD)/llama-3.3-70b.plan
	$(BIN)/tradebench plan suites/llama-3.3-70b.yaml --gpu h100-80gb --out $(BUILD)
	$(call committed,llama-3.3-70b.plan)

example-validation: $(VENV)/.installed
	mkdir -p reports/validation
	$(BIN)/tradebench plan --validate > reports/validation/report.md

gpu-kit: $(VENV)/.installed
	PYTHONPATH=tests $(BIN)/python -m gpu.kit

# With the Python that has torch and transformers there, such as PYTHON=.venv/bin/python; what else
# it lacks comes from the kit, if there is one for its version.
OUT := results/h200
gpu:
	PYTHONPATH=tests $(PYTHON) -m gpu.run --out $(OUT)

clean:
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache
