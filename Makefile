# Two commands: `make run` and `make test`. Each sets up what it needs; a second call does no work twice.
# `make test-aot` compiles for TPUs without one; `make test-gpu` runs attention, training and generation on an NVIDIA GPU;
# `make test-browser` reads the report in the system's Chromium.
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
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow" $(TESTS)

slow: $(VENV)/.test
	$(BIN)/python -m pytest -n auto --dist loadfile -m slow

test-aot: .venv-aot/.done
	.venv-aot/bin/python -m pytest tests/aot

test-browser: .venv-browser/.done
	.venv-browser/bin/python -m pytest tests/browser

test-parity: .venv-parity/.done
	.venv-parity/bin/python -m pytest tests/attention/test_positions.py tests/attention/test_scaling.py \
		tests/experiments/test_harness.py tests/generation/test_processors.py tests/training/test_trackers_offline.py \
		tests/analysis/test_statistics_parity.py tests/interop/test_counts.py tests/interop/test_checkpoints.py \
		tests/interop/test_transformers.py

test-gpu: .venv-gpu/.done
	JAX_PLATFORMS=cuda JAX_DEFAULT_MATMUL_PRECISION=highest XLA_PYTHON_CLIENT_PREALLOCATE=false \
		.venv-gpu/bin/python -m pytest tests/attention tests/gpu

$(VENV)/.run: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.test: requirements-dev.txt $(VENV)/.run
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

.venv-aot/.done: requirements-aot.txt requirements-dev.txt requirements.txt
	$(PYTHON) -m venv .venv-aot
	.venv-aot/bin/python -m pip install --quiet -r requirements-aot.txt
	touch $@

.venv-browser/.done: requirements-browser.txt requirements-dev.txt requirements.txt
	$(PYTHON) -m venv .venv-browser
	.venv-browser/bin/python -m pip install --quiet -r requirements-browser.txt
	touch $@

.venv-parity/.done: requirements-parity.txt requirements-dev.txt requirements.txt
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet -r requirements-parity.txt
	touch $@

.venv-gpu/.done: requirements-dev.txt requirements.txt
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install --quiet -r requirements-dev.txt "jax[cuda13]"
	touch $@

.PHONY: run test lint fast slow test-aot test-browser test-parity test-gpu
