# make demo    teach the embedded model a new thing on this computer, and show the result
# make test    lint, types and the fast tests
# make test-all  also the longer proofs
# make mindspore-test  the MindSpore engine, in an environment of its own; mindspore-test-all also its longer proofs

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

INSTALL := pip install --disable-pip-version-check --no-input -qq --constraint constraints.txt
# A dot every three seconds while a command works, so that nobody wonders whether it does.
with_dots = (while sleep 3; do printf .; done) & dots=$$!; $(1); ended=$$?; kill $$dots; echo; exit $$ended

.PHONY: demo demo-captions mindspore-test mindspore-test-all test test-all lint types bench clean

demo: $(READY)
	@$(BIN)/gesso demo

demo-captions: $(READY)
	@$(BIN)/gesso demo captions

test: lint types
	@echo "tests: fast"
	@$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: lint types
	@echo "tests: all"
	@$(BIN)/python -m pytest -n 2

# The MindSpore engine cannot share an environment with the newest PyTorch libraries (docs/mindspore.md).
MINDSPORE := .venv-mindspore

mindspore-test: $(MINDSPORE)/.ready
	@echo "tests: the MindSpore engine"
	@$(MINDSPORE)/bin/python -m pytest -n 2 -m "not slow" tests/mindspore

mindspore-test-all: $(MINDSPORE)/.ready
	@echo "tests: all of the MindSpore engine"
	@$(MINDSPORE)/bin/python -m pytest -n 2 tests/mindspore

lint: $(READY)
	@echo "lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY)
	@echo "types"
	@$(BIN)/mypy

bench: $(READY)
	@for file in benchmarks/*.py; do echo "$$file"; $(BIN)/python $$file || exit 1; done

clean:
	rm -rf $(VENV) $(MINDSPORE) .mypy_cache .pytest_cache .ruff_cache

# Set-up, once: three steps, each said before it begins. The versions are those of constraints.txt.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "gesso needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "setting up $(VENV), once; this takes a few minutes and about 2 GB"
	@printf "  1/3 a Python environment "; $(call with_dots,$(PYTHON) -m venv $(VENV))
	@printf "  2/3 PyTorch "; $(call with_dots,$(BIN)/$(INSTALL) torch)
	@printf "  3/3 diffusers, transformers, peft and the rest "; $(call with_dots,$(BIN)/$(INSTALL) --editable ".[dev]")
	@touch $@
	@echo "ready"

$(MINDSPORE)/.ready: constraints-mindspore.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
		{ echo "MindSpore needs Python 3.11 or 3.12: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "setting up $(MINDSPORE), once; this takes a few minutes and about 3.5 GB"
	@printf "  1/3 a Python environment "; $(call with_dots,$(PYTHON) -m venv $(MINDSPORE))
	@printf "  2/3 MindSpore, mindone and the rest "; $(call with_dots,$(MINDSPORE)/bin/pip install \
		--disable-pip-version-check --no-input -qq --requirement constraints-mindspore.txt)
	@printf "  3/3 gesso "; $(call with_dots,$(MINDSPORE)/bin/pip install \
		--disable-pip-version-check --no-input -qq --no-deps --editable .)
	@touch $@
	@echo "ready"
