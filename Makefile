# Everything runs from a fresh checkout on a machine that has python3 (3.11 or newer) with venv
# and pip. The first target that needs it creates .venv; later ones reinstall only when setup.cfg
# or pyproject.toml changed.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
RANKS ?= 2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo results test test-slow lint bench clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

# The marker is written last: an interrupted creation is repeated.
.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is older than Python 3.11; use make PYTHON=python3.11" >&2; exit 2; }
	@echo "creating .venv"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	@touch $@

.venv/.installed: setup.cfg pyproject.toml | .venv/.created
	@echo "installing rebias-dist into .venv (torch is large: minutes on the first time)"
	@$(PIP) --editable .
	@touch $@

.venv/.installed-dev: setup.cfg pyproject.toml | .venv/.created
	@echo "installing rebias-dist and its development tools into .venv"
	@$(PIP) --editable '.[dev]'
	@touch .venv/.installed $@

demo: .venv/.installed  ## train vanilla, biased and rebias on 5,000 digits, compare them
	$(BIN)/rebias-sweep configs/biased_mnist/sweeps/demo.yaml --ranks $(RANKS)
	$(BIN)/rebias-report runs/demo-* --out report --name demo

results: .venv/.installed  ## five methods, three seeds each; stop and repeat at will
	$(BIN)/rebias-sweep configs/biased_mnist/sweeps/results.yaml --ranks $(RANKS)
	$(BIN)/rebias-report runs/results-* --out report --name results

test: .venv/.installed-dev  ## the ordinary tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadfile

test-slow: .venv/.installed-dev  ## the long tests alone
	$(BIN)/python -m pytest -m slow

lint: .venv/.installed-dev  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.installed  ## every benchmark, with records in benchmarks/results
	$(BIN)/python -m benchmarks

clean:  ## remove what can be made again; .venv and runs stay
	rm -rf build dist report *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
