# Everything runs in .venv, made on first use with $(PYTHON) (3.11 or newer) and the tested versions.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: install quickstart test test-slow lint clean

install: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --editable ".[quickstart,dev]" --constraint constraints.txt
	touch $@

quickstart: install
	$(VENV)/bin/uniedit quickstart

test: install
	$(RUN) -m pytest -q --durations=10

test-slow: install
	$(RUN) -m pytest -q --durations=10 -m slow

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -exec rm -rf {} +
