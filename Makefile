# Everything works in $(VENV), which `tools/bootstrap.py` creates and fills.
.DEFAULT_GOAL := help
.PHONY: help demo test test-matrix lint doctor clean

VENV ?= .venv
ATTN ?= scsa
JOBS ?= 2
PYTEST_ARGS ?=
SETS ?=
WHEEL ?=

# The environment's own Python when there is one, else the first on PATH that
# is in the supported range; when none is, bootstrap.py tells.
SUITABLE = import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(or $(shell for python in $(VENV)/bin/python python3 python3.12 \
	python3.11 python3.10 python; do \
	"$$python" -c '$(SUITABLE)' >/dev/null 2>&1 && echo "$$python" && break; \
	done),python3)

VPYTHON = $(VENV)/bin/python
BOOTSTRAP = $(PYTHON) tools/bootstrap.py --venv $(VENV) --extras

help:  ## Print this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 24
	@echo 'Variables: PYTHON (3.10 to 3.12), VENV ($(VENV)), ATTN ($(ATTN)), JOBS ($(JOBS)), PYTEST_ARGS, SETS, WHEEL'

demo:  ## Train and evaluate a small detector with ATTN on the CPU
	@$(BOOTSTRAP) mm,optional
	@$(VPYTHON) tools/demo.py --attn $(ATTN)

test:  ## Run the tests in JOBS processes; PYTEST_ARGS goes to pytest
	@$(BOOTSTRAP) mm,optional,visual,export,tests
	@$(VPYTHON) -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

test-matrix:  ## Run the tests in several sets of versions: docs/compatibility.md
	@$(PYTHON) tools/test_matrix.py $(SETS) --jobs $(JOBS) --wheel='$(WHEEL)' \
		--pytest-args='$(PYTEST_ARGS)'

lint:  ## Check style with ruff
	@$(VPYTHON) -m ruff --version >/dev/null 2>&1 || $(BOOTSTRAP) tests
	$(VPYTHON) -m ruff check
	$(VPYTHON) -m ruff format --check

doctor:  ## Say what is installed, what is wrong with it, what mends it
	@$(BOOTSTRAP) mm,optional
	@$(VPYTHON) -m mmattn.doctor

clean:  ## Remove caches and build output, not the environment
	rm -rf build dist .pytest_cache .ruff_cache *.egg-info
	find . \( -path './$(VENV)' -o -path ./.venv-matrix \) -prune -o -name __pycache__ -type d -prune \
		-exec rm -rf {} +
