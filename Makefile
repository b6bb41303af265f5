# Each goal makes its own environment first; one that is there already is left alone.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEVICE := .venv-device
DEVICE_READY := $(DEVICE)/.ready
# Other people's networks, for tests alone, beside the environment: torchvision's wheels from PyPI cannot be imported
# beside a CPU-only torch, and transformers would try.
MODELS := .models
MODEL_TESTS := tests/models/test_hub.py tests/models/test_torchvision.py tests/nn/test_build.py tests/measure \
	tests/pruning/channels/test_transformers.py tests/pruning/channels/test_timm.py \
	tests/pruning/channels/test_shuffle.py
DEMO := runs/mobilenet_sparse
DEMO_FILES := $(DEMO)/teacher.tflite $(DEMO)/model.tflite
KINDS := runs/device_files
KIND_FILES := $(foreach kind,float sparse int8 weights8 weights4,$(KINDS)/$(kind).tflite)
# tflite-runtime's last release is older than the int4 kernels.
NEWER := $(KINDS)/weights4.tflite

.PHONY: help demo test test-fast test-models lint bench device-check clean

help:
	@echo "make demo          compress a MobileNet on the embedded data, from nothing to a checked .tflite"
	@echo "make test          run all tests"
	@echo "make test-fast     run those that take no Ray, no whole run and no .tflite file: a minute and a half"
	@echo "make test-models   run those that take networks of timm and torchvision, which it installs in $(MODELS)"
	@echo "make lint          ruff and mypy"
	@echo "make bench         run the benchmarks but the finished studies, and print what they measure against their goals"
	@echo "make device-check  run .tflite files of every kind on tflite-runtime, in an environment of its own"
	@echo "make clean         remove the environments and caches; runs/ stays"

demo: $(READY)
	$(BIN)/python -m pfray.run experiments/mobilenet_sparse.yaml --force

# What training gives differs between processors: the tests that lean on it run as on one without AVX-512, too.
test: $(READY)
	$(BIN)/python -m pytest
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest -m trains

test-fast: $(READY)
	$(BIN)/python -m pytest -m "not slow"

test-models: $(READY) $(MODELS)/.ready
	PYTHONPATH=$(MODELS) $(BIN)/python -m pytest $(MODEL_TESTS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy pfray envs learners benchmarks

bench: $(READY)
	$(BIN)/python -m benchmarks

device-check: $(READY) $(DEVICE_READY) $(DEMO)/summary.json
	PYTHONPATH=. $(DEVICE)/bin/python -m pfray.bench $(DEMO_FILES)
	$(BIN)/python -m benchmarks.device_check make $(DEMO)/device_check.npz $(DEMO_FILES)
	PYTHONPATH=. $(DEVICE)/bin/python -m benchmarks.device_check compare $(DEMO)/device_check.npz $(DEMO_FILES)
	$(BIN)/python -m benchmarks.device_files $(KINDS)
	$(BIN)/python -m benchmarks.device_check make $(KINDS)/device_check.npz $(KIND_FILES)
	PYTHONPATH=. $(DEVICE)/bin/python -m benchmarks.device_check compare $(KINDS)/device_check.npz $(KIND_FILES) \
		--may-refuse $(NEWER)

clean:
	rm -rf $(VENV) $(DEVICE) $(MODELS) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The file that finishes a run. Resumed and not forced: a run that is unfinished, or still going on, is never deleted.
$(DEMO)/summary.json: | $(READY)
	$(BIN)/python -m pfray.run experiments/mobilenet_sparse.yaml --resume

# torch first and by itself, so that pip takes a CPU build where the index offers one.
$(READY): pyproject.toml constraints.txt
	$(call make-environment,$(VENV),(3, 11) <= sys.version_info,3.11 or newer,python3 python3.12 python3.13)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(MODELS)/.ready: constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --constraint constraints.txt --target $(MODELS) \
		timm torchvision torchmetrics lightning-utilities
	touch $@

# tflite-runtime's last release has no wheels for a newer Python.
$(DEVICE_READY):
	$(call make-environment,$(DEVICE),(3, 10) <= sys.version_info < (3, 12),3.10 or 3.11,python3.11 python3.10 python3)
	$(DEVICE)/bin/python -m pip install --quiet "numpy<2" "tflite-runtime==2.14.*"
	touch $@

# $(1): the folder, $(2): the condition on Python, $(3): the same in words, $(4): what to try beside $(PYTHON).
# A folder without pip is no environment: Python without ensurepip, or an interrupted call, leaves one.
define make-environment
@test -x $(1)/bin/pip || for python in $(PYTHON) $(4); do \
	if $$python -c 'import sys; sys.exit(not ($(2)))' 2>/dev/null; then \
		$$python -m venv $(1) && exit 0; rm -rf $(1); \
	fi; \
done; \
test -x $(1)/bin/pip || { echo "no Python $(3) that can make a venv. Remedy: make PYTHON=/path/to/python $@" >&2; exit 1; }
endef
