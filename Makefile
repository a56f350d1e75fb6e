PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test sweep lint bench bench-gpu

# The stamp makes setup a no-op until a requirements file changes.
$(VENV)/run.stamp: requirements.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v in [(3, 11), (3, 12)] else f"rubric_jax needs Python 3.11 or 3.12, this is {v[0]}.{v[1]}; say make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

# torch first and by itself: see requirements-dev.txt.
$(VENV)/dev.stamp: $(VENV)/run.stamp requirements-dev.txt
	$(BIN)/python -m pip install --quiet $$(grep '^torch==' requirements-dev.txt)
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

quickstart: $(VENV)/run.stamp
	$(BIN)/python -m rubric_jax quickstart --workdir=runs/quickstart

test: $(VENV)/dev.stamp
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m 'not sweep'

sweep: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m sweep

lint: $(VENV)/dev.stamp
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

bench: $(VENV)/dev.stamp
	$(BIN)/python experiments/benchmarks/run.py

# Prepared, not measured yet: needs a GPU, and torch with CUDA for the other side.
bench-gpu: $(VENV)/dev.stamp
	$(BIN)/python experiments/benchmarks/run.py --gpu
