# `make demo` and `make test` work in a fresh clone with Python 3.10+, make and git.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
# Each constraints file has an environment of its own, so that changing between them installs nothing anew.
VENV ?= .venv$(if $(filter-out constraints.txt,$(CONSTRAINTS)),-$(basename $(notdir $(CONSTRAINTS))))
# The newest set has no optimum-onnx (see constraints-latest.txt); only tests and benchmarks need it.
EXTRAS ?= dev,bnb,report,onnx,gguf,openvino$(if $(filter constraints.txt,$(CONSTRAINTS)),$(COMMA)optimum)
COMMA := ,
BIN = $(VENV)/bin
READY = $(VENV)/.ready
DEMO_READY = $(VENV)/.ready-demo
DEMO = out/demo

.PHONY: help setup demo test test-full test-smoke test-latest lint docs bench gpu-wheels gpu clean

help:
	@echo "make demo       set up, make an 8-bit ONNX artifact of the built-in tiny-sd, and compare it with the original"
	@echo "make test       set up and run the tests (about 8 minutes on 2 cores)"
	@echo "make test-full  also the tests that take gigabytes or many minutes"
	@echo "make test-latest  set up the newest libraries beside, and run a few minutes of tests against them"
	@echo "make lint       ruff, mypy and import-linter"
	@echo "make docs       build the documentation as a site in site/"
	@echo "make bench      the benchmarks; writes benchmarks/results/ and the tables of README.md and docs/benchmarks.md"
	@echo "make gpu-wheels  gather the wheels that a bare GPU machine lacks, for make gpu without a network"
	@echo "make gpu        everything to measure on a GPU, in 8 minutes; writes OUT (out/gpu); see docs/gpu.md"
	@echo "make clean      remove environments, caches and out/"

INSTALL = $(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[$(EXTRAS)]"
	@touch $@

# The demo needs neither linters nor browser drivers nor OpenVINO; an environment that has them serves it too.
$(DEMO_READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[onnx,report]"
	@touch $@

setup: $(READY)

demo: $(if $(wildcard $(READY)),$(READY),$(DEMO_READY))
	$(BIN)/sdcompress run tiny-sd --recipe onnx-int8 --count 12 --out $(DEMO) --force

# A file's tests share what they made, so they stay in one process.
test: $(READY)
	$(BIN)/python -m pytest -m "not full" --numprocesses 2 --dist loadfile

test-full: $(READY)
	$(BIN)/python -m pytest

test-smoke: $(READY)
	$(BIN)/python -m pytest -m "smoke and not full" --numprocesses 2 --dist loadfile

test-latest:
	$(MAKE) test-smoke CONSTRAINTS=constraints-latest.txt

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site needs none of the package's libraries: mkdocstrings reads the sources without importing them.
DOCS_READY = .venv-docs/.ready

$(DOCS_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --constraint constraints.txt zensical mkdocstrings-python ruff
	@touch $@

docs: $(DOCS_READY)
	.venv-docs/bin/zensical build --strict --clean

bench: $(READY)
	$(BIN)/python benchmarks/full_size.py
	$(BIN)/python benchmarks/recipes.py
	$(BIN)/python benchmarks/unet_step.py
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/onnx_quality.py
	$(BIN)/python benchmarks/quality_per_byte.py
	$(BIN)/python benchmarks/torch_step.py
	$(BIN)/python benchmarks/pruned_step.py
	$(BIN)/python benchmarks/pruning.py
	$(BIN)/python benchmarks/report_page.py
	$(BIN)/python benchmarks/docs_tables.py

# Of a machine with a GPU, where this environment is not: its own Python, which has torch.
GPU_PYTHON ?= $(if $(wildcard $(READY)),$(BIN)/python,python3)
OUT ?= out/gpu
ARGS ?=

gpu-wheels:
	$(PYTHON) -m benchmarks.gpu.wheels

gpu:
	$(GPU_PYTHON) -m benchmarks.gpu --out $(OUT) $(ARGS)

clean:
	rm -rf .venv .venv-* .cache build dist out site benchmarks/gpu/wheels .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
