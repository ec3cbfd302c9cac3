# make help lists the targets. Variables worth knowing: PYTHON, DAGSTER_PORT, MLFLOW_PORT,
# PIP_FIND_LINKS (a folder of wheels), TORCH_BACKEND (auto, cpu, cu128, …), CAHL_MIRROR,
# TEST_WORKERS (processes that test side by side).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.cahl-installed
DAGSTER_PORT ?= 3000
MLFLOW_PORT ?= 5000
TORCH_BACKEND ?= auto
PIP_FIND_LINKS ?=
TEST_WORKERS ?= 2

export DAGSTER_PORT MLFLOW_PORT
# Where it is set, every stage would compile torch, transformers and mlflow again.
unexport PYTHONDONTWRITEBYTECODE
export DAGSTER_DISABLE_TELEMETRY := 1
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false
export DVC_NO_ANALYTICS := 1
export ITERATIVE_DO_NOT_TRACK := 1
export DO_NOT_TRACK := true
export HF_HUB_DISABLE_TELEMETRY := 1
export GX_ANALYTICS_ENABLED := false

.PHONY: help env pipeline test ui lint types bench clean clean-all

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

env: $(STAMP) ## the environment in .venv, from pinned versions

pipeline: $(STAMP) ## the whole chain: fetch, prepare, sft, train, evaluate, register
	@$(BIN)/python -m pipelines.run

test: $(STAMP) ## lint, types and all tests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

ui: $(STAMP) ## Dagster and MLflow in the browser; Ctrl-C ends both
	@$(BIN)/python -m pipelines.ui

lint: $(STAMP) ## format and fix what ruff can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

types: $(STAMP) ## mypy --strict
	@$(BIN)/mypy

bench: $(STAMP) ## what docs/performance.md shows, side by side with TRL (hours)
	@bash benchmarks/trl_env.sh
	@$(BIN)/python benchmarks/versus_trl/driver.py --check
	@$(BIN)/python benchmarks/versus_trl/driver.py --tune --points long-8 --steps 2
	@$(BIN)/python benchmarks/versus_trl/driver.py --steps 10 --repeats 3
	@$(BIN)/python benchmarks/versus_trl/scaling.py
	@$(BIN)/python benchmarks/profile_step.py
	@$(BIN)/python benchmarks/performance_tables.py

clean: ## remove what tools and runs left; data, models and the environment stay
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis dist .cahl/errors .cahl/locks
	@find . -path ./$(VENV) -prune -o -type d -name __pycache__ -print0 | xargs -0 -r rm -rf

clean-all: clean ## also remove data, models, reports, runs and the environment
	@rm -rf $(VENV) .cahl .dagster .dvc/cache .dvc/tmp mlflow.db* mlartifacts \
	  data/raw data/backbone data/prepared models/sft models/cahl reports/data reports/evaluation

$(STAMP): pyproject.toml constraints.txt
	@PIP_FIND_LINKS="$(PIP_FIND_LINKS)" TORCH_BACKEND="$(TORCH_BACKEND)" bash scripts/environment.sh $(VENV)
	@touch $@
