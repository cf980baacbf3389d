# `make study` runs the study, one seed, quickly; `make test` runs the tests. Both set up their own .venv first, with
# the newest Python from 3.11 on that is there; `make PYTHON=/where/python3.12 study` takes that one.
VENV ?= .venv
BIN := $(VENV)/bin
PYTHONS := $(if $(PYTHON),"$(PYTHON)",python3.13 python3.12 python3.11 python3)
export DVC_NO_ANALYTICS := 1
# Many a container says that Python shall keep no bytecode. Each of a study's hundred processes would compile PyTorch
# anew, ten seconds apiece.
unexport PYTHONDONTWRITEBYTECODE

# How many stages, or files of tests, run side by side. `make study LANES=1`, or plain `dvc repro`, runs one stage after
# another, as is best where one fills the machine (the paper profile).
LANES ?= 2

.PHONY: study test rehearsal released report slides lint install clean

study: install
	$(BIN)/python -m study.pipeline --lanes $(LANES) --profile mini --seeds 0
	@echo "Done: open runs/mini/report/index.html"

# the same pipeline with longer trainings and five seeds, overnight; its result is what reports/ is for
report: install
	$(BIN)/python -m study.pipeline --lanes $(LANES) --profile overnight --seeds 0 1 2 3 4
	$(BIN)/python -m study.report

# the authors' released weights on A-150, nothing trained; README.md says which files they need
released: install
	$(BIN)/python -m study.pipeline --profile released --seeds 0
	@echo "Done: open runs/released/report/index.html"

# the course's lessons, as they ran, for a projector
slides: install
	$(BIN)/jupyter nbconvert --to slides --template slides --TemplateExporter.extra_template_basedirs=study \
		--SlidesExporter.reveal_width=1280 --SlidesExporter.reveal_height=720 --SlidesExporter.reveal_scroll=True \
		--output-dir runs/slides reports/course/*.ipynb

# a file's tests stay together; the rehearsal comes first (tests/conftest.py) and has a lane of its own
test: install
	export OMP_NUM_THREADS=$$($(BIN)/python -c "import os; print(max(1, os.cpu_count() // $(LANES)))"); \
	$(BIN)/python -m pytest -n $(LANES) --dist loadfile --no-loadscope-reorder

# the paper profile's whole path on made-up archives, in some five minutes
rehearsal: install
	$(BIN)/python -m pytest tests/test_rehearsal.py

lint: install
	$(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check . && $(BIN)/python -m mypy

install: $(VENV)/.installed

# uv takes a third of pip's time. It knows nothing of pip's settings (a mirror, a proxy): where it fails, pip does it all.
# Progress stays visible: PyTorch is large. Only what is imported gets compiled, when it is: all takes a minute.
PIP = $(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt
ALL = -e ".[study,miniature,test]"

$(VENV)/.installed: pyproject.toml constraints.txt
	@for python in $(PYTHONS); do \
		"$$python" -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || continue; \
		echo "$$python -m venv $(VENV)"; exec "$$python" -m venv $(VENV); \
	done; echo "error: none of these is a Python from 3.11 on, with venv: $(PYTHONS)" >&2; exit 1
	$(PIP) -q uv && $(BIN)/uv pip install --python $(BIN)/python -c constraints.txt $(ALL) || $(PIP) $(ALL)
	@touch $@

clean:
	rm -rf $(VENV) data/mini runs/mini results/mini
