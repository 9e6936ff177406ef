# parbake's own commands. `make test` and `make demo` install what they need (Debian 13, root).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# Python keeps what it has compiled, whatever the caller's settings: a parbake of the tests or benchmarks starts as a user's does.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
# Those that take long begin first, whatever the order here: see tests/conftest.py.
TESTS := tests/unit tests/aws tests/system tests/vm
# Files of tests that run at a time (0: one after the other, in one process): most wait for something now and then, but
# emulated machines do not. So many of them boot machines, which have one processor each.
JOBS ?= 4
VM_JOBS ?= 3
export VM_JOBS
PYTEST = $(BIN)/pytest --dist loadfile --no-loadscope-reorder -ra --cov --durations=10

.PHONY: help setup packages lock lint test .every-test test-plain test-unit demo docs chart fuzz proto release clean
.PHONY: bench-suggest bench-bake bench-coldstart bench-fleet bench-fleet-kills bench-rebake bench-startup bench-upload

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: packages .venv/.complete .venv/newer/packages.newer ## Install what parbake and its tests need: Debian packages (as root), .venv

packages:
	@if command -v apt-get >/dev/null; then tools/install-packages; fi

.venv/.complete: pyproject.toml requirements.lock tools/make-venv | packages
	@tools/make-venv

.venv/newer/packages.newer: packages.newer tools/fetch-newer | .venv/.complete
	@tools/fetch-newer

lock: packages ## Write the lock files anew, with the newest versions there are, and install them
	@tools/make-venv --lock

lint: setup ## Check format, style and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

test: setup ## Run every test, with coverage; check format, style and types meanwhile
	@$(MAKE) --jobs=2 lint .every-test

.every-test: setup
	$(PYTEST) $(TESTS) -n $(JOBS) --cov-report=term --cov-fail-under=85

# What users start is a process of its own then, which has loaded nothing yet.
test-plain: setup ## Run what starts parbake as a program without the copies that start faster: much longer, on request
	PARBAKE_TESTS_PLAIN=1 $(PYTEST) tests/system -n $(JOBS) --cov-report=term

test-unit: setup ## Run the quick tests: no root, no virtual machine
	$(BIN)/pytest tests/unit tests/aws

demo: setup ## Bake the sample application and boot the result: the main job, end to end
	@$(BIN)/parbake demo

docs: setup ## Write docs/reference anew from the program
	$(BIN)/python -m tools.reference

chart: setup ## Write what the Helm chart takes from the program, and render it into build/chart.yaml
	@$(BIN)/python -m tools.chart

proto: setup ## Regenerate the protobuf modules from src/parbake/containerd/proto/*.proto
	$(BIN)/python -m grpc_tools.protoc --proto_path=src --python_out=src --pyi_out=src src/parbake/containerd/proto/*.proto

release: setup ## Build the wheel and the container image of this commit, and tag it (DRY_RUN=1: only show how)
	@$(BIN)/python -m tools.release $(if $(DRY_RUN),--dry-run)

FUZZ_SECONDS ?= 300

fuzz: setup ## Fuzz what reads a registry's content; compare hostile layers with containerd (FUZZ_SECONDS)
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

BENCH_IMAGES ?= small,many,many-large,potato,potato-zstd,cores
BENCH_ROUNDS ?= 3

bench-bake: setup ## Compare bakes with other tools' pulls (BENCH_IMAGES, BENCH_ROUNDS, PARBAKE_BENCH_CONTAINERD)
	@$(BIN)/python -m bench.bake --images $(BENCH_IMAGES) --rounds $(BENCH_ROUNDS)

STARTUP_ROUNDS ?= 15

bench-startup: setup ## Measure help, a plan, and a bake with nothing to do (STARTUP_ROUNDS)
	@$(BIN)/python -m bench.startup --rounds $(STARTUP_ROUNDS)

BENCH_REBAKE_IMAGE ?= potato

bench-upload: setup ## Compare uploads to EBS with a plain boto3 loop, on a stand-in (BENCH_ROUNDS)
	@$(BIN)/python -m bench.upload --rounds $(BENCH_ROUNDS)

bench-rebake: setup ## Measure a bake after a changed top layer (BENCH_REBAKE_IMAGE, BENCH_ROUNDS)
	@$(BIN)/python -m bench.rebake --image $(BENCH_REBAKE_IMAGE) --rounds $(BENCH_ROUNDS)

FLEET_BAKES ?= 1000

bench-fleet: setup ## Bake simulated cells on a fleet whose server and workers are killed (FLEET_BAKES)
	@$(BIN)/python -m bench.fleet --bakes $(FLEET_BAKES)

FLEET_KILLS ?= 10

bench-fleet-kills: setup ## Bake a large image on a fleet whose worker is killed at random moments (FLEET_KILLS)
	@$(BIN)/python -m bench.fleet_kills --kills $(FLEET_KILLS)

bench-suggest: setup ## Hold what `parbake suggest` and `advise` choose against the best there is
	@$(BIN)/python -m bench.suggest

COLD_APPS ?= web,potato
COLD_PROFILES ?= mild,harsh
COLD_ROUNDS ?= 5
COLD_DRIVE ?= gp3

bench-coldstart: setup ## Start from a model of a cold volume, with each remedy (COLD_APPS, COLD_PROFILES, COLD_DRIVE, COLD_ROUNDS)
	@$(BIN)/python -m bench.coldstart --apps $(COLD_APPS) --profiles $(COLD_PROFILES) --drive $(COLD_DRIVE) --rounds $(COLD_ROUNDS)

clean: ## Remove what the other targets made here
	rm -rf .venv .cache .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
