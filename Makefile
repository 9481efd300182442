# Each target makes .venv itself. PYTHON chooses the interpreter a new one is made with.
PYTHON ?= python3
PIP_INSTALL = .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
STAMP = .venv/.installed

.PHONY: demo test lint bench docs clean

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("adaptergit needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@# torch first: the other packages then find it satisfied and do not bring a GPU build
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) -e '.[demo,train,dev]'
	touch $(STAMP)

demo: $(STAMP)
	.venv/bin/adaptergit demo

test: $(STAMP)
	.venv/bin/python -m pytest

lint: $(STAMP)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: $(STAMP)
	.venv/bin/python benchmarks/startup.py
	.venv/bin/python benchmarks/fetch.py

docs: $(STAMP)
	$(PIP_INSTALL) -e '.[docs]'
	.venv/bin/mkdocs build --strict

clean:
	rm -rf .venv build dist site
