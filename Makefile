# `make study` reproduces the study and its report; `make test` runs the tests. Both set up their own .venv first.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

.PHONY: study test report lint install clean

study: install
	dvc repro
	@echo "Done: open reports/index.html"

test: install
	pytest

lint: install
	ruff check . && ruff format --check . && mypy

report: install
	python -m maskclip.report results reports

install: $(VENV)/.installed

# pip's progress stays visible: PyTorch is large
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) data/mini runs results
