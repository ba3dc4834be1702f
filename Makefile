# Every verb of the project. Each installs what it needs into .venv first; nothing but Python 3.10+ is expected.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
FUZZER := $(VENV)/fuzzer
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo unit test chaos soak fuzz lint docs check bench bench-peers bench-files bench-against clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## serve the digits example on two workers and ask it (KEEP=1 leaves it running)
	$(BIN)/python scripts/demo.py $(if $(KEEP),--keep)

unit: $(INSTALLED) ## run the tests that start no server and try few examples, in less than 20 seconds
	$(BIN)/python -m pytest -n $(JOBS) -m "not e2e and not exhaustive" --hypothesis-profile=unit $(ARGS)

test: $(INSTALLED) ## run all tests, JOBS=2 files at a time
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

chaos: $(INSTALLED) ## attack servers for up to 10 minutes, and write docs/reliability.md (ROUNDS=20 of each attack)
	CHAOS_ROUNDS=$(or $(ROUNDS),20) $(BIN)/python -m pytest -m chaos -s tests/chaos $(ARGS)

soak: $(INSTALLED) ## serve every kind of request under signals for MINUTES=30; fails if anything grows or is lost
	$(BIN)/python -m tests.chaos.soak --minutes $(or $(MINUTES),30)

fuzz: $(FUZZER) ## feed the codecs what atheris thinks of, for DURATION=60 seconds
	PYTHONPATH=$(FUZZER) $(BIN)/python -m tests.chaos.fuzz -artifact_prefix=$(VENV)/ -max_total_time=$(or $(DURATION),60)

lint: $(INSTALLED) ## ruff check, ruff format --check, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED) ## build the site of the documents in build/site; fails if a link leads nowhere
	$(BIN)/python scripts/build_docs.py

check: lint test ## lint, then test

bench: $(INSTALLED) ## print memory, what large bodies take, how evenly workers share, how soon liveness is told
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/large_bodies.py
	$(BIN)/python benchmarks/balance.py
	$(BIN)/python benchmarks/liveness.py

bench-peers: $(INSTALLED) ## measure mpserve beside other servers, and write docs/benchmarks.md (needs wrk)
	-$(BIN)/python -m benchmarks.peers install
	$(BIN)/python -m benchmarks.peers run $(ARGS)
	$(BIN)/python -m benchmarks.peers report

bench-files: $(INSTALLED) ## measure model files beside MLServer and kserve, and write the tables of docs/files.md (needs wrk)
	-$(BIN)/python -m benchmarks.peers install mlserver-files kserve-files
	$(BIN)/python -m benchmarks.model_files --write $(ARGS)

bench-against: $(INSTALLED) ## compare this tree with another revision of it: REV=main (needs wrk)
	$(BIN)/python -m benchmarks.against $(REV)

clean: ## remove the environment, caches and build outputs
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf ./*.egg-info

# A folder of its own: only make fuzz needs it, and it has wheels for a few versions of Python only.
$(FUZZER): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --upgrade --target $@ 'atheris>=3,<4'
	@touch $@

# The stamp is touched last, so an installation that broke off is begun again.
$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "mpserve needs Python 3.10 or newer")'
	@echo "Installing mpserve and its development tools (torch is the largest) into $(VENV). This takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@
