# Everything runs from a fresh checkout on a machine that has python3 (3.10 or newer) with venv
# and pip. The first target that needs it creates .venv; later ones reinstall only when setup.cfg
# or pyproject.toml changed.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
RANKS ?= 2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: browser help demo results test test-oldest test-slow coverage lint docs dist soak bench simd no-simd clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

# The marker is written last, so an interrupted creation is repeated.
.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "$(PYTHON) is older than Python 3.10; use make PYTHON=python3.10" >&2; exit 2; }
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

demo: .venv/.installed  ## train vanilla, biased and rebias on 3,600 digits, compare them
	$(BIN)/rebias-sweep configs/biased_mnist/sweeps/demo.yaml --ranks $(RANKS)
	$(BIN)/rebias-report runs/demo-* --out report --name demo

results: .venv/.installed  ## seven methods, three rho, three seeds each; writes docs/small-digits.md
	$(BIN)/rebias-sweep configs/biased_mnist/sweeps/results.yaml --jobs $(RANKS)
	rm -rf build/small_digits
	$(BIN)/rebias-report runs/results-*-rho* --archive build/small_digits
	rm -rf docs/results/small_digits
	mv build/small_digits docs/results/
	$(BIN)/rebias-report docs/results/small_digits --published --out report --name small-digits
	cp report/small-digits.md report/small-digits.png report/small-digits-rho.png report/small-digits-progress.png docs/

# Some tests open pages in Debian's Chromium. Without it they are skipped.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || true

test: .venv/.installed-dev browser  ## the ordinary tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadfile

# The oldest torch comes with CUDA: several GB. The site is for developers, with the newest tools.
.venv-oldest/.installed: setup.cfg pyproject.toml tests/oldest.txt
	@echo "installing the oldest versions into .venv-oldest"
	@$(PYTHON) -m venv .venv-oldest
	@.venv-oldest/bin/python -m pip install -qq --disable-pip-version-check \
	    --constraint tests/oldest.txt --editable '.[dev]'
	@touch $@

test-oldest: .venv-oldest/.installed  ## the ordinary tests with the oldest versions of the packages
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -m 'not slow' -n 2 --dist loadfile \
	    --ignore tests/docs/test_site.py

test-slow: .venv/.installed-dev  ## the long tests alone
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

coverage: .venv/.installed-dev browser  ## the ordinary tests, with a table of what they run; build/coverage has pages
	rm -rf build/coverage
	mkdir -p build/coverage
	OMP_NUM_THREADS=1 COVERAGE_FILE=$(CURDIR)/build/coverage/data $(BIN)/coverage run -m pytest -m 'not slow' -n 2 --dist loadfile
	$(BIN)/coverage combine -q --data-file build/coverage/data build/coverage
	$(BIN)/coverage html -q --data-file build/coverage/data -d build/coverage/html
	$(BIN)/coverage report --data-file build/coverage/data --skip-covered

docs: .venv/.installed-dev  ## the documentation as a site: build/site/index.html
	$(BIN)/mkdocs build --strict

dist: .venv/.created  ## the wheel and the sdist of a release, checked, in dist
	@$(PIP) --editable '.[dist]'
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

# The second mypy finds names that Python 3.10 lacks. It reads the stubs of newer packages only in part.
lint: .venv/.installed-dev  ## style, format, types, and the layers of the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 --no-warn-return-any --no-warn-unused-ignores
	$(BIN)/lint-imports --no-logo

soak: .venv/.installed-dev  ## five minutes of training with three kills; writes docs/reliability.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.launch.soak --minutes 5 --kills 3 --out docs/reliability.md

bench: .venv/.installed-dev  ## every benchmark, with records in benchmarks/results
	$(BIN)/python -m benchmarks

# Build before removing anything, so that a failure leaves Pillow in place: both packages use the
# folder PIL. Do not use pip's cache, which ignores the compiler's flags.
simd: .venv/.installed  ## build pillow-simd for AVX2 and put it in Pillow's place; it is older
	@echo "pillow-simd 12.1.1 predates security fixes of Pillow 12.2, 12.3 and 13.0, among them of an"
	@echo "overflow in the JPEG decoder: use it on images that you trust. 'make no-simd' goes back."
	@rm -rf build/simd
	CC="cc -mavx2" $(BIN)/python -m pip wheel -q --disable-pip-version-check --no-cache-dir --no-deps \
	    --no-binary pillow-simd --wheel-dir build/simd pillow-simd || \
	    { echo "error: it needs a C compiler and the headers of libjpeg and zlib (Debian:" \
	    "apt install gcc python3-dev libjpeg-dev zlib1g-dev)" >&2; exit 1; }
	$(BIN)/python -m pip uninstall -q -y pillow pillow-simd
	$(PIP) --no-deps --no-index build/simd/*.whl
	@$(BIN)/python -c 'from rebias_dist.data.decode import describe_decoder as d; print(d("pillow"))'
	@echo "it decodes in runs with --data.decoder pillow"

no-simd: .venv/.installed  ## put Pillow back in the place of pillow-simd
	$(BIN)/python -m pip uninstall -q -y pillow pillow-simd
	$(PIP) --no-deps --upgrade pillow

clean:  ## remove what can be made again; .venv and runs stay
	rm -rf build dist report *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
