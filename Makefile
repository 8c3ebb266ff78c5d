# Two commands do all the set-up on a fresh machine: `make run` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_FLAGS := --quiet --disable-pip-version-check

.PHONY: run test test-clients check fix clean

run: $(VENV)/installed ## serve the demo model on this machine
	@exec $(BIN)/python manage.py up

test: $(VENV)/installed-dev ## everything, on the embedded defaults and on PostgreSQL + Redis
	@tests/install_programs.sh
	$(BIN)/python -m pytest -o addopts="--strict-markers --strict-config"

test-clients: $(VENV)/installed-dev ## Claude Code, Codex, opencode and the SDKs, all real; needs node
	@tests/clients/install.sh
	$(BIN)/python -m pytest -o addopts="--strict-markers --strict-config" tests/clients

check: $(VENV)/installed-dev ## what must hold at every commit; under a minute
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python manage.py check
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/python -m pytest -n 2 --dist loadfile --hypothesis-profile quick -m "not e2e and not model and not slow"

fix: $(VENV)/installed-dev ## format, and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## forget the virtual environment and the data
	rm -rf $(VENV) data tests/clients/node_modules

# The files next to the environment say what it was built from: a change builds on.
$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Cortex needs Python 3.11 or later; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: requirements.txt requirements-cortex.txt requirements-neuron.txt $(VENV)/created
	@echo "Installing what Cortex needs: a few minutes, once."
	$(BIN)/pip install $(PIP_FLAGS) -r requirements.txt
	@touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(BIN)/pip install $(PIP_FLAGS) -r requirements-dev.txt
	@touch $@
