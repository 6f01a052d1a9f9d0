# Everything runs in .venv, made on first use with $(PYTHON) (3.11 or newer) and the tested versions.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

# The newest releases of what setup.cfg names, without its upper bounds, in an environment of their own.
UPSTREAM := .venv-upstream

.PHONY: install quickstart demo stored-example docs test test-slow test-browser upstream lmms lint clean

install: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --editable ".[quickstart,demo,serving,synthesis,datatrove,ocr,docs,dev]" --constraint constraints.txt
	touch $@

quickstart: install
	$(VENV)/bin/uniedit quickstart

demo: install
	$(VENV)/bin/uniedit demo

# What the page of the demo opens with: run it when the shipped base changes.
stored-example: quickstart
	$(RUN) -m uniedit_hf.demo.stored_example

# The site of docs/, in build/docs. A warning is an error.
docs: install
	$(RUN) -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "Open build/docs/index.html"

# Files of tests are shared out to as many processes as there are cores, four at most: each holds a torch of its own.
# They begin in the order of tests/conftest.py, the longest first.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: install
	$(RUN) -m pytest -q --durations=10 $(PARALLEL)

test-slow: install
	$(RUN) -m pytest -q --durations=10 -m slow

# Needs a browser: apt-get install chromium. Screenshots go to runs/browser.
test-browser: install
	$(RUN) -m pip install --quiet "playwright>=1.60" --constraint constraints.txt
	$(RUN) -m pytest -q -m slow tests/test_demo_browser.py

upstream:
	$(PYTHON) -m venv $(UPSTREAM)
	$(PYTHON) .ci/upstream_requirements.py > $(UPSTREAM)/requirements.txt
	$(UPSTREAM)/bin/python -m pip install --upgrade --requirement $(UPSTREAM)/requirements.txt
	$(UPSTREAM)/bin/python -m pip install --no-deps --editable .
	$(UPSTREAM)/bin/python -m pytest -q tests/test_compat.py
	$(UPSTREAM)/bin/python -m pytest -q $(PARALLEL)

# lmms-eval's own pins (wandb, av, protobuf) do not go with the tested versions, so it comes without its dependencies, and
# with those that its evaluator and the tasks of uniedit_hf/evaluation/lmms/ import.
LMMS := lmms-eval pytablewriter DataProperty mbstrdecoder pathvalidate tabledata tcolorpy typepy chardet \
	sacrebleu colorama lxml portalocker tabulate levenshtein rapidfuzz openpyxl et_xmlfile

lmms: install
	$(RUN) -m pip install --no-deps $(LMMS) --constraint constraints.txt

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -exec rm -rf {} +
