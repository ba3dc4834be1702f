# Every verb of the project. Each installs what it needs into .venv first; nothing but Python 3.10+ is expected.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEMO := $(VENV)/.installed-demo
LOWEST := $(VENV)/lowest
UV := $(BIN)/uv
SERVERS := $(addprefix tests/e2e/test_,boot.py drain.py recycle.py signals.py transformer.py ways_in.py)
FUZZER := $(VENV)/fuzzer
RELEASE := $(VENV)/release
CYCLONEDX := $(VENV)/cyclonedx
JOBS ?= 2
COMMA := ,

.DEFAULT_GOAL := help
.PHONY: help demo unit test test-lowest check-wheel chaos soak growth fuzz lint docs check bench bench-peers bench-files bench-against \
	constraints sbom clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED_DEMO) ## serve the digits example on two workers and ask it (KEEP=1 leaves it running)
	$(BIN)/python scripts/demo.py $(if $(KEEP),--keep)

unit: $(INSTALLED) ## run the tests that start no server and try few examples, in less than 20 seconds
	$(BIN)/python -m pytest -n $(JOBS) -m "not e2e and not exhaustive" --hypothesis-profile=unit $(ARGS)

test: $(INSTALLED) ## run all tests, JOBS=2 files at a time
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-lowest: $(LOWEST) ## run the unit tests and some servers with the lowest versions that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest -m "not e2e and not exhaustive" --hypothesis-profile=unit $(ARGS)
	$(LOWEST)/bin/python -m pytest $(SERVERS) $(ARGS)

check-wheel: $(UV) ## run the demo on the built wheel, alone and beside mlflow, kserve and ray (PYTHONS="python3.10 ...")
	$(BIN)/python scripts/check_wheel.py $(PYTHONS)

chaos: $(INSTALLED) ## attack servers for up to 10 minutes, and write docs/operate/reliability.md (ROUNDS=20 of each attack)
	CHAOS_ROUNDS=$(or $(ROUNDS),20) $(BIN)/python -m pytest -m chaos -s tests/chaos $(ARGS)

soak: $(INSTALLED) ## serve every kind of request under signals for MINUTES=30; fails if anything grows or is lost
	$(BIN)/python -m tests.chaos.soak --minutes $(or $(MINUTES),30)

growth: $(INSTALLED) ## ask EACH=50000 requests of each kind, one kind after the other; fails if a worker grows
	$(BIN)/python -m tests.chaos.growth --each $(or $(EACH),50000)

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

bench-files: $(INSTALLED) ## measure model files beside MLServer and kserve, and write the tables of docs/reference/files.md (needs wrk)
	-$(BIN)/python -m benchmarks.peers install mlserver-files kserve-files
	$(BIN)/python -m benchmarks.model_files --write $(ARGS)

bench-against: $(INSTALLED) ## compare this tree with another revision of it: REV=main (needs wrk)
	$(BIN)/python -m benchmarks.against $(REV)

constraints: $(INSTALLED) ## write deploy/constraints.txt, the versions of the packages of an image
	$(BIN)/python scripts/write_constraints.py

sbom: $(CYCLONEDX) ## write build/sbom.json, what is in an image with EXTRAS=sklearn,grpc, in the form of CycloneDX
	$(PYTHON) -m venv --clear --without-pip $(RELEASE)
	$(BIN)/python -m pip --python $(RELEASE)/bin/python install --quiet --constraint deploy/constraints.txt '.[simdjson$(addprefix $(COMMA),$(EXTRAS))]'
	mkdir -p build
	$(CYCLONEDX)/bin/python -m cyclonedx_py environment --pyproject pyproject.toml --mc-type application --output-reproducible \
		--output-file build/sbom.json $(RELEASE)/bin/python

clean: ## remove the environment, caches and build outputs
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf ./*.egg-info

# A folder of its own: only make fuzz needs it, and it has wheels for a few versions of Python only.
$(FUZZER): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --upgrade --target $@ 'atheris>=3,<4'
	@touch $@

# An environment of its own, so that what cyclonedx-bom needs is not in the list.
$(CYCLONEDX): $(INSTALLED)
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet 'cyclonedx-bom>=7,<8'
	@touch $@

# An environment of its own. It has the lowest versions that have a wheel for this Python.
$(LOWEST): pyproject.toml $(UV)
	$(UV) venv --quiet --clear --python $(PYTHON) $@
	$(UV) pip compile --quiet --python $@ --resolution lowest-direct --only-binary :all: --group test \
		--extra grpc --extra sklearn --extra transformer --extra uploads --output-file $@/lowest.txt pyproject.toml
	$(UV) pip install --quiet --python $@ --requirement $@/lowest.txt
	$(UV) pip install --quiet --python $@ --no-deps --editable .
	@touch $@

# For the verbs that choose versions or make several environments, which pip cannot do or takes minutes for.
$(UV): $(INSTALLED_DEMO)
	$(BIN)/python -m pip install --quiet 'uv>=0.8'
	@touch $@

# The demo's environment is a part of the whole one, and is there much sooner.
# The stamps are touched last, so an installation that broke off is begun again.
$(INSTALLED_DEMO): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "mpserve needs Python 3.10 or newer")'
	@echo "Installing mpserve and scikit-learn into $(VENV). This takes up to a minute."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable . 'scikit-learn>=1.5'
	@touch $@

$(INSTALLED): $(INSTALLED_DEMO)
	@echo "Installing mpserve's extras and development tools (torch is the largest) into $(VENV). This takes some minutes."
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@
