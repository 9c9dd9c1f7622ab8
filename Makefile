# Two commands do everything: `make train` and `make test`. Both install what is missing first.
PYTHON ?= python3
ARGS ?=
EXTRAS ?=
VENV := .venv
BIN := $(VENV)/bin
comma := ,
STAMP := $(VENV)/.installed$(subst $(comma),-,$(EXTRAS:%=-%))

.PHONY: help install train test test-slow test-cluster soak lint

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP)  ## create .venv and install the locked dependencies: make install EXTRAS=slurm,ray

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: $(PYTHON) is older than Python 3.10; give another one: make PYTHON=python3.12 ..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt -e '.[test$(EXTRAS:%=,%)]'
	@touch $@

train: install  ## run the main job: make train ARGS="model=vae dataset=mnist"
	$(BIN)/python -m src.train $(ARGS)

test: install  ## run the tests, but for those that take longest: make test ARGS="-k sampler"
	$(BIN)/python -m pytest $(ARGS)

test-slow: install  ## run the tests that take longest: make test-slow ARGS="-k sweep"
	$(BIN)/python -m pytest -m slow $(ARGS)

test-cluster:  ## jobs on a real Slurm (2 nodes on loopback) and a real Ray, both started for it: needs root on Debian
	@bash tests/cluster/run.sh $(ARGS)

soak: install  ## train under 200 random faults and compare with a run in peace: make soak ARGS="--faults 20 --steps 300"
	$(BIN)/python tests/soak.py $(ARGS)

lint: install  ## format and check the code
	$(BIN)/ruff format . && $(BIN)/ruff check . && $(BIN)/lint-imports
