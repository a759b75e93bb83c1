# make demo: one real run, from nothing.   make test: the checks and the test suite.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ROOT ?= mlruns

# The parts of PsychoPy that run without a screen, for the tests; with all it depends on it has
# gigabytes.
WITHOUT_SCREEN := psychopy-lib questplus xarray json-tricks i18next

.DEFAULT_GOAL := help
.PHONY: help demo test coverage slow lowest release docs notebooks linkcheck check format clean

help: ## Say what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "eigenexp needs Python 3.11 or newer; got $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing eigenexp, versions from constraints.txt"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing eigenexp and what its tests need, versions from constraints.txt"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,vision]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps $(WITHOUT_SCREEN)
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-slow: $(VENV)/.installed-test
	@echo "installing what the slow tests need beside: Ray, transformers, Sphinx"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,vision,networks,joblib,slurm,ray,docs]'
	@touch $@ $(VENV)/.installed-test $(VENV)/.installed

demo: $(VENV)/.installed ## Find the distortions OnOff feels most and least in a picture (about a minute)
	@echo "running: eigenexp fit experiment=demo"
	@EIGENEXP_ROOT=$(ROOT) $(BIN)/eigenexp fit experiment=demo

test: $(VENV)/.installed-test check ## Run the checks and the test suite
	@echo "running the tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest

coverage: $(VENV)/.installed-test ## Run the test suite and measure what it covers (half as long again)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --cov --cov-report=term

slow: $(VENV)/.installed-slow ## Run the tests that take minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --timeout=1200

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing eigenexp and what its documentation needs, versions from constraints.txt"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[vision,docs]'
	@touch $@ $(VENV)/.installed

docs: $(VENV)/.installed-docs ## Build the documentation, its notebooks executed: docs/_build/html (minutes at first)
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

notebooks: $(VENV)/.installed-docs ## Run the notebooks and keep what they show
	@OMP_NUM_THREADS=1 $(BIN)/python docs/execute_notebooks.py

linkcheck: $(VENV)/.installed-docs ## Follow every link of the documentation to other sites
	@EIGENEXP_DOCS_EXECUTE=off $(BIN)/python -m sphinx -q -b linkcheck docs docs/_build/linkcheck

# What leans most on other packages: files, figures, stores, configuration, loggers, callbacks, and
# Lightning's doors with the solvers behind them.
LOWEST := tests/test_dependencies.py tests/pictures tests/plots tests/runs tests/report \
  tests/checkpoints tests/storage tests/callbacks tests/experiments/test_config.py \
  tests/tracking/test_store.py tests/tracking/test_spool.py tests/operators/test_dense.py \
  $(addprefix tests/modules/test_,lightning_door.py eigendistortion.py study.py stochastic.py \
  operator_options.py) \
  $(addprefix tests/eigensolvers/test_,null_space.py dense_solvers.py strided.py)

$(VENV)-lowest/.installed: pyproject.toml constraints-lowest.txt
	@echo "creating $(VENV)-lowest, versions from constraints-lowest.txt"
	@$(PYTHON) -m venv $(VENV)-lowest
	@$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
	  -c constraints-lowest.txt -e . packaging pytest pytest-timeout hypothesis
	@touch $@

lowest: $(VENV)-lowest/.installed ## Run a fast part of the tests on the lowest versions supported
	@echo "running tests on the lowest versions"
	@OMP_NUM_THREADS=1 $(VENV)-lowest/bin/python -m pytest $(LOWEST) --ignore-glob='*hostile*'

release: $(VENV)/.installed-test ## Build wheel and sdist from a clean tree, and try each in an empty environment
	@git diff --quiet HEAD -- || { echo "there are changes that are not committed: commit or stash them"; exit 1; }
	@rm -rf dist build/release && mkdir -p build/release
	@echo "building dist/" && $(BIN)/python -m build --outdir dist . > build/release/build.log
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt twine
	@$(BIN)/python -m twine check --strict dist/*
	@set -e; for file in dist/*; do echo "trying $$file"; rm -rf build/release/env build/release/runs; \
	  $(PYTHON) -m venv build/release/env; \
	  build/release/env/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$$file"; \
	  cd build/release; env/bin/eigenexp --version; \
	  env/bin/eigenexp fit root=runs 'image.crop=[120,220,20,20]' logger=none > fit.log; cd ../..; done
	@echo "dist/ is whole: $$(ls dist | tr '\n' ' ')"

check: $(VENV)/.installed-test ## Lint, types, and the direction of imports
	@echo "checking format, lint, types and imports"
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/.installed-test ## Format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

clean: ## Remove the environment and caches (runs under mlruns/ stay)
	rm -rf $(VENV) $(VENV)-lowest build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage .hypothesis
