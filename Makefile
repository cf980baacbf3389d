# `make study` reproduces the study and its report; `make test` runs the tests. Both set up their own .venv first.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

# `make study` runs stages that do not need one another side by side, LANES at a time: small networks gain more from that
# than from threads. `make study LANES=1`, or plain `dvc repro`, runs one after another, as is best where one stage
# fills the machine (the paper profile). What a stage waits for is dvc.yaml's to say; here it only has to come first.
LANES ?= 2
study test: export OMP_NUM_THREADS := $(shell $(PYTHON) -c "import os; print(max(1, (os.cpu_count() or 1) // $(LANES)))")

NETWORKS := mask2former mask_rcnn mask2former_base class_agnostic class_aware
ABLATIONS := layers_21_22_23_24 layers_3_9_15_21 layers_1_7_13_19 wo_refinement
# the long ones first, so that the lanes end together
STAGES := data efficiency $(NETWORKS) baselines ours maskclip_mask_rcnn coco_split $(ABLATIONS) pictures ground_truth_masks

.PHONY: study stages $(STAGES) test report lint install clean

study: install
	python -m maskclip.settings
	$(MAKE) --no-print-directory -j $(LANES) stages
	dvc repro
	@echo "Done: open reports/index.html"

stages: $(STAGES)

$(NETWORKS): data
baselines ours $(ABLATIONS): mask2former
maskclip_mask_rcnn: mask_rcnn
coco_split: mask2former_base
ground_truth_masks pictures: ours

$(NETWORKS): stage = proposals@*-$@
ours: stage = maskclip@*-maskclip
$(ABLATIONS): stage = maskclip@*-$@
$(STAGES): stage ?= $@*
$(STAGES):
	dvc --wait-for-lock repro --single-item --glob '$(stage)'

# a file's tests stay together; the study at smoke size comes first (tests/conftest.py) and has a lane of its own
test: install
	pytest -n $(LANES) --dist loadfile --no-loadscope-reorder

lint: install
	ruff check . && ruff format --check . && mypy

report: install
	python -m study.report results reports

install: $(VENV)/.installed

# pip's progress stays visible: PyTorch is large
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) data/mini runs results
