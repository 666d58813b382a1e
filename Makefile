# Two commands set everything up on a machine that has Python 3.10 or newer:
#   make quickstart    create the environment, distil on embedded data (one to two minutes)
#   make test          create the environment, run every test but the slow ones
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.itrd-installed
DEV    := $(VENV)/.itrd-dev

TOOLS  := $(VENV)-tools
OLDEST := $(VENV)-oldest
MEASURED := benchmarks/measured/cpu

.PHONY: quickstart test test-slow test-emulated test-oldest reliability measured lint format docs lock audit sbom env clean

quickstart: $(STAMP)
	$(BIN)/itrd quickstart

test: $(DEV) lint
	$(BIN)/python -m pytest -m "not slow" -n 2

test-slow: $(DEV)
	$(BIN)/python -m pytest -m slow

# The tests for GPUs, on one that is emulated (tests/emulated_cuda): about two minutes on two cores, with g++.
test-emulated: $(DEV)
	ITRD_EMULATED_CUDA=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m gpu -n 2

# With the oldest versions that are allowed: Python 3.11, and 6 GB, as torch 2.6 comes with its CUDA libraries.
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --constraint constraints-oldest.txt --editable ".[dev]"
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -m "not slow" -n 2

# The figures of docs/reliability.md: about twenty minutes.
reliability: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/kill.py --out $(MEASURED)-kills.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/stop.py --out $(MEASURED)-stops.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/endurance.py --out $(MEASURED)-endurance.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutations.py --out $(MEASURED)-mutations.json
	$(BIN)/python benchmarks/pages.py

# The other measured figures of the docs: about an hour on two cores that do nothing else.
measured: $(DEV)
	$(BIN)/python benchmarks/throughput.py --device cpu --out $(MEASURED)-throughput.json
	$(BIN)/python benchmarks/floors.py --device cpu --out $(MEASURED)-floors.json
	$(BIN)/python benchmarks/scaling.py --device cpu --out $(MEASURED)-scaling.json
	$(BIN)/python benchmarks/cpu_choices.py --out $(MEASURED)-choices.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fidelity.py --device cpu --out $(MEASURED)-fidelity.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/packed.py --out $(MEASURED)-packed.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/loading.py --out $(MEASURED)-loading.json
	$(BIN)/python benchmarks/pages.py

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The site, into site/; every warning is an error. The variable silences the theme's advertisement.
docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Checksums of every file of every dependency but torch (requirements.lock says why).
lock: $(TOOLS)
	$(TOOLS)/bin/pip-compile --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
		--no-emit-trusted-host --quiet --strip-extras --extra dev --constraint constraints.txt \
		--unsafe-package torch --output-file $(VENV)/lock.txt pyproject.toml
	sed '/==/,$$d' requirements.lock > $(VENV)/head.txt
	grep -v -e '^#' -e '^itrd ' $(VENV)/lock.txt | sed '/^$$/d' | cat $(VENV)/head.txt - > requirements.lock

# Known vulnerabilities of the pinned versions; needs the network.
audit: $(TOOLS)
	$(TOOLS)/bin/pip-audit --requirement requirements.lock --require-hashes --disable-pip --progress-spinner off

# What a release is made of, as CycloneDX.
sbom: $(TOOLS) $(DEV)
	$(TOOLS)/bin/cyclonedx-py environment --output-reproducible --of JSON --output-file sbom.json $(BIN)/python

$(TOOLS):
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --disable-pip-version-check pip-tools==7.6.2 pip-audit==2.10.1 cyclonedx-bom==7.5.0

env: $(DEV)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $(STAMP)

$(DEV): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(DEV)

clean:
	rm -rf $(VENV) $(TOOLS) $(OLDEST) sbom.json site build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
