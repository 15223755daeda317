# Every target works from a fresh clone; `.venv` is made on first use.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -c constraints.txt
JOBS ?= 2
# One thread per test process: more of them than cores make every test slower.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

.PHONY: demo test test-all bench accept lint format docs clean

demo: .venv/.installed
	$(BIN)/uplift compare recipes/demo.yaml

test: .venv/.installed-dev
	$(TEST) -m "not slow and not gpu"

# With the runtimes that exported files are tried in: llama.cpp is compiled here, some minutes.
test-all: .venv/.installed-export
	$(TEST) -m "not gpu"

bench: .venv/.installed-bench
	$(BIN)/python -m bench

# The experiments behind the techniques; hours. `python -m acceptance NAME` runs one.
accept: .venv/.installed-dev
	$(BIN)/python -m acceptance

lint: .venv/.installed-dev
	$(BIN)/ruff format --check src tests bench acceptance docs
	$(BIN)/ruff check src tests bench acceptance docs
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.installed-dev
	$(BIN)/ruff format src tests bench acceptance docs
	$(BIN)/ruff check --fix src tests bench acceptance docs

docs: .venv/.installed
	$(BIN)/python docs/build.py

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests bench acceptance docs -name __pycache__ -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch comes first and by its pin, so that nothing else pulls another build of it. The extra `data` reads and cleans what people have.
.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) torch
	$(PIP) -e '.[data]'
	touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) -e '.[dev]'
	touch $@

.venv/.installed-export: .venv/.installed-dev
	$(PIP) -e '.[dev,export]'
	touch $@

.venv/.installed-bench: .venv/.installed
	$(PIP) -e '.[bench]'
	touch $@
