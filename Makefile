# Everything runs in .venv, made on first use, or in the active environment if that one already has detectron2.

ACTIVE_PYTHON := $(shell python3 -c 'import detectron2, sys; print(sys.executable)' 2>/dev/null)
ifeq ($(ACTIVE_PYTHON),)
PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
else
PYTHON := $(ACTIVE_PYTHON)
INSTALLED := build/.installed-in-active-environment
endif

DEMO := output/quickstart

# Models in tests are tiny: two processes of one thread each are faster than one of two.
PYTEST := OMP_NUM_THREADS=1 $(PYTHON) -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: help demo finetune test test-slow lint docs

help:
	@echo "make demo        train a small detector on generated shapes (CPU, minutes), evaluate it, draw its predictions"
	@echo "make finetune    fine-tune a network that has seen ImageNet on BCCD's photos of blood cells, and draw what it finds"
	@echo "make test        run the test suite, but for the slow tests"
	@echo "make test-slow   run the slow tests: build the wheel, install it and use it"
	@echo "make lint        check style, formatting and types"
	@echo "make docs        build the site of the documents and of the API reference"

demo: $(INSTALLED)
	$(PYTHON) datasets/prepare_shapes.py
	$(PYTHON) train_net.py --config-file configs/quickstart.yaml --overwrite OUTPUT_DIR $(DEMO)
	@$(PYTHON) tools/plot_training.py $(DEMO)
	@$(PYTHON) tools/contact_sheet.py $(DEMO)
	@echo
	@echo "The demo left in $(DEMO):"
	@echo "  model_final.pth                       the trained detector"
	@echo "  metrics.json, events.out.tfevents.*   losses and learning rate; tensorboard --logdir $(DEMO)"
	@echo "  training_curves.png                   the same as a picture"
	@echo "  inference/shapes_val/metrics.json     COCO results"
	@echo "  predictions.png                       predictions beside ground truth"

# BCCD's photos are in datasets/bccd or where DETECTRON2_DATASETS says; see datasets/README.md.
finetune: $(INSTALLED)
	$(PYTHON) train_net.py --config-file configs/lite0.bccd.yaml --overwrite
	@$(PYTHON) tools/plot_training.py output/lite0.bccd
	@$(PYTHON) tools/contact_sheet.py output/lite0.bccd

test: $(INSTALLED)
	$(PYTEST) -m "not slow"

test-slow: $(INSTALLED)
	$(PYTEST) -m slow

lint: $(INSTALLED)
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy

docs: $(INSTALLED)
	$(PYTHON) tools/build_site.py

.venv/.installed: pyproject.toml setup.py detectron2_lite/pyproject.toml constraints.txt
	@echo "Installing into .venv (once) ..."
	@python3 -m venv .venv
	@$(PYTHON) -m pip install -q --disable-pip-version-check -c constraints.txt -e ./detectron2_lite -e ./runtime -e '.[test,lint,web,docs,pretrained]'
	@touch $@

build/.installed-in-active-environment: pyproject.toml setup.py
	@echo "Installing into the active environment, which has detectron2 (once) ..."
	@$(PYTHON) -m pip install -q --disable-pip-version-check -e ./runtime -e '.[test,lint,web,docs,pretrained]'
	@mkdir -p build && touch $@
