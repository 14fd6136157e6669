# Each target does its own set-up, from nothing; a second call finds its stamps and starts at once.

# torch for development, installed when the environment has none that is recent enough.
TORCH ?= torch==2.13.0
# More arguments for pytest, e.g. PYTEST_ARGS="tests/spam -x". With -n 2 set OMP_NUM_THREADS=1 as well.
PYTEST_ARGS ?=

# The environment: the interpreter that PYTHON names, else the active environment, else .venv.
ifneq ($(PYTHON),)
PY := $(PYTHON)
else ifneq ($(VIRTUAL_ENV)$(CONDA_PREFIX),)
PY := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX))/bin/python
else
PY := .venv/bin/python
ENVIRONMENT := .venv
MADE := .venv/pyvenv.cfg
endif
ENVIRONMENT ?= $(shell $(PY) -c 'import sys; print(sys.prefix)')
# Newer than the stamps when the environment was made anew: everything is installed again.
MADE ?= $(wildcard $(ENVIRONMENT)/pyvenv.cfg $(ENVIRONMENT)/conda-meta/history)
STAMPS := build/stamps/$(subst /,-,$(ENVIRONMENT))
PIP := $(PY) -m pip

EXTRAS_demo := demo
EXTRAS_test := test,triton,demo,examples
EXTRAS_lint := dev
EXTRAS_bench := bench,triton,test

ifneq ($(LADDERKERN_BUILD_NATIVE),0)
NATIVE := ladderkern/lib/libladderkern_native.so
endif
export LADDERKERN_BUILD_TESTS := 1

CXX_FILES := $(wildcard csrc/*/*.h csrc/*/*.cpp tests/*/*.cpp)

.PHONY: help demo test lint bench clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:  ## show this text
	@sed -n 's/^\([a-z]*\):.*##/  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16
	@echo
	@echo "Installs into PYTHON=<interpreter> where given, else the active environment, else .venv (made here): $(PY)"

demo: $(STAMPS)/demo  ## train small models with SPAM and with the joint loss and show what they do; QUICK=1 for the short form
	$(PY) -m ladderkern demo $(if $(QUICK),--quick)

# Two processes, because Triton decides at import whether kernels run in the interpreter. Both run, then either may fail.
test: $(STAMPS)/test  ## run all tests, the Triton kernels in the interpreter included
	rc=0; \
	env -u TRITON_INTERPRET $(PY) -m pytest -m "not interpreter" $(PYTEST_ARGS) || rc=1; \
	TRITON_INTERPRET=1 $(PY) -m pytest -m interpreter $(PYTEST_ARGS) || rc=1; \
	exit $$rc

lint: $(STAMPS)/lint  ## check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(if $(CXX_FILES),"$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("scripts"))')/clang-format" --dry-run --Werror $(CXX_FILES))
	$(PY) -m mypy

bench: $(STAMPS)/bench  ## run the benchmarks
	$(PY) -m pytest bench $(PYTEST_ARGS)

clean:  ## remove what was built; .venv stays
	rm -rf build dist ladderkern/lib ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks

.venv/pyvenv.cfg:
	python3 -m venv .venv

$(STAMPS)/build: $(MADE) setup.py
	@mkdir -p $(@D)
	@$(PIP) --version > /dev/null 2>&1 || $(PY) -m ensurepip
	$(PIP) install -q 'setuptools>=77' wheel 'cmake>=3.24' ninja numpy pybind11
	@$(PY) -c 'import setup, sys; sys.exit(not setup.torch_is_recent())' || $(PIP) install -q '$(TORCH)'
	@touch $@

$(NATIVE): $(STAMPS)/build $(wildcard csrc/*/* tests/native/*.cpp) CMakeLists.txt
	$(PY) setup.py -q build_ext --inplace

$(STAMPS)/%: pyproject.toml $(STAMPS)/build | $(NATIVE)
	$(PIP) install -q --no-build-isolation -e '.[$(EXTRAS_$*)]'
	@touch $@
