# Two commands do it all: `make reproduce` and `make test`. Python 3.11 or newer, git and make are all a machine needs.
SHELL := /bin/bash
PYTHON ?= python3
SCALE ?= laptop
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# stages call `python`: it must be this environment's, also in a path with spaces
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONWARNINGS := ignore
# some machines forbid Python to keep compiled modules: each of the 20 stages would then compile PyTorch again, twice the time in all
unexport PYTHONDONTWRITEBYTECODE
export JUPYTER_PLATFORM_DIRS := 1
# waiting threads do not spin: on a busy machine training is several times faster
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help env reproduce test docs lab clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## /  make \1|/' | column -t -s '|'

env: $(READY)  ## the Python environment in .venv (done by every other target)

$(READY): settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "== environment: $$($(PYTHON) -V) in $(VENV), versions from constraints.txt"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# uv resolves and installs in seconds what takes pip minutes; without it pip does the same
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$$(sed -n 's/^uv==//p' constraints.txt)" || echo "== uv is not to be had, pip does it"
	@if $(BIN)/python -m uv --version >/dev/null 2>&1; then \
	  UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" $(BIN)/python -m uv pip install --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'; fi
	@touch $(READY)
	@echo "== environment ready: $$(du -sh $(VENV) | cut -f1)"

reproduce: $(READY)  ## run the study: data, pretraining, adaptation, reports (SCALE=h100 for the large one)
	@python -m pansharp_study.study.pipeline check
	@start=$$(date +%s); \
	if [ "$(SCALE)" = laptop ]; then dvc repro; else dvc exp run -S scale=$(SCALE) && \
	  echo "== params.yaml now says scale: $(SCALE); 'git checkout params.yaml' goes back"; fi && \
	echo "== done in $$(( $$(date +%s) - start )) s; compared with the committed results:" && \
	python -m pansharp_study.study.pipeline differences && \
	echo "== read reports/compare.ipynb and reports/report/*.ipynb, or run 'make docs' and open _site/index.html"

test: $(READY)  ## lesson cells of all notebooks, then tests/
	@ruff check pansharp_study nbs tests docs measure
	@nbdev_test --n_workers 2 --path nbs
	@python -m pytest -n 2 --dist loadfile

docs: $(READY)  ## the site in _site/index.html
	@python docs/build.py

lab: $(READY)  ## JupyterLab on this environment
	@jupyter lab --notebook-dir .

clean:  ## remove everything that can be made again (the environment and the cache stay)
	@rm -rf _site _proc _docs logs .cache/checkpoints .pytest_cache .ruff_cache build
	@find . -name '*.running.ipynb' -not -path './.venv/*' -delete
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
