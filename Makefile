# `make study` reproduces the study and its report; `make test` runs the tests. Both set up their own .venv first.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

# `make study` runs stages that do not need one another side by side, in LANES lanes: small networks gain more from that
# than from threads. `make study LANES=1`, or plain `dvc repro`, runs one after another, as is best where one stage
# fills the machine (the paper profile).
LANES ?= 2
study: export OMP_NUM_THREADS := $(shell $(PYTHON) -c "import os; print(max(1, (os.cpu_count() or 1) // $(LANES)))")
LANE = dvc --wait-for-lock repro --single-item

.PHONY: study networks networks_apart methods methods_apart masks pictures test report lint install clean

study: install
	dvc repro data
	$(MAKE) --no-print-directory -j $(LANES) networks networks_apart
	$(MAKE) --no-print-directory -j $(LANES) methods methods_apart
	$(MAKE) --no-print-directory -j $(LANES) masks pictures
	dvc repro
	@echo "Done: open reports/index.html"

# lanes of equal length on two cores
networks:
	$(LANE) --glob 'proposals@*-mask2former' 'proposals@*-mask_rcnn' 'proposals@*-class_agnostic'

networks_apart:
	$(LANE) --glob 'proposals@*-mask2former_base' 'proposals@*-class_aware'
	$(LANE) efficiency

methods:
	$(LANE) maskclip

methods_apart:
	$(LANE) baselines maskclip_mask_rcnn coco_split

masks:
	$(LANE) ground_truth_masks

pictures:
	$(LANE) pictures

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
