PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check bench

# Draws a grid with the bundled model: captions down, targets across. Leaves demo.png.
demo: $(VENV)/all
	$(BIN)/python -m perfuse.shapes.demo --output demo.png

test: $(VENV)/dev
	$(BIN)/python -m pytest -n auto --dist loadfile --ignore tests/test_readme.py

check: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest --doctest-modules core/perfuse tests/test_readme.py

bench: $(VENV)/dev
	$(BIN)/python benchmarks/run.py

$(VENV)/all: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[all]'
	touch $@

$(VENV)/dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[dev]'
	touch $@
