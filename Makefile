# Two commands: `make run` and `make test`. Each sets up what it needs; a second call does no work twice.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

run: $(VENV)/.run
	$(BIN)/python -m experiments.fetch
	$(BIN)/python -m experiments.launch --study=architecture --scale=smoke --results_dir=runs/results

test: lint fast

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check research experiments --python $(VENV)
	$(BIN)/lint-imports

fast: $(VENV)/.test
	$(BIN)/python -m pytest -n auto

$(VENV)/.run: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.test: requirements-dev.txt $(VENV)/.run
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

.PHONY: run test lint fast
