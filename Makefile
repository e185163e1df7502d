# Every target that needs the environment sets it up first; a second time that costs milliseconds.
VENV ?= .venv
ARGS ?=
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-soak bench bench-data bench-faults bench-model bench-train lint format doctor gpu-check clean

help: ## list the targets (VENV=PATH for another environment, ARGS="..." for the command's options)
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 18

setup: ## make the virtual environment, or do nothing if it is there
	@VENV='$(VENV)' bash scripts/setup.sh

# exec: no shell stays between make and the command, so Ctrl-C reaches the command alone and once.
demo: setup ## the whole job on real photographs, with a report at the end
	@exec '$(VENV)/bin/convnextv2' demo $(ARGS)

test: lint ## lint, types and every test but the soak tests
	@exec '$(VENV)/bin/python' -m pytest -m 'not soak' $(ARGS)

test-fast: setup ## the inner loop: tests without start-up costs, stops at the first failure
	@exec '$(VENV)/bin/python' -m pytest -x -m 'not soak and not slow' $(ARGS)

test-soak: setup ## long fault and resume tests
	@exec '$(VENV)/bin/python' -m pytest -m soak $(ARGS)

bench: setup ## speed of the whole stack against bare PyTorch, printed and written as JSON
	@exec '$(VENV)/bin/python' -m pipelines.bench $(ARGS)

bench-data: setup ## our loader beside FFCV's, torchvision's, timm's and WebDataset's; writing, memory
	@exec '$(VENV)/bin/python' -m pipelines.bench.data $(ARGS)

bench-train: setup ## cost of the engine, scaling, checkpoints, memory by ZeRO stage
	@exec '$(VENV)/bin/python' -m pipelines.bench.train $(ARGS)

bench-model: setup ## speed and memory of the model by backend and size, and beside timm's and HF's
	@exec '$(VENV)/bin/python' -m pipelines.bench.model $(ARGS)

bench-faults: setup ## recovery from faults, by phase, beside plain Ray Train with DeepSpeed
	@exec '$(VENV)/bin/python' -m pipelines.bench.faults $(ARGS)

lint: setup ## ruff and mypy
	@'$(VENV)/bin/ruff' check --quiet .
	@'$(VENV)/bin/ruff' format --check --quiet .
	@'$(VENV)/bin/mypy' --no-error-summary

format: setup ## ruff's formatter and its safe fixes
	@'$(VENV)/bin/ruff' check --quiet --fix .
	@'$(VENV)/bin/ruff' format --quiet .

doctor: setup ## check this machine and say what to fix
	@exec '$(VENV)/bin/convnextv2' doctor $(ARGS)

gpu-check: setup ## is this GPU machine right, and how fast is it; five minutes
	@exec '$(VENV)/bin/python' -m pipelines.doctor.gpu $(ARGS)

clean: ## remove caches and build leftovers; runs/ and the environment stay
	@rm -rf build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name '$(notdir $(VENV))' -prune -o -name .git -prune -o -name runs -prune \
		-o -name __pycache__ -type d -prune -exec rm -rf {} +
