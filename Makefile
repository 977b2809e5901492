# `make demo` and `make test` need Python, a C++ compiler and a package registry; `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WHEEL := .venv-wheel
WORKERS ?= 2
MODEL_TESTS := tests/test_frozen.py tests/test_inference.py tests/test_mlp.py tests/test_rectified.py tests/test_dropout.py
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs --numprocesses $(WORKERS)
DATA ?=
ARGS ?=

.PHONY: help demo test test-python test-triton test-narrow test-wide sanitize bench gpu-check gpu-bench gpu-tune hub-kernel lint clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: $(VENV)/installed ## run the fused model on sentence pairs (DATA=file: SNLI-format lines)
	$(BIN)/coalign demo $(if $(DATA),--data "$(DATA)")

test: test-python test-triton test-narrow test-wide ## run every test; the operator's again interpreted, on narrower and on wider vectors

test-python: $(VENV)/installed
	$(PYTEST)

# TRITON_INTERPRET is read when Triton is imported, so its interpreter takes a process of its own
test-triton: $(VENV)/installed
	TRITON_INTERPRET=1 $(PYTEST) tests/test_operator*.py tests/test_frozen_kernels.py tests/test_prepared.py

# processors with AVX-512 pretend to have AVX2 only; for others these are the same tests again
test-narrow: $(VENV)/installed
	COALIGN_NATIVE_FLAGS="-mno-avx512f" $(PYTEST) tests/test_operator*.py $(MODEL_TESTS) -k "native or inference or mlp or dropout or sizes or rectified"

# and what processors with AVX-512 and its bfloat16 do, put together from narrow vectors: the same numbers, slowly. Without a
# multiply-add of their own, which would be one instruction or two as the compiler likes, so that bits could be compared
test-wide: $(VENV)/installed
	COALIGN_NATIVE_FLAGS="-mno-avx2 -mno-avx512f -ffp-contract=off -DEMULATED_WIDE_VECTORS" $(PYTEST) tests/test_operator.py tests/test_native_threads.py tests/test_frozen.py tests/test_inference.py tests/test_mlp.py tests/test_rectified.py -k "native or inference or mlp or sizes or rectified"

# the C++ kernels under the address and undefined-behaviour sanitizers; SANITIZE= selects tests
SANITIZE ?= depend_on_threads or (native or simulated) and oracle or native and masked_models or sizes or one_kernel or rectified or scores_are_the_models or half_precision or impossible or unknown or reads_every_kind or what_stays or come_again
sanitize: $(VENV)/installed ## run the C++ kernels' tests under the address and undefined-behaviour sanitizers
	COALIGN_NATIVE_FLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all" \
	LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so) $$(cc -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -p no:xdist tests/test_operator*.py tests/test_native_threads.py tests/test_frozen_kernels.py $(MODEL_TESTS) -k "$(SANITIZE)"

# what was measured is shown from the file that it is in; these measure nothing that could be
NOT_MEASURING := --help --profile --predict --compare --markdown --report
bench: $(VENV)/installed ## time the operator against PyTorch (minutes, on an idle machine); ARGS=--model: the whole model
	$(BIN)/python -m benchmarks $(ARGS)
	$(if $(filter $(NOT_MEASURING),$(ARGS)),,$(BIN)/python -m benchmarks --report $(ARGS))

# on a machine with a GPU and no network, in the Python that is there; what is done already is not done again
GPU_SECONDS ?= 440
gpu-bench: ## time model and operator on this machine's GPU, most important cases first; GPU_SECONDS=440 is the limit
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(PYTHON) -m benchmarks --suite gpu --resume --processes $$(nproc) --seconds $$(($(GPU_SECONDS) * 2 / 3)) $(ARGS)
	$(PYTHON) -m benchmarks --model --resume --processes $$(nproc) --seconds $$(($(GPU_SECONDS) / 3)) $(ARGS)
	$(PYTHON) -m benchmarks --report

gpu-tune: ## try the kernels' tile choices on this machine's GPU; GPU_SECONDS=440 is the limit
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(PYTHON) -m benchmarks.tune --seconds $(GPU_SECONDS)

# with PYTHON and what is installed there: PyTorch, the CUDA toolkit, pytest, hypothesis; no network
gpu-check: ## build the CUDA kernels and run all that needs a GPU, on a machine that has one
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(PYTHON) tests/gpu_check.py

HUB_KERNEL ?= build/hub-kernel
hub-kernel: ## write the Triton backend as a project for Hugging Face's kernel-builder, into HUB_KERNEL=build/hub-kernel
	$(PYTHON) scripts/hub_kernel.py $(HUB_KERNEL)

lint: $(VENV)/installed ## check style and types (types on the installed wheel: checkers can't follow editable installs)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	rm -rf build $(WHEEL)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $(WHEEL) .
	MYPYPATH=$(WHEEL) $(BIN)/mypy --package coalign

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch --editable .[dev]
	touch $@

clean: ## remove what the other targets made
	rm -rf $(VENV) $(WHEEL) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
