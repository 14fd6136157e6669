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
EXTRAS_docs := docs
EXTRAS_bench := bench,triton,test
EXTRAS_wheel := wheel

ifneq ($(LADDERKERN_BUILD_NATIVE),0)
NATIVE := ladderkern/lib/libladderkern_native.so
endif
export LADDERKERN_BUILD_TESTS := 1
# No test needs the CUDA library, and nvcc takes a minute: LADDERKERN_BUILD_CUDA=1 builds it all the same.
export LADDERKERN_BUILD_CUDA ?= 0

CXX_FILES := $(wildcard $(foreach end,h cpp cu cuh,csrc/*/*.$(end) tests/*/*.$(end)))

.PHONY: help demo test docs emulate fault-drill aot traffic cuda-load-check triton-check gpu-test gpu-bench lint bench bench-compare bench-plot bench-two-hosts wheel wheel-check clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:  ## show this text
	@sed -n 's/^\([a-z-]*\):.*##/  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 24
	@echo
	@echo "Installs into PYTHON=<interpreter> where given, else the active environment, else .venv (made here): $(PY)"

demo: $(STAMPS)/demo  ## train small models with SPAM, with the joint loss and as ladders, score PRM steps: demo/report.html; QUICK=1: short
	$(PY) -m ladderkern demo $(if $(QUICK),--quick)

# Two processes, because Triton decides at import whether kernels run in the interpreter. Both run, then either may fail.
test: $(STAMPS)/test  ## run all tests, the Triton kernels in the interpreter included
	rc=0; \
	env -u TRITON_INTERPRET $(PY) -m pytest -m "not interpreter" $(PYTEST_ARGS) || rc=1; \
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m interpreter $(PYTEST_ARGS) || rc=1; \
	exit $$rc

# The second time with the sanitizers' runtime in front of all others, as it must be, and with the one that throws beside it.
emulate: $(STAMPS)/test  ## run the CUDA kernels on the CPU, then again under AddressSanitizer and UBSan, and print what ran
	LADDERKERN_BUILD_SANITIZED=1 $(PY) setup.py -q build_ext --inplace
	LADDERKERN_EMULATION_TABLE=1 $(PY) -m pytest -q tests/emulation $(PYTEST_ARGS)
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 LADDERKERN_EMULATION=sanitized \
	LADDERKERN_EMULATION_TABLE=1 $(PY) -m pytest -q tests/emulation $(PYTEST_ARGS)

fault-drill: $(STAMPS)/test  ## kill a rank of a tensor-parallel training at a random module, 20 times, and time the others' errors
	OMP_NUM_THREADS=1 $(PY) tests/reliability/fault_drill.py --kills $(or $(KILLS),20) --seed $(or $(SEED),0)

# What Triton compiled is kept in build/, so that a second run only reads it. The CUDA library is built where nvcc is.
aot: $(STAMPS)/test  ## see what each Triton and CUDA kernel is compiled to, without a GPU: registers, spills, wide accesses; AOT=update: new budgets
	LADDERKERN_BUILD_CUDA=auto $(PY) setup.py -q build_ext --inplace
	env -u TRITON_INTERPRET LADDERKERN_AOT=$(or $(AOT),all) TRITON_CACHE_DIR='$(CURDIR)/build/triton' OMP_NUM_THREADS=1 \
		$(PY) -m pytest tests/aot -n 2 --tables $(PYTEST_ARGS)

traffic: $(STAMPS)/test  ## count the bytes and launches of the Triton kernels against the least possible; predict times on GPUs
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(PY) -m pytest -m interpreter tests/traffic -n 2 --tables $(PYTEST_ARGS)
	$(PY) bench/roofline.py

# An environment and a copy of the sources of its own: a CUDA build of torch is 5.5 GB, and nothing here is built anew for it.
LOAD_CHECK := build/cuda-load-check
cuda-load-check:  ## build the CUDA library for a CUDA build of torch (5.5 GB, once), load it and call its ops, with no GPU
	test -x $(LOAD_CHECK)/bin/python || python3 -m venv $(LOAD_CHECK)
	$(LOAD_CHECK)/bin/python -m pip install -q torch==2.14.1 numpy 'setuptools>=77' wheel 'cmake>=3.24' ninja 'pytest>=8'
	rm -rf $(LOAD_CHECK)/source $(LOAD_CHECK)/dist && mkdir $(LOAD_CHECK)/source
	$(LOAD_CHECK)/bin/python setup.py -q sdist -d $(LOAD_CHECK)/dist
	tar xf $(LOAD_CHECK)/dist/*.tar.gz -C $(LOAD_CHECK)/source --strip-components=1
	cd $(LOAD_CHECK)/source && LADDERKERN_BUILD_CUDA=1 LADDERKERN_BUILD_TESTS=0 ../bin/python -m pip install -q --no-build-isolation \
		--no-deps --force-reinstall .
	cd $(LOAD_CHECK)/source && rm -r ladderkern && env -u TRITON_INTERPRET LADDERKERN_CUDA_LOAD_CHECK=1 ../bin/pytest -v \
		tests/packaging/test_cuda.py tests/packaging/test_cuda_load.py $(PYTEST_ARGS)

# The oldest torch and Triton that are served, 4.7 GB, in an environment of its own; with NumPy 2.4 and newer the interpreter of
# Triton 3.6 cannot run loops.
TRITON_CHECK := build/triton-check
triton-check: $(NATIVE)  ## run the Triton kernels in the interpreter of Triton 3.6, with torch 2.11 (4.7 GB, once)
	test -x $(TRITON_CHECK)/bin/python || python3 -m venv $(TRITON_CHECK)
	$(TRITON_CHECK)/bin/python -m pip install -q 'torch==2.11.*' 'triton==3.6.*' 'numpy<2.4' 'pytest>=8' pytest-xdist hypothesis
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 PYTHONPATH=. $(TRITON_CHECK)/bin/python -m pytest -n 2 -m interpreter $(PYTEST_ARGS)

# These two install nothing: a machine with a GPU may have no network. PYTHON=python3 names its interpreter.
gpu-test:  ## on a machine with a GPU: all backends against the oracle, graph capture, races; elsewhere nothing
	tests/gpu/run.sh $(PY) $(PYTEST_ARGS)

gpu-bench:  ## on a machine with a GPU: time the kernels beside AdamW, torch.compile and Liger: bench/results/gpu.csv and gpu.png
	PYTHONPATH=. $(PY) bench/gpu.py --csv bench/results/gpu.csv --plot bench/results/gpu.png

lint: $(STAMPS)/lint  ## check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(if $(CXX_FILES),"$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("scripts"))')/clang-format" --dry-run --Werror $(CXX_FILES))
	$(PY) -m mypy

docs: $(STAMPS)/docs  ## build the documentation, warnings being errors: build/docs/index.html
	$(PY) -m sphinx -W --keep-going -q -b html docs build/docs

bench: $(STAMPS)/bench  ## run the benchmarks
	$(PY) -m pytest bench $(PYTEST_ARGS)

bench-compare: $(STAMPS)/bench  ## is HEAD= (default HEAD) slower than BASE=<revision>? builds both, interleaves; BENCH="spam-small prm" limits
	$(if $(BASE),,$(error BASE is missing: make bench-compare BASE=<revision> [HEAD=<revision>] [BENCH="case ..."]))
	$(PY) bench/compare.py $(BASE) $(HEAD) $(if $(BENCH),--bench $(BENCH)) $(COMPARE_ARGS)

# Of the demo's environment, which has Matplotlib.
bench-plot: $(STAMPS)/demo  ## draw bench/results/*.csv: docs/images/speed.svg and speed.png
	$(PY) bench/plot.py

bench-two-hosts: $(STAMPS)/bench  ## time ladders between two network namespaces, over links of three rates; needs root
	$(PY) bench/two_hosts.py

# By way of the sdist, unpacked elsewhere: nothing of an earlier build gets in. auditwheel reads from the symbols which
# glibc and libstdc++ the library needs, and names the wheel so; torch brings its own libraries.
wheel: $(STAMPS)/wheel  ## build the sdist, from it the wheel for this platform's manylinux and the pure-Python one: dist/
	rm -rf dist build/wheel
	LADDERKERN_BUILD_TESTS=0 $(PY) -m build --no-isolation --outdir build/wheel
	PATH="$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$$PATH" $(PY) -m auditwheel repair \
		--exclude libtorch_cpu.so --exclude libtorch_cuda.so --wheel-dir dist build/wheel/*-linux_*.whl
	LADDERKERN_BUILD_NATIVE=0 $(PIP) wheel -q --no-deps --no-build-isolation --wheel-dir dist build/wheel/*.tar.gz
	mv build/wheel/*.tar.gz dist/

# Not in CI: up to twelve environments, each with a torch of its own, some gigabytes where that is a CUDA build; removed again.
wheel-check: wheel  ## install the wheel into clean environments and run the quick tests; WHEEL_CHECK="--pythons 3.11 --torches 2.13"
	OMP_NUM_THREADS=1 $(PY) tests/check_wheel.py dist/*-manylinux_*.whl $(WHEEL_CHECK)

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

$(NATIVE): $(STAMPS)/build $(wildcard csrc/*/* tests/native/*.cpp tests/emulation/*.cpp tests/emulation/*.h) CMakeLists.txt
	$(PY) setup.py -q build_ext --inplace

$(STAMPS)/%: pyproject.toml $(STAMPS)/build | $(NATIVE)
	$(PIP) install -q --no-build-isolation -e '.[$(EXTRAS_$*)]'
	@touch $@
