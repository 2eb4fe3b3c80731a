# Every target makes what it needs: a virtual environment in .venv, with this checkout installed in it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The version that the tests run with; a plain "torch" would also fetch the CUDA libraries.
TORCH ?= torch==2.13.0

.PHONY: demo test check lint clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   start the daemon with the example policy and let a robot balance a pole through it"
	@echo "make test   all checks and tests"
	@echo "make lint   the static checks alone"
	@echo "make clean  remove what these made"

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(VENV)/installed
	@$(BIN)/python examples/cartpole/demo.py

lint: $(VENV)/installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache > /tmp/lint-imports.$$$$ 2>&1 || { cat /tmp/lint-imports.$$$$; rm -f /tmp/lint-imports.$$$$; exit 1; }; rm -f /tmp/lint-imports.$$$$

test: lint
	@$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
