# Every target builds its own environment in .venv first. RECIPE= names a recipe, SET= holds
# overrides: make dpo RECIPE=quickstart SET='stages.dpo.trainer.beta=0.2 seed=7'
PYTHON ?= python3
RECIPE ?= quickstart
BIN := .venv/bin
ALIGN = $(BIN)/align
OVERRIDES = $(addprefix --set ,$(SET))
# two processes, each with whole files: models this small use one core
SPREAD = -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup align plan sft dpo eval view push test test-all lint check schema docs bench freeze clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

# torch first and alone: a range elsewhere must not pull another build. --no-compile halves the
# time of the installation; Python compiles what is imported, once.
.venv/ready: pyproject.toml constraints/py311.txt
	@command -v $(PYTHON) >/dev/null || { echo "No $(PYTHON) here. Install Python 3.11, or name one: make align PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11. Name a newer one: make align PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile -c constraints/py311.txt torch
	$(BIN)/python -m pip install --quiet --no-compile -c constraints/py311.txt -e '.[dev]'
	@touch $@

setup: .venv/ready  ## build the environment

align: .venv/ready  ## run the whole chain of RECIPE (quickstart by default), offline
	$(ALIGN) run $(RECIPE) $(OVERRIDES)

plan: .venv/ready  ## check RECIPE and say what it will do
	$(ALIGN) plan $(RECIPE) $(OVERRIDES)

sft: .venv/ready  ## run RECIPE up to the stage called sft, else every stage of that kind
	$(ALIGN) run $(RECIPE) sft $(OVERRIDES)

dpo: .venv/ready  ## run RECIPE up to the stage called dpo, else every stage of that kind
	$(ALIGN) run $(RECIPE) dpo $(OVERRIDES)

eval: .venv/ready  ## run RECIPE up to the stage called evaluate, else every stage of that kind
	$(ALIGN) run $(RECIPE) evaluate $(OVERRIDES)

view: .venv/ready  ## look through what RECIPE has made, in the browser
	$(ALIGN) view $(RECIPE) $(OVERRIDES)

push: .venv/ready  ## push the model of STAGE (the last one by default) of RECIPE to REPO, with ARGS='--dry-run …'
	@test -n "$(REPO)" || { echo "Say where to: make push RECIPE=mine STAGE=dpo REPO=owner/name ARGS=--dry-run"; exit 2; }
	$(ALIGN) push $(if $(STAGE),runs/$(RECIPE)/$(STAGE),$(RECIPE)) $(REPO) $(ARGS)

test: .venv/ready  ## the tests (CPU, offline)
	$(BIN)/python -m pytest $(SPREAD)

test-all: .venv/ready  ## the slow ones too, and those of Ray and lm-eval where they can be installed
	-$(BIN)/python -m pip install --quiet --no-compile -c constraints/py311.txt -e '.[ray]'
	-$(BIN)/python -m pip install --quiet --no-compile -c constraints/py311.txt -e '.[lm-eval]'
	$(BIN)/python -m pytest $(SPREAD) -m 'not gpu'

lint: .venv/ready  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test  ## lint and test

schema: .venv/ready  ## rewrite recipes/recipe.schema.json
	$(ALIGN) schema > recipes/recipe.schema.json.new && mv recipes/recipe.schema.json.new recipes/recipe.schema.json

docs: .venv/ready  ## rewrite docs/stages.md from the classes
	$(BIN)/python docs/generate.py

bench: .venv/ready  ## side-by-side measurements, minutes long
	$(BIN)/python benchmarks/run.py

freeze: .venv/ready  ## write the installed versions as exact pins
	( sed -n '1,2p' constraints/py311.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' ) > constraints/new && mv constraints/new constraints/py311.txt

clean:  ## remove the environment and caches; runs/ stays (align clean --yes tidies it)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache dist build
