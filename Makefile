# make setup      the environment alone, in .venv      make lint    style, types, import contract
# make demo       the whole way, to one page           make docs    the documentation, in site/
# make test       the tests                            make clean   forget the environment and results
# make coverage   the tests, and the lines that none of them runs
#
# PYTHON=python3.12 chooses the interpreter, DATA=folder gives the demo your own scans, TESTS=tests/reading one part.

PYTHON ?= python3
BIN := .venv/bin
DATA ?=
OUT ?= $(if $(DATA),demo-own,demo-output)
DEMO ?=
TESTS ?=
# A process a core, each with one thread, and whole files in the order of conftest.py: the longest first.
SPREAD := -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
test coverage: export OMP_NUM_THREADS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test coverage lint docs clean

setup: .venv/ready
	@if [ "$(MAKECMDGOALS)" = setup ]; then echo "ready: source .venv/bin/activate, then headct doctor; or make demo"; fi

# A marker, so that the second time costs nothing; made again when the requirements change. Tests and documentation
# are part of it: a clone is a working copy, users of the library `pip install` it.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is older than Python 3.11, or missing" >&2; \
	  echo "  do:  name a newer one, e.g. make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || { echo "making the environment in .venv (once, some minutes)"; $(PYTHON) -m venv .venv; }
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev,docs,cluster,export,tensorboard,retrieval,map]'
	@touch $@

demo: setup
	@$(BIN)/headct demo --out "$(OUT)" $(if $(DATA),--data "$(DATA)") $(DEMO)

test: setup
	@$(BIN)/python -m pytest $(SPREAD) $(TESTS)

coverage: setup
	@$(BIN)/python -m pytest $(SPREAD) --cov --cov-report term-missing:skip-covered $(TESTS)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html (its search needs a server: .venv/bin/mkdocs serve)"

clean:
	rm -rf .venv demo-output demo-own site
