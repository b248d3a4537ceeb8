# `make` lists the targets. The first one that needs it sets up .venv; later runs only look at a time stamp.

.DEFAULT_GOAL := help
.ONESHELL:
.SHELLFLAGS := -eu -c
.DELETE_ON_ERROR:
.PHONY: help train test lint setup clean

BIN := .venv/bin
STAMP := .venv/.ready
PIP_FLAGS ?= -qq
PYTEST_ARGS ?=

ifneq ($(filter-out cpu cuda,$(DEVICE)),)
$(error DEVICE=$(DEVICE): say DEVICE=cpu or DEVICE=cuda, or leave it out to have it found)
endif

# The stamp holds "<device> <folder>". It counts only while the folder has not moved (scripts in .venv know their
# path), its Python still runs, and no other DEVICE is asked for.
ifneq ($(shell test -f $(STAMP) && read -r device folder <$(STAMP) && test "$$folder" = "$$(pwd -P)" && \
    test "$$device" = "$(or $(DEVICE),$$device)" && $(BIN)/python -c "" 2>/dev/null && echo valid),valid)
.PHONY: $(STAMP)
endif

help: ## list the targets and settings
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' Makefile
	printf '%s\n' '' 'Settings, as in "make test DEVICE=cpu":' \
	    '  DEVICE=cpu|cuda   packages to install; by default cuda where nvidia-smi lists a GPU, else cpu' \
	    '  PYTHON=...        interpreter for a new .venv; by default python3.11, else python3 if it is 3.11 to 3.14' \
	    '  PYTEST_ARGS=...   more arguments for pytest, such as PYTEST_ARGS="-x -k plan", or "-n 0 --pdb"' \
	    '  PIP_FLAGS=        show what pip does; its own variables (PIP_EXTRA_INDEX_URL, ...) work as usual'

train: $(STAMP) ## train on the built-in click log with SPTT and flat, and compare them
	@set -x
	$(BIN)/dmt fit --config configs/quickstart.yaml
	$(BIN)/dmt fit --config configs/quickstart_flat.yaml
	$(BIN)/dmt report runs/quickstart runs/quickstart_flat
	{ set +x; } 2>/dev/null
	printf '%s\n' '' 'Next, for example:' \
	    '  .venv/bin/dmt describe --config configs/quickstart.yaml --ranks_per_host 1' \
	    '  .venv/bin/dmt fit --config configs/quickstart.yaml --model.num_towers 8' \
	    '  .venv/bin/dmt fit --config configs/flights.yaml --data.path DIR_OF_YOUR_PARQUET_OR_CSV_FILES'

# Two files of tests at a time: many of them wait for processes of their own, which have a thread each.
test: lint ## lint, then run all tests
	@set -x
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

lint: $(STAMP) ## ruff and mypy
	@set -x
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(STAMP) ## only set up .venv: the pinned packages and the `dmt` command
	@echo "make: .venv is ready"

clean: ## delete .venv, caches and build leftovers; runs/ stays
	@rm -rf .venv build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Half a set-up (.incomplete) is thrown away: pip believes a package is whole when it is not. Changed pins are
# installed over the old ones.
$(STAMP): pyproject.toml $(wildcard requirements/*.txt)
	@fail() { printf 'make: %s\n' "$$*" >&2; exit 1; }
	test "$$(uname -s)" = Linux || fail "dmt runs on Linux: fbgemm-gpu has no wheels for $$(uname -s)"

	was= folder=
	if test -f $(STAMP); then read -r was folder <$(STAMP) || true; fi
	device=$(or $(DEVICE),$$was)
	if test -z "$$device"; then
	    case "$$(nvidia-smi -L 2>/dev/null || true)" in GPU*) device=cuda ;; *) device=cpu ;; esac
	fi
	if test -f .venv/.incomplete || test "$${was:-$$device}" != "$$device" \
	    || test "$${folder:-$$(pwd -P)}" != "$$(pwd -P)" || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then
	    rm -rf .venv
	fi

	if ! test -d .venv; then
	    python= seen=
	    for name in $(if $(PYTHON),"$(PYTHON)",python3.11 python3 python3.12 python3.13 python3.14); do
	        version=$$("$$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
	        seen="$$seen, $$name is $$version"
	        case $$version in 3.11|3.12|3.13|3.14) python=$$name; break ;; esac
	    done
	    test -n "$$python" || fail "dmt needs Python 3.11 (tested) to 3.14$${seen:-, none found};" \
	        "install python3.11, or name one as in: make PYTHON=/path/to/python3.11"
	    "$$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$$python cannot make virtual environments;" \
	        "install its venv module (Debian, Ubuntu: apt-get install python$$version-venv) and run make again"
	    echo "make: setting up .venv with Python $$version and requirements/$$device.txt; this takes a few minutes"
	    mkdir .venv
	    touch .venv/.incomplete
	    "$$python" -m venv .venv
	else
	    echo "make: bringing .venv up to requirements/$$device.txt"
	    rm -f $(STAMP)
	    touch .venv/.incomplete
	fi

	pip() { $(BIN)/python -m pip --disable-pip-version-check --no-input "$$@"; }
	torch=$$(sed -n 's/^torch==//p' requirements/base.txt)
	if test $$device = cpu && ! pip show torch 2>/dev/null | grep -qx "Version: $$torch+cpu"; then
	    versions=$$(pip index versions torch 2>/dev/null) || fail "pip cannot list the builds of torch: is there a" \
	        "network? \"$(BIN)/python -m pip index versions torch\" says why"
	    case "$$versions" in *"$$torch+cpu"*) ;; *) fail "pip finds no CPU build of torch $$torch, and the CUDA build" \
	        "takes several GB. Set PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index (the address behind --index-url" \
	        "in the install selector on pytorch.org) and run make again, or say DEVICE=cuda" ;; esac
	fi
	pip install $(PIP_FLAGS) --no-deps --no-compile -r requirements/$$device.txt -r requirements/torchrec.txt \
	    -r requirements/sweeps.txt -r requirements/dev.txt || fail "the set-up failed; the next make starts it anew"
	pip install $(PIP_FLAGS) --no-deps --no-build-isolation -e . || fail "installing dmt itself failed"
	# Do the parts load together? This also compiles what is used, in a quarter of the time that pip takes for all.
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -W ignore -c "import lightning.pytorch.cli, datasets, wandb, pytest, sweeps
	import torchrec.distributed.model_parallel, polars, sklearn.metrics, scipy.stats, matplotlib.pyplot" \
	    || fail "the installed packages do not load (above)"
	echo "$$device $$(pwd -P)" >.venv/.incomplete
	mv .venv/.incomplete $(STAMP)
