# Everything a contributor types.  A fresh clone needs python3 (3.11 or later) and make: each target
# sets up the virtual environment that it needs, and a stamp file makes the next run quick.

SHELL   := /bin/bash
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
RIVAL   := .venv-pyspark
RIVALOK := $(RIVAL)/.installed

SEED    ?=
SEEDS   ?= 5000
RUNS    ?= 3
ONLY    ?=
SCALE   ?= 1
RUNS_OF_CHAOS ?= 20
JOBS    ?= 5000

PYTEST  := $(BIN)/python -m pytest
TWO     := -n 2 --dist loadfile
SEEDED  := $(if $(SEED),--hypothesis-seed=$(SEED),)

# Every process of an application imports the package: with compiled modules that takes half the time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo fmt check test test-unit property machines cluster sim mutants chaos resume-table bench long big docs clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv and install spark_ft into it, editable, with the development tools

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "spark_ft needs Python 3.11 or later: make PYTHON=python3.x ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (only when pyproject.toml has changed)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## a real job on real input loses two executors to kill -9 and ends with the right answer
	$(BIN)/python examples/demo.py

fmt: $(STAMP)  ## sort imports and apply the safe fixes of the linter
	$(BIN)/ruff check --fix spark_ft chaos tests examples

check: $(STAMP)  ## lint, types (strict), and the rules of the house
	$(BIN)/ruff check spark_ft chaos tests examples
	$(BIN)/mypy --strict spark_ft
	$(PYTEST) -q tests/unit/test_house.py

# Unit tests run executors' code in one process, with the hash seed of executors: the same every time.
# All other tests run as a user's program does, with whatever seed comes.
test: check test-unit  ## check, then unit, property, simulation, cluster and chaos tests: under ten minutes on two cores
	$(PYTEST) -q $(TWO) tests/property tests/simulation
	$(PYTEST) -q $(TWO) tests/cluster tests/chaos

test-unit: $(STAMP)  ## no processes, no sockets, no sleeps
	PYTHONHASHSEED=0 $(PYTEST) -q $(TWO) tests/unit

property: $(STAMP)  ## random programs against the plain-list oracle, state machines over the cores
	$(PYTEST) -q tests/property $(SEEDED)

cluster: $(STAMP)  ## faults, for real, on real processes
	$(PYTEST) -q tests/cluster

machines: $(STAMP)  ## the state machines and random programs with many more examples (SEED=n to repeat a run)
	HYPOTHESIS_PROFILE=sim $(PYTEST) -q tests/property $(wildcard tests/unit/scheduler tests/unit/cluster tests/unit/executor) \
	    --timeout=3600 $(SEEDED)

sim: $(STAMP)  ## simulated histories of all cores: SEEDS=10000 fresh ones, SEEDS=500:900 those, SEED=n one, told
	$(BIN)/python -m chaos sim $(if $(SEED),--seed $(SEED),--seeds $(SEEDS) --jobs 2)

mutants: $(STAMP)  ## guards of the cores taken out one by one: how many simulated histories until that shows
	$(BIN)/python -m chaos mutants --jobs 2 --table docs/mutants.md

chaos: $(STAMP)  ## seeds of live chaos (RUNS_OF_CHAOS=20; SEED=n for that one), then ten thousand killed writers
	$(BIN)/python -m chaos $(if $(SEED),replay $(SEED),sweep --seeds $(RUNS_OF_CHAOS))
	SPARK_FT_CHAOS_SEED=$(SEED) $(PYTEST) -q -s -m chaos tests/chaos --timeout=3600

resume-table: $(STAMP)  ## a job's driver killed after each of its events in turn: what was done again, seconds to resume
	$(BIN)/python -m tests.cluster.resume_table

long: $(STAMP)  ## 5,000 small jobs in one application (JOBS=n): memory, files and stores stay as they were
	$(BIN)/python -m tests.cluster.long_lived $(JOBS)

big: $(STAMP)  ## sort, group and join 2 GB in executors of 256 MB (needs about 8 GB of disk)
	$(PYTEST) -q -s -m big tests/big --timeout=3600

$(RIVALOK): tests/bench/rival-requirements.txt
	@test -x $(RIVAL)/bin/python || $(PYTHON) -m venv $(RIVAL)
	@echo "installing PySpark into $(RIVAL) (once)"
	@$(RIVAL)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench: $(STAMP) $(RIVALOK)  ## every workload on spark_ft and on PySpark (needs Java 17), in turns: RUNS=3 ONLY="sort join" SCALE=1
	$(BIN)/python tests/bench/run.py --rival-python $(RIVAL)/bin/python --runs $(RUNS) --scale $(SCALE) \
	    $(if $(ONLY),--only $(ONLY),)

docs: $(STAMP)  ## bring the tables of tests up to date, then check the documentation
	$(BIN)/python tests/unit/test_docs.py
	$(PYTEST) -q tests/unit/test_docs.py tests/unit/protocol/test_protocol_doc.py

clean:  ## remove what the targets above have made
	rm -rf $(VENV) $(RIVAL) .cache .hypothesis .pytest_cache build dist *.egg-info spark_ft.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
