# make demo   train and certify a small network on scikit-learn's digits
# make test   run the tests, doctests included
# make coverage  run the tests, and report which lines of the package they run
# make lint   check style and format (ruff)
# make types  check the types (mypy)
# make docs   build the documentation site into build/docs, offline; a broken link or reference ends it
# make bench  run the short benchmarks and write their report (under 10 minutes on 2 cores)
# make bench-check  run them anew and compare with the committed results
# make device-check DEVICE=cuda  tests, bounds, times and memory of a device (10 minutes, offline)
#
# All create .venv on first use. To use an environment that exists already, and leave it as it is:
#   make test VENV=none PYTHON=/path/to/python

PYTHON ?= python3
VENV ?= .venv

ifeq ($(VENV),none)
PY := $(PYTHON)
STAMP :=
# Nothing is installed into a borrowed environment, so the package is found through the path.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
else
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
endif

.DEFAULT_GOAL := help
.PHONY: help demo test coverage lint types docs bench bench-check device-check clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -12

# The tensors are tiny: a second thread costs more than it gives, and very much more on a busy machine.
demo: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) examples/train_digits.py --output runs/digits

# Two processes of one thread each; the tests of a file, which share what is dear, stay in one of them.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

coverage: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(STAMP)
	$(PY) -m mypy lirpa_multinorm

# mkdocs-material announces its successor on every build; the site needs mkdocs below 2 for its hooks.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

# Two threads at most, as the committed results.
bench: $(STAMP)
	OMP_NUM_THREADS=2 $(PY) -W ignore -m benchmarks.run --set short --output runs/bench
	$(PY) -W ignore -m benchmarks.report --results runs/bench

bench-check: $(STAMP)
	OMP_NUM_THREADS=2 $(PY) -W ignore -m benchmarks.check --set short

# A machine without an index: VENV=none PYTHON=python3, with auto_LiRPA on PYTHONPATH.
DEVICE ?= cuda
device-check: $(STAMP)
	$(PY) -W ignore -m benchmarks.device_check --device $(DEVICE) --output runs/device

# dev brings ruff and mypy, docs mkdocs.
# auto_LiRPA comes last and without its dependencies: it pins torch<1.13, which pip would complain about.
$(VENV)/.installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --upgrade pip
	$(PY) -m pip install --editable ".[demo,test,dev,docs]"
	$(PY) -m pip install --no-deps auto_LiRPA==0.3
	touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
