# Each goal makes its own environment first; one that is there already is left alone.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEVICE := .venv-device

.PHONY: demo test lint bench device-check clean

demo: $(READY)
	$(BIN)/python -m pfray.run experiments/mobilenet_sparse.yaml --force

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy pfray envs learners benchmarks

bench: $(READY)
	$(BIN)/python -m benchmarks

# torch first and by itself, so that pip takes a CPU build where the index offers one.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
