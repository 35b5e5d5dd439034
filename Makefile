# Needs Python 3.11 or newer and make; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo screenshots servers test chaos bench docs lint format lock clean

help: ## Show what can be made
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: $(STAMP) ## Create .venv and install what the lock names, checked by hash

$(STAMP): requirements/dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP) ## Run the whole pipeline on this machine; SERVE=1 (and PORT=8000) for the student's page
	@$(BIN)/python -m demo $(if $(SERVE),--serve) $(if $(PORT),--port $(PORT))

screenshots: $(STAMP) ## Take the README's pictures of the student's page and the console anew (needs Chromium)
	@$(BIN)/python -m tests.page.screenshots
	@$(BIN)/python -m demo.screenshots

servers: $(STAMP) ## Run PostgreSQL and Valkey until Ctrl-C, for trying things out
	@$(BIN)/python -m demo.servers

test: $(STAMP) ## Run the whole test suite against real servers, with branch coverage
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --cov --cov-report=term $(ARGS)

chaos: $(STAMP) ## Break everything at random for SECONDS=120 (and SEED=...), then audit every answer
	@$(BIN)/python -m tests.chaos --seconds $(or $(SECONDS),120) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: $(STAMP) ## Measure on this machine, half an hour; ONLY=pickup (or throughput, model, ...) for one part
	@$(BIN)/python -m benchmarks $(ONLY)

docs: $(STAMP) ## Build the documentation site into docs/_build; every warning is an error
	$(BIN)/python -m tests.docs.pages
	$(BIN)/sphinx-build --fail-on-warning --keep-going --nitpicky --quiet --builder html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

lint: $(STAMP) ## Check style, types, import contracts, dead code and dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/deptry .

format: $(STAMP) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## Resolve the dependencies anew (needs uv)
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header \
		--no-emit-index-url --no-annotate --all-extras --group dev --output-file requirements/dev.lock
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header \
		--no-emit-index-url --no-annotate --extra worker --extra telemetry --constraint requirements/dev.lock \
		--output-file requirements/worker.lock
	uv pip compile requirements/peers.in --override benchmarks/peers/overrides.txt --universal --python-version 3.11 \
		--generate-hashes --no-header --no-emit-index-url --no-annotate --output-file requirements/peers.lock

clean: ## Remove .venv, .venv-peers and caches
	rm -rf $(VENV) .venv-peers .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache docs/_build
