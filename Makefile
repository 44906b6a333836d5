# Everything runs in the virtual environment VENV. An existing one is reused: its packages keep their versions, and
# missing ones are added. A new one gets the versions in constraints.txt.
VENV ?= .venv
PYTHON ?= python3

PY := $(VENV)/bin/python
PIP := $(PY) -m pip
STAMP := $(VENV)/.kd_det-is-set-up
CREATED := $(VENV)/.created-by-kd_det

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUNBUFFERED := 1
# An environment may serve several checkouts, and only one of them can be its editable kd_det.
RUN := PYTHONPATH="$(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))" $(PY)

.DEFAULT_GOAL := help
.PHONY: help setup lint docs test demo clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo "VENV=$(VENV) is the environment; PYTHON=$(PYTHON) creates it if it does not exist."

setup: $(STAMP)  ## create VENV or add to it: dependencies, kd_det, detectron2

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed; \
	name one with PYTHON=, for example: make setup PYTHON=python3.12")'
	@echo "Creating $(VENV)"
	@mkdir -p $(VENV) && touch $(CREATED)
	@$(PYTHON) -m venv $(VENV)

# setuptools: torch needs 77.0.3, and detectron2's main branch needs pkg_resources, which 81 removed.
$(STAMP): setup.py pyproject.toml constraints.txt tools/install_detectron2.py tools/detectron2_patches.py | $(PY)
	@echo "Installing what $(VENV) lacks; in a new environment this takes a few minutes"
	@constrain=$$(test ! -e $(CREATED) || echo -c constraints.txt); \
	$(PIP) install --quiet $$constrain 'setuptools>=77.0.3,<81' wheel && \
	$(PIP) install --quiet $$constrain torch torchvision && \
	$(PIP) install --quiet $$constrain --no-build-isolation -e '.[dev]'
	@$(PY) tools/install_detectron2.py $$(test ! -e $(CREATED) || echo --constraint constraints.txt)
	@touch $@

lint: setup  ## ruff on everything, mypy --strict on the losses
	$(PY) -m ruff check .
	$(PY) -m mypy

# Takes seconds: the source is read, not imported. The variable silences an advertisement.
docs: setup  ## build the documentation into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

# One test per core at a time, with one thread each: most tests are too small to use two.
test: lint docs  ## lint, documentation and all tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto

demo: setup  ## train a small teacher and its students on digits scenes; table and pictures in output/demo
	$(RUN) -m kd_det demo

clean:  ## remove caches and build products; VENV, datasets/ and output/ stay
	rm -rf build dist site *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path '*/.venv/*' -prune -exec rm -rf {} +
