.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo test test-slow test-gpu check fmt bench clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# pip first: --group needs a version that knows dependency groups (25.1)
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	@touch $@

demo: $(INSTALLED)  ## install, then run the main job on a drawn dataset (offline, about a minute)
	$(BIN)/vp demo

# One process per core and one thread in each: matrices in tests are small, and threads that wait for each other cost
# more than they save. The tests of a file stay together, because they share what they build.
TEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto

FAST := --dist loadfile -m 'not slow and not gpu'

# What annotations say of shapes and types is compared with every call, which takes as long as the tests themselves.
CHECKED := --jaxtyping-packages=features,heads,pipeline,beartype.beartype

test: $(INSTALLED)  ## install, then run every test that is not slow
	$(TEST) $(FAST)

test-slow: $(INSTALLED)  ## the slow tests, and the others once more with every shape checked (half an hour)
	$(TEST) -m slow tests
	$(TEST) $(FAST) $(CHECKED)

test-gpu: $(INSTALLED)  ## what only a GPU can show (a few minutes; without one nothing runs)
	$(BIN)/python -m pytest -q -m gpu tests/test_on_a_gpu.py

check: $(INSTALLED)  ## formatting, lint, types, and who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(INSTALLED)  ## format the code and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED)  ## how fast the heads train, against a library and this machine's own matrix product
	$(BIN)/python benchmarks/compare_heads.py
	$(BIN)/python benchmarks/heads_mlp.py

clean:  ## remove the environment and every cache of tools
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
