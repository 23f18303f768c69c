# Two commands on a fresh machine: `make cartpole` trains, `make test` runs the tests.
# Each makes the virtual environment first, with python3 or else the newest Python at hand that the
# suite supports. PYTHON=python3.12 chooses another interpreter.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  if $$p -c '$(SUPPORTED)' 2>/dev/null; then echo $$p; break; fi; done)
VENV ?= .venv
BIN := $(VENV)/bin
SEEDS ?= 8

VERSIONS := align compiling envs host processes run run_flags run_own stored_align stored_programs train

define CREATE
$(or $(PYTHON),false) -c '$(SUPPORTED)' || \
  { echo "error: Python 3.11 to 3.14 is needed; say which, as in: make PYTHON=python3.12"; exit 1; }
test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
endef

.PHONY: cartpole test versions slow check docs benchmark clean

cartpole: $(VENV)/usable
	$(BIN)/python -m experiments.run --agent rgpo --env CartPole-v1 --num-seeds $(SEEDS)

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2

# What can differ from Python to Python, and from one JAX to another: programs, environments, files.
versions: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 $(VERSIONS:%=tests/test_%.py) -m 'not slow and not alike'

slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow -s

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

benchmark: $(VENV)/installed
	$(BIN)/python -m experiments.benchmark

$(VENV)/installed: pyproject.toml
	$(CREATE)
	$(BIN)/python install.py dev
	touch $@ $(VENV)/usable

# What training needs, without what tests need.
$(VENV)/usable: pyproject.toml
	$(CREATE)
	$(BIN)/python install.py
	touch $@

clean:
	rm -rf $(VENV)
