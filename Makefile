.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PYTHONDONTWRITEBYTECODE =

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: .venv/run  ## the main job on a stand-in for Replicate: 200 pictures and a table of results
	@$(BIN)/orchestrator demo

install: .venv/run  ## everything a user needs, into .venv
	@echo "ready: $(BIN)/orchestrator --help"

test: .venv/dev  ## all that must hold: arrows, style, types, tests
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 3

check: test  ## the same as test

quick: .venv/dev  ## core and flow only, in seconds
	$(BIN)/pytest tests/core tests/flow tests/house

bench: .venv/dev  ## measure, in one run, and print ratios
	$(BIN)/python scripts/bench/run.py

chaos: .venv/dev  ## random schedules of kills, lost answers and outages: SCHEDULES=200 SEED=1
	$(BIN)/python -m tests.chaos --schedules $(or $(SCHEDULES),50) --seed $(or $(SEED),1)

docs: .venv/dev  ## write the generated pages anew
	$(BIN)/python scripts/lifecycle.py docs/lifecycle.md
	$(BIN)/python scripts/job_schema.py config/job.schema.json

lock:  ## resolve the pinned requirements anew
	scripts/lock

clean:  ## remove what was built and downloaded here
	rm -rf .venv out .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/run: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing (once, about a minute) …"
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

.venv/dev: requirements-dev.lock .venv/run
	@echo "installing the tools for tests …"
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	@touch $@

.PHONY: help demo install test check quick bench chaos docs lock clean
