# Two commands on a fresh machine: `make cartpole` trains, `make test` runs the tests.
# Each makes the virtual environment first. PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SEEDS ?= 8

.PHONY: cartpole test slow check benchmark clean

cartpole: $(VENV)/installed
	$(BIN)/python -m experiments.run --agent rgpo --env CartPole-v1 --num-seeds $(SEEDS)

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2

slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow -s

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: $(VENV)/installed
	$(BIN)/python -m experiments.benchmark

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "error: Python 3.11 or 3.12 is needed; say which, as in: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
