# `make run` starts the service, `make test` runs the tests; both install what they need into .venv first. `make webui` starts Open WebUI beside it, and `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	--python-version 3.11 --custom-compile-command "make lock"
LOCK := $(COMPILE) pyproject.toml --group build

.PHONY: install run test test-slow test-system test-all e2e docker-check check format lock bench audit release clean real-servers webui webui-install otel deepeval docs reference help

run: $(VENV)/runtime.stamp ## start the service
	@$(BIN)/python -m app.main

help: ## list the targets
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1	\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 24

install: $(VENV)/dev.stamp ## install everything for development

otel: $(VENV)/otel.stamp ## install what traces need

deepeval: $(VENV)/deepeval.stamp ## install what judged metrics need

webui: ## start Open WebUI with the agents of the running service
	@$(PYTHON) scripts/webui.py $(ARGS)

webui-install:
	@$(PYTHON) scripts/webui.py --install-only

TESTED := $(VENV)/dev.stamp $(VENV)/pgbouncer.stamp $(VENV)/kubectl.stamp

test: $(TESTED) ## run the fast tests
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(TESTED) ## run the slow tests
	$(BIN)/python -m pytest -m slow $(ARGS)

test-system: $(TESTED) ## run the tests of the whole service, slow ones too
	$(BIN)/python -m pytest tests/system $(ARGS)

test-all: $(TESTED) ## run all tests
	$(BIN)/python -m pytest $(ARGS)

e2e: ## test with Open WebUI in a browser
	@scripts/e2e $(ARGS)

# Installs a gigabyte of model servers at first. It needs no key and is not part of CI.
real-servers: $(VENV)/dev.stamp $(VENV)/real-llama.stamp $(VENV)/real-litellm.stamp ## test against real model servers
	$(BIN)/python -m pytest -n 0 -p no:randomly -o timeout=600 real_servers $(ARGS)

docker-check: ## build and test the containers
	@$(PYTHON) scripts/docker_check.py $(ARGS)

check: $(VENV)/dev.stamp ## check format, lint, types and layers
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

format: $(VENV)/dev.stamp ## format the code
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: $(VENV)/dev.stamp $(VENV)/pgbouncer.stamp ## run the benchmarks
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/docs.stamp ## build the documentation into site/
	@rm -rf site
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --nitpicky --fresh-env -d $(VENV)/doctrees -c docs . site
	@echo "docs: open site/index.html"

reference: $(VENV)/dev.stamp ## write docs/reference.md
	$(BIN)/python -m scripts.reference

# Asks a database of vulnerabilities, so it needs the internet.
audit: $(VENV)/dev.stamp ## look for known vulnerabilities in dependencies
	@for lock in requirements.lock requirements-otel.lock requirements-eval.lock; do \
		echo "$$lock"; $(BIN)/pip-audit --disable-pip --require-hashes --requirement $$lock || exit 1; done

release: $(VENV)/dev.stamp ## build the wheel, the sdist and the SBOM
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/release

lock: $(VENV)/dev.stamp ## update the lock files
	$(LOCK) --extra eval --output-file requirements-eval.lock
	$(LOCK) --constraint requirements-eval.lock --output-file requirements.lock
	$(LOCK) --extra otel --constraint requirements-eval.lock --output-file requirements-otel.lock
	$(LOCK) --extra otel --extra eval --group dev --constraint requirements-eval.lock --constraint requirements-otel.lock \
		--output-file requirements-dev.lock
	$(COMPILE) --group e2e --constraint requirements-dev.lock --output-file requirements-e2e.lock
	$(COMPILE) --group model-server --no-deps --output-file real_servers/llama.lock
	$(COMPILE) --group model-proxy --output-file real_servers/litellm.lock
	$(COMPILE) --group docs --constraint requirements-dev.lock --output-file requirements-docs.lock
	$(COMPILE) --group container-development --constraint requirements-dev.lock --output-file docker/development.lock
	$(COMPILE) --group container-node --output-file docker/node.lock
	$(COMPILE) --group container-uv --constraint requirements-dev.lock --output-file docker/uv.lock
	$(COMPILE) --group container-check --constraint requirements-dev.lock --output-file docker/check.lock
	$(COMPILE) webui/requirements.in --excludes webui/left-out.in --output-file requirements-webui.lock

$(VENV)/pgbouncer.stamp: scripts/fetch-pgbouncer | $(VENV)/bin/python
	@scripts/fetch-pgbouncer $(CURDIR)/$(VENV)/pgbouncer
	@touch $@

$(VENV)/kubectl.stamp: scripts/fetch-kubectl | $(VENV)/bin/python
	@scripts/fetch-kubectl $(CURDIR)/$(VENV)/kubectl
	@touch $@

clean: ## remove what was installed and built
	rm -rf $(VENV) .webui site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "Creating $(VENV) ..."
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "Python has no venv module here; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 2; }

$(VENV)/runtime.stamp: requirements.lock | $(VENV)/bin/python
	@echo "Installing what the service needs (once, about half a minute) ..."
	@$(PIP) install --no-deps --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/otel.stamp: requirements-otel.lock $(VENV)/runtime.stamp
	@echo "Installing what traces need ..."
	@$(PIP) install --no-deps --require-hashes -r requirements-otel.lock
	@touch $@

$(VENV)/deepeval.stamp: requirements-eval.lock $(VENV)/runtime.stamp
	@echo "Installing what judged metrics need ..."
	@$(PIP) install --no-deps --require-hashes -r requirements-eval.lock
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock | $(VENV)/bin/python
	@echo "Installing what the tests and checks need (once, about a minute) ..."
	@$(PIP) install --no-deps --require-hashes -r requirements-dev.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $(VENV)/runtime.stamp $@

$(VENV)/e2e.stamp: requirements-e2e.lock $(VENV)/dev.stamp
	@$(PIP) install --no-deps --require-hashes -r requirements-e2e.lock
	@touch $@

$(VENV)/real-%.stamp: real_servers/%.lock | $(VENV)/bin/python
	@echo "Installing $* for the tests against real model servers (once) ..."
	@$(BIN)/python -m venv --clear $(VENV)/real-$*
	@$(VENV)/real-$*/bin/python -m pip --disable-pip-version-check --quiet install --no-deps --require-hashes -r $<
	@touch $@

$(VENV)/docs.stamp: requirements-docs.lock $(VENV)/runtime.stamp
	@echo "Installing what the documentation is built with ..."
	@$(PIP) install --no-deps --require-hashes -r requirements-docs.lock
	@touch $@
