# make demo    teach the embedded model a new thing on this computer, and show the result
# make test    lint, types and the fast tests
# make test-all  also the longer proofs

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

INSTALL := pip install --disable-pip-version-check --no-input -qq --constraint constraints.txt
# A dot every three seconds while a command works, so that nobody wonders whether it does.
with_dots = (while sleep 3; do printf .; done) & dots=$$!; $(1); ended=$$?; kill $$dots; echo; exit $$ended

.PHONY: demo demo-captions test test-all lint types bench clean

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
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache

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
