# Everything a fresh machine needs is Python 3.11 or newer and make.
#   make demo    a real network collapses, and the theory beside it: one figure
#   make test    every test that runs in minutes on two cores
#   make quick   the tests that end within a minute, while you work
NOTEBOOKS ?= notebooks/*.ipynb
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test quick check lint types notebooks clean

help:
	@sed -n '2,4p' Makefile | cut -c 3-

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which with: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps neural-tangents
	touch $@

demo: .venv/installed
	$(BIN)/ntkcollapse compare --out runs/demo --overwrite

test: .venv/installed
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

# Nouns, tables and files: what compiles little.
QUICK := tests/test_classes.py tests/test_clock.py tests/test_files.py tests/test_kernels.py tests/test_trajectory.py \
	tests/test_run_directory.py tests/test_observable_table.py tests/test_notebooks.py tests/theory/test_statements.py \
	tests/data/test_batches.py tests/training/test_options.py tests/training/test_checkpoints.py

quick: .venv/installed
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile $(QUICK)

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/installed
	$(BIN)/basedpyright

# What one notebook has compiled the others load: a quarter of their processor time.
notebooks: export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.pytest_cache/notebooks
notebooks: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS := 0
notebooks: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES := -1
# They are run to see that they run: another quarter is optimisation.
notebooks: export JAX_DISABLE_MOST_OPTIMIZATIONS := 1
# And as in tests/conftest.py: simpler code for fused loops in one piece, where the compiler knows the flags.
SIMPLER := --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1
notebooks: export XLA_FLAGS = $(shell $(BIN)/python -c 'import jax; print("$(SIMPLER)" * (jax.__version_info__ < (0, 11)))')
notebooks: export JAX_TRACEBACK_IN_LOCATIONS_LIMIT := 0
notebooks: .venv/installed
	$(BIN)/python -m pytest -o addopts= --nbmake --numprocesses=2 $(NOTEBOOKS)

check: lint types test notebooks

clean:
	rm -rf .venv .pytest_cache runs
