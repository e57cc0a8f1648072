# Everything a developer does with edgepd. `make help` lists the targets. GNU make >= 4.3, Python >= 3.11, a C compiler.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The first of these that is there and new enough; `make PYTHON=... demo` chooses another.
PYTHON ?= $(shell for p in python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done || true)
BIN := .venv/bin
READY := .venv/.ready

# Models are kept in build/ for whatever is started from here, so that they are fetched once.
export EDGEPD_MODELS_DIR ?= $(CURDIR)/build/models
DEFAULT_MODEL := $(EDGEPD_MODELS_DIR)/smollm2-135m-instruct-q4_1.json
# The study of hyper-parameters takes hours and is started by name. What needs data is left out where DATA names none.
NOT_BENCHMARKS := benchmarks/_% benchmarks/study.py benchmarks/student.py $(if $(DATA),,benchmarks/intent.py)
BENCHMARKS := $(patsubst benchmarks/%.py,bench-%,$(filter-out $(NOT_BENCHMARKS),$(wildcard benchmarks/*.py)))
PEFT := build/peft-venv

.PHONY: help demo run test check format docs bench student soak clean

help:  ## list the targets
	@grep -hE '^[a-z%-]+:.*## ' Makefile | sed -E 's/^([a-z%-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

demo: $(READY)  ## show the whole loop on a real model: chat, correct, train, prove, swap
	@$(BIN)/edgepd demo

run: $(READY)  ## run the daemon in the foreground
	@$(BIN)/edgepd daemon run

# With a thread each: in the tiny models of most tests a second thread only waits for the first. What starts daemons
# and looks at the clock runs alone, the rest in two processes.
ALONE := tests/daemon tests/test_llama.py tests/test_llama_memory.py
test: export OMP_NUM_THREADS = 1
test: check $(DEFAULT_MODEL)  ## check, then run all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile $(addprefix --ignore=,$(ALONE))
	$(BIN)/python -m pytest $(ALONE)

check: $(READY)  ## format, lint, types, imports, generated documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy docs/generate.py
	$(BIN)/python -m pytest -q tests/test_imports.py
	$(BIN)/python docs/generate.py --check

format: $(READY)  ## rewrite the code as `make check` wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)  ## generate docs/*.md from the code
	$(BIN)/python docs/generate.py

bench: $(BENCHMARKS)  ## run all benchmarks
	@$(if $(BENCHMARKS),,echo "there are no benchmarks yet")

bench-%: $(READY) $(DEFAULT_MODEL) .venv/.bench-ready  ## run benchmarks/%.py, with ARGS='...' if it takes any
	$(BIN)/python benchmarks/$*.py $(ARGS)

bench-intent: ARGS = $(or $(DATA),$(error say where the data is: make bench-intent DATA=path/to/USA_Foursqaure.json))

student: $(READY)  ## train the small model that ships with edgepd: DATA=path/to/USA_Foursqaure.json
	$(BIN)/python benchmarks/student.py $(or $(DATA),$(error say where the data is: make student DATA=...)) $(ARGS)

soak:  ## crashes, full disks, training and users all at once, and what was lost: MINUTES=10 SEED=1
	@$(MAKE) --no-print-directory bench-soak ARGS='--minutes $(or $(MINUTES),10) --seed $(or $(SEED),1)'

bench-training: $(PEFT)/.ready
bench-study: export GOMP_SPINCOUNT = 10000  # as the daemon's trainer has it

clean:  ## remove what was built and fetched, except .venv
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

# Order-only: a newer environment does not make the model stale.
$(DEFAULT_MODEL): | $(READY)
	$(BIN)/edgepd model add default

# llama-server's engine, which is not there for every machine; without it the benchmarks say so and go on.
.venv/.bench-ready: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]' \
		|| echo "the peers of the benchmarks could not be installed"
	@touch $@

# What bench-training compares with, in an environment of its own, because edgepd's has no transformers.
$(PEFT)/.ready: pyproject.toml constraints.txt | $(READY)
	$(BIN)/python -m venv $(PEFT)
	@$(PEFT)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade pip
	@echo "Installing PEFT and transformers into $(PEFT)."
	@$(PEFT)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group bench-peft \
		|| echo "PEFT and transformers could not be installed"
	@touch $@

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "edgepd needs Python 3.11 or newer: install it or use make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade pip
	@echo "Installing dependencies. The first time, llama-cpp-python is compiled: about 8 minutes on 2 cores."
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' \
		| sed -u -n -E 's/^(Collecting [^ ]*).*/\1/p; /^( *Building|Successfully built)/p'
	@touch $@
