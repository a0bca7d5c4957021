# make run | test | check | parity | bench; PYTHON=python3.12 picks another interpreter (then .venv is built anew).
PYTHON ?= python3
# A pyenv shim answers only for versions that pyenv has switched on; where it does not, ask pyenv for the interpreter itself.
ifneq ($(shell $(PYTHON) -c 'print(1)' 2>/dev/null),1)
PYENV_FOUND := $(shell pyenv whence $(PYTHON) 2>/dev/null | tail -n 1)
ifneq ($(PYENV_FOUND),)
override PYTHON := $(shell pyenv prefix $(PYENV_FOUND))/bin/$(PYTHON)
endif
endif
WORKDIR ?= runs/quickstart
VENV := .venv
BIN := $(VENV)/bin
PYVERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# Python 3.11 is the last version that jax 0.10 supports; later ones resolve newer releases, so each has its own pins.
CONSTRAINTS := $(if $(filter 3.11,$(PYVERSION)),constraints.txt,constraints-3.12.txt)
# xdist workers: one per core, two at least pays off because compilation is single-threaded.
PYTEST_FLAGS ?= -n 2 --dist loadfile

.PHONY: run test check format parity bench clean
.DELETE_ON_ERROR:

run: $(VENV)/.core
	$(BIN)/lmx run experiments/quickstart.py --workdir $(WORKDIR)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q --durations=0 tests/test_import_graph.py

parity: $(VENV)/.parity
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -m parity tests/parity

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.bench

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.python-$(PYVERSION):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lmx needs Python 3.11 or later; $(PYTHON) is " + sys.version.split()[0] + ". Try: make $(MAKECMDGOALS) PYTHON=python3.12")'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.core: $(VENV)/.python-$(PYVERSION) pyproject.toml $(CONSTRAINTS)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.python-$(PYVERSION) pyproject.toml $(CONSTRAINTS)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@ $(VENV)/.core

$(VENV)/.parity: $(VENV)/.dev
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[parity]'
	touch $@

$(VENV)/.bench: $(VENV)/.core
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[bench]'
	touch $@
