# `make quickstart` and `make test` do all the set-up on a machine with Python >= 3.11 and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-all lint format benchmarks clean gate baseline \
	examples example-quickstart example-plan example-claims example-ladder \
	example-compression example-sharding example-validation

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

# The library of GPTQ lowers numpy: what needs it has an environment of its own.
GPTQ := $(VENV)-gptq
$(GPTQ)/.installed: pyproject.toml constraints.txt
	@echo 'installing into $(GPTQ), once; a few minutes'
	@test -x $(GPTQ)/bin/python || $(PYTHON) -m venv $(GPTQ)
	@$(GPTQ)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(GPTQ)/bin/python -m pip install --quiet '$(TORCH)'
	@grep -v '^numpy==' constraints.txt > $(GPTQ)/constraints.txt
	@$(GPTQ)/bin/python -m pip install --quiet --constraint $(GPTQ)/constraints.txt --editable '.[gptq]'
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

# The committed examples hold every Result; items and logs of a run are too large for git, and so
# are the timelines of a large plan.
BUILD := build/examples
define keep
	rm -rf results/$(1)/example
	mkdir -p results/$(1)/example
	cp $(BUILD)/$(1)/*/run.json $(BUILD)/$(1)/*/*.jsonl results/$(1)/example
endef
define keep_timelines
	cp -r $(BUILD)/$(1)/*/timelines results/$(1)/example
endef
define report
	rm -rf reports/$(1)
	$(BIN)/tradebench report results/$(1)/example --out reports/$(1) $(2)
endef
run = $(BIN)/tradebench run suites/$(1).yaml --out $(BUILD)
define plan
	rm -rf $(BUILD)/$(1).plan
	$(BIN)/tradebench plan suites/$(1).yaml --gpu h100-80gb --out $(BUILD)
endef

examples: example-quickstart example-plan example-claims example-ladder example-compression \
		example-sharding example-validation
	$(BIN)/python tests/test_readme.py

example-quickstart: $(VENV)/.installed
	$(call run,quickstart-full)
	$(call keep,quickstart-full)
	$(call keep_timelines,quickstart-full)
	$(call report,quickstart-full)

# Its timelines are too large for git: the report is drawn where they still are.
example-plan: $(VENV)/.installed
	$(call plan,llama-3.3-70b)
	$(call keep,llama-3.3-70b.plan)
	rm -rf reports/llama-3.3-70b.plan
	$(BIN)/tradebench report $(BUILD)/llama-3.3-70b.plan/* --out reports/llama-3.3-70b.plan

example-claims: $(VENV)/.installed $(GPTQ)/.installed
	$(GPTQ)/bin/tradebench run suites/claims.yaml --out $(BUILD)
	$(call keep,claims)
	$(call keep_timelines,claims)
	$(call plan,llama-3.3-70b-claims)
	$(call keep,llama-3.3-70b-claims.plan)
	$(call report,claims,--beside results/llama-3.3-70b-claims.plan/example)

example-ladder: $(VENV)/.installed
	$(call run,ladder)
	$(call keep,ladder)
	$(call keep_timelines,ladder)
	$(call report,ladder)

example-compression: $(VENV)/.installed $(GPTQ)/.installed
	$(GPTQ)/bin/tradebench run suites/compression.yaml --out $(BUILD)
	$(call keep,compression)
	$(call keep_timelines,compression)
	$(call report,compression)

example-sharding: $(VENV)/.installed
	$(call run,sharding)
	$(call keep,sharding)
	$(call keep_timelines,sharding)
	$(call plan,llama-3.3-70b-sharding)
	$(call keep,llama-3.3-70b-sharding.plan)
	$(call report,sharding,--beside results/llama-3.3-70b-sharding.plan/example)
	$(call run,sharding-random)
	$(call keep,sharding-random)
	$(call keep_timelines,sharding-random)
	$(call report,sharding-random)

example-validation: $(VENV)/.installed
	mkdir -p reports/validation
	$(BIN)/tradebench plan --validate > reports/validation/report.md
	$(BIN)/python tests/test_held.py
	PYTHONPATH=tests $(BIN)/python -m gpu.report

gpu-kit: $(VENV)/.installed
	PYTHONPATH=tests $(BIN)/python -m gpu.kit

# With the Python that has torch and transformers there, such as PYTHON=.venv/bin/python; what else
# it lacks comes from the kit, if there is one for its version.
OUT := results/h200
gpu:
	PYTHONPATH=tests $(PYTHON) -m gpu.run --out $(OUT)

clean:
	rm -rf $(VENV) $(GPTQ) dist .mypy_cache .ruff_cache .pytest_cache
