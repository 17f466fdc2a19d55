# Commands for a checkout. Everything is installed into .venv; PYTHON picks the interpreter that makes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# nvcc alone builds CUDA kernels too; here that takes minutes which a machine without a GPU has no use for.
export STYLEKERN_BUILD ?= $(if $(shell command -v nvidia-smi),auto,cpu)

.PHONY: demo test bench lint format types gpu sanitize aarch64 clean

demo: $(VENV)/.installed-demo
	$(BIN)/python examples/painterly.py $(PICTURE)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

bench: $(VENV)/.installed-test
	$(BIN)/python -m pytest benchmarks --benchmark-only $(ARGS)

# Committed or not.
CXX_FILES = $$(git ls-files -co --exclude-standard 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.c' 'tests/*.cpp' 'tests/*.h')

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.installed-lint
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

types: $(VENV)/.installed-lint
	$(BIN)/mypy

# On a machine with a GPU, with the python3 and torch found there: build in place, test, sanitize, time.
gpu:
	$(PYTHON) tools/gpu.py

# The compiled library under g++'s address and undefined-behaviour sanitizers. ARGS say what is run instead of all that
# is meant for it.
sanitize: $(VENV)/.installed-test
	$(BIN)/python tools/sanitize.py $(ARGS)

# The compiled library on another architecture, emulated: on Debian, as root. ARGS as above.
aarch64: $(VENV)/.installed-test
	$(BIN)/python tools/aarch64.py $(ARGS)

clean:
	rm -rf build $(VENV) stylekern/*.so *.egg-info

# The sources are installed where they lie: only what is compiled is installed again.
$(VENV)/.installed-demo $(VENV)/.installed-test: $(shell find csrc tools -name '*.[chp]*' -not -name '*.pyc')
$(VENV)/.installed-%: setup.py pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	@echo "installing stylekern into $(VENV), its library compiled: some minutes"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@
