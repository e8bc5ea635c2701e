# make test | demo | lint | format | bench | clean
#
#   TORCH=cpu     (default) the pinned CPU build of torch; TORCH=any takes any build, TORCH=keep the one that Python has
#   PYTHON=...    the interpreter to make .venv with, 3.11 or 3.12; found by itself when left out (`make clean` first to change it)
#   JOBS=n        test processes, one for each core when left out; THREADS=n threads in each, 1 when left out
#   ARGS=...      further arguments: make test ARGS="-k delta -x"

TORCH ?= cpu
PYTHON ?=
JOBS ?= logical
THREADS ?= 1
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

export PYTHON
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: test demo lint format bench venv clean
.DEFAULT_GOAL := test

venv: $(STAMP)

# The stamp holds the place and the kind of torch; a moved folder or another TORCH installs again.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR) torch=$(TORCH))
.PHONY: $(STAMP)
endif
$(STAMP): pyproject.toml constraints.txt scripts/make_venv.sh
	scripts/make_venv.sh $(TORCH)

test: $(STAMP)
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal $(ARGS)

demo: $(STAMP)
	$(BIN)/python -m nlc.demo $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m bench $(ARGS)

clean:
	rm -rf .venv build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
