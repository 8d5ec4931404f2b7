# All that a checkout needs: `make run` and `make test` set everything up by themselves, `make help` lists the rest.
# PYTHON names the interpreter for the set-up (make run PYTHON=python3.12), ARGS goes to the command (make run ARGS="seed=1").
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
PEERS := .peers
INSTALL := $(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
# Two workers with one thread each: two cores are busy, and no worker waits for another's threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2
# A waiting thread of torch sleeps: by default it spins, and on a machine that does something else as well both then crawl.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help run test test-all test-peers lint docs peers bench bench-quick bench-layers clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: $(READY) ## the main job on built-in data: MAML, 5-way 1-shot, about a minute, no files needed
	@$(BIN)/metarun experiment=quickstart $(ARGS)
	@echo "Both commands, metarun and tensorboard, are in $(BIN); to have them at hand: . $(BIN)/activate"

test: $(READY) ## the tests, without the slow ones
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(READY) ## all tests, minutes longer
	$(PYTEST) $(ARGS)

lint: $(READY) ## style, formatting, types, imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY) ## the documentation as a site that can be searched, in build/docs; needs no server
	@$(BIN)/python -c 'import material' 2>/dev/null || $(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -q
	@echo "Open build/docs/index.html"

peers: $(PEERS)/learn2learn/.built $(PEERS)/metalearn/.built ## build the libraries that the benchmark compares with, in environments of their own

test-peers: peers ## the tests that compare with learn2learn, in its environment
	OMP_NUM_THREADS=1 $(PEERS)/learn2learn/bin/python -m pytest tests/oracle $(ARGS)

bench: peers ## metarun against them in turn, about half an hour on a quiet machine; writes docs/benchmarks.md and .json
	$(BIN)/python scripts/bench.py --write $(ARGS)

bench-quick: peers ## four of its works, in under 5 minutes; writes nothing
	$(BIN)/python scripts/bench.py --works W1 W4 W6 W7 --rounds 2 --seconds 0.3 $(ARGS)

bench-layers: $(READY) ## what each layer of speed gains, about 10 minutes on a quiet machine; writes nothing
	$(BIN)/python scripts/bench_layers.py $(ARGS)

clean: ## remove caches and build products; .venv and outputs stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp says that the environment agrees with the two files it depends on. An environment that is complete already is
# taken as it is, without a network: the first install may use nothing but what is there.
$(READY): pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	    { echo "metarun needs Python 3.10 or newer, and '$(PYTHON)' is not; name one, for example: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }; \
	  $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "$(PYTHON) has no venv module; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	  $(PYTHON) -m venv $(VENV); \
	fi
	@$(INSTALL) --no-index --no-build-isolation >/dev/null 2>&1 || \
	  { echo "Installing metarun and what it needs into $(VENV), once; this takes a minute or more ..."; $(INSTALL); } || \
	  { echo "The installation failed for the reason above; once it is mended, the same make command goes on." >&2; exit 1; }
	@touch $@

# Each peer sees the packages of $(VENV), torch above all, so that both sides of a comparison run on the same one.
define PEER
	@rm -rf $(@D)
	@$(BIN)/python -m venv $(@D)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth"
endef

# learn2learn ships C files that are too old for Python 3.11: Cython makes them anew. Its own requirements are older still.
$(PEERS)/learn2learn/.built: | $(READY)
	$(PEER)
	@$(@D)/bin/python -m pip install -q cython 'setuptools<81' wheel
	@$(@D)/bin/python -m pip wheel -q --no-deps --no-build-isolation --use-pep517 learn2learn==0.2.0 -C--global-option=build_ext -w $(@D)
	@$(@D)/bin/python -m pip install -q --no-deps $(@D)/learn2learn-*.whl torchvision gym==0.26.2 gym-notices cloudpickle scipy
	@touch $@

$(PEERS)/metalearn/.built: | $(READY)
	$(PEER)
	@$(@D)/bin/python -m pip install -q --no-deps parallel-metalearn==0.5.6 || echo "parallel-metalearn does not install here: measured without it"
	@touch $@
